"""What `--help` shows, and flags in their short and other spellings."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from cli_cases import QUICK, invoke, invoke_small, write_npz

from lstm_compile.cli.app import COMMANDS, app
from lstm_compile.cli.help import GROUPS, Setting, data_names


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def command_of(name):
    command = app.get_command(click.Context(app), name)
    assert command is not None
    return command


def groups(*words):
    """The flags below each title of a help text."""
    found, title = {}, ""
    for line in invoke(*words, "--help").stdout.splitlines():
        assert len(line) <= 80
        if line and line[0] != " ":
            title = line.rstrip(":")
        found.setdefault(title, []).extend(re.findall(r"^  (?:-\w, )?(--[a-z0-9-]+)", line))
    return found


def test_the_list_of_commands_has_whole_sentences():
    lines = invoke("--help").stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    assert all(line.endswith(".") and "..." not in line for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_two_examples_that_it_takes(name):
    command = command_of(name)
    assert len(command.examples) == 2
    text = invoke(name, "--help").stdout
    for example in command.examples:
        assert f"\n  lstm-compile {example}\n" in text
        words = shlex.split(example.partition(" > ")[0])
        assert words[0] == name
        parser = command.make_parser(click.Context(command, parent=click.Context(app)))
        options, rest, _ = parser.parse_args(words[1:])
        assert not rest, (example, options)


def test_the_flags_of_train_are_in_groups():
    found = groups("train")
    assert [title for title in found if title in GROUPS] == list(GROUPS)
    assert "--hidden-size" in found["Model"]
    assert "--learning-rate" in found["Training"]
    assert {"--horizon", "--calendar"} <= set(found["Forecasting"])
    assert {"--tokens", "--text"} <= set(found["Text"])
    assert {"--id", "--target"} <= set(found["Tables"])
    assert {"--missing", "--gaps"} <= set(found["Faults in the data"])
    assert {"--backend", "--device"} <= set(found["Speed"])
    assert {"--task", "--output", "--json", "--debug"} <= set(found["Options"])
    settings = [p.opts[-1] for p in command_of("train").params if isinstance(p, Setting)]
    assert sorted(settings) == sorted(flag for title in GROUPS for flag in found[title])


@pytest.mark.parametrize("words", [["--task", "forecast"], ["--task=forecast"], ["airline"]])
def test_where_the_task_is_known_only_its_flags_are_shown(words):
    found = groups("train", *words)
    assert "Text" not in found
    assert "--horizon" in found["Forecasting"]
    assert "--noise" not in found["Training"]
    assert "--horizon" not in str(groups("train", "--task", "tag"))


def default_of(flag, *words, command="train"):
    text = " ".join(invoke(command, *words, "--help").stdout.split())
    return re.search(rf"{flag} .*?\[default: (.*?)\]", text)[1]


def test_defaults_are_those_of_the_task():
    assert default_of("--epochs") == "30; forecast: 15; lm: 20"
    assert default_of("--num-layers") == "2; forecast, lm: 1"
    assert default_of("--epochs", "--task", "lm") == "20"
    assert default_of("--bidirectional", "--task", "lm") == "no-bidirectional"
    assert default_of("--label-smoothing", "--task", "classify", "--per-step") == "0.0"
    shown = json.loads(invoke("config", "airline", "--json").stdout)
    assert default_of("--hidden-size", "airline") == str(shown["model"]["hidden_size"])
    assert default_of("--target NAMES") == "(inferred)"


def test_defaults_of_tables_are_those_of_training_where_a_model_is_used():
    assert default_of("--missing") == "(error)"
    assert default_of("--missing", command="inspect") == "(error)"
    for command in ("predict", "evaluate"):
        assert default_of("--missing", command=command) == "(as in training, else error)"
        assert default_of("--id TEXT", command=command) == "(as in training)"


def test_flags_may_have_underscores_and_short_names(here):
    write_npz(here / "data.npz")
    words = [word.replace("-", "_") if word.startswith("--") else word for word in QUICK]
    words = [word.replace("__", "--", 1) for word in words]
    assert "--hidden_size" in words
    result = invoke("train", "data.npz", *words, "--head_dropout", 0, "-o", "run")
    assert result.exit_code == 0, result.output
    assert "hidden_size = 6\n" in Path("run/config.toml").read_text()
    result = invoke("predict", "run", "data.npz", "-o", "o.csv")
    assert result.exit_code == 0
    assert Path("o.csv").is_file()


def test_quiet_commands_print_errors_alone(here):
    write_npz(here / "data.npz")
    result = invoke_small("train", "data.npz", "-q", "-o", "run")
    assert (result.exit_code, result.output) == (0, "")
    result = invoke("predict", "run", "data.npz", "-o", "o.csv", "-q", "--json")
    assert (result.stderr, json.loads(result.stdout)["rows"]) == ("", 60)
    result = invoke("train", "none.npz", "--quiet")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: none.npz")


def test_a_shell_completes_the_names_of_bundled_data():
    context = click.Context(app)
    found = data_names(context, command_of("train").params[0], "sp")
    assert [(item.value, item.type) for item in found] == [
        ("spoken-digits", "plain"),
        ("sp", "file"),
    ]
