import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from cli_cases import QUICK, assert_refused, invoke, snapshot, write_npz
from marks import slow
from safetensors.torch import load_file, save, save_file

from lstm_compile import load_model, save_model
from lstm_compile.cli.app import COMMANDS, app
from lstm_compile.errors import RunError

COLUMN = 12  # where the text of a `title  text` line begins


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory: `runs/` is relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_ts(path, count=40, labels=("a", "b")):
    generator = np.random.default_rng(1)
    lines = ["@dimensions 2", f"@classLabel true {' '.join(labels)}", "@data"]
    for index in range(count):
        steps = generator.standard_normal((2, generator.integers(1, 6)))
        series = ":".join(",".join(f"{value:.4f}" for value in row) for row in steps)
        lines.append(f"{series}:{labels[index % len(labels)]}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a file of two features and two classes, and what training it printed."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_npz(folder / "data.npz")
    result = invoke("train", data, "--output", folder / "run", *QUICK)
    assert result.exit_code == 0, result.output
    return data, folder / "run", result


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    _, run, _ = trained
    path = tmp_path_factory.mktemp("exported") / "some model.onnx"
    return path, invoke("export", run, "--onnx", "--output", path)


def titles(text):
    return [line[:COLUMN].strip() for line in text.splitlines() if not line.startswith("epoch ")]


# ---- the commands and their options

FILLED = ["--gaps", "--duplicates"]
WRITTEN = ["--decimal", "--encoding", "--time-zone", "--jitter"]
SERIES = [
    *("--known", "--static", "--calendar", *FILLED),
    *("--decimal", "--encoding", "--time-zone", "--step", "--jitter"),
]
TABLE = ["--id", "--time", "--target", "--features", "--text", "--missing"]
CATEGORIES = ["--categories", "--unknown"]
OPTIONS = {
    "bench": [
        *("--quick", "--backend", "--precision", "-q/--quiet", "--json"),
        *("--batch", "--time", "--input", "--hidden", "--layers"),
        *(
            "--bidirectional/--no-bidirectional",
            "--cell",
            "--lengths",
            "--mode",
            "--repeats",
            "--seconds",
        ),
        *("--memory/--no-memory", "--device", "--threads", "--seed", "--debug"),
    ],
    "doctor": ["--json", "--debug"],
    "evaluate": [
        *("model", "data", "--cell", "-q/--quiet", "--json", "--stride", "--plot"),
        *(*TABLE, *FILLED, *WRITTEN, "--debug"),
    ],
    "export": [
        *("run", "--onnx", "--profile", "--int8", "--data", "--streaming", "--cells"),
        *("-o/--output", "--cell", "-v/--verbose", "-q/--quiet", "--json", "--debug"),
    ],
    "generate": [
        *("model", "--prompt", "--length", "--temperature", "--top-k", "--top-p", "--seed"),
        *("--stop", "--cell", "--json", "--debug"),
    ],
    "inspect": [
        "source",
        "--json",
        "--task",
        "--per-step",
        "--id",
        "--time",
        "--target",
        "--features",
        *CATEGORIES,
        "--text",
        "--missing",
        *SERIES,
        "--debug",
    ],
    "runs": ["folder", "--sort", "--json", "--debug"],
    "predict": [
        "model",
        "data",
        "-o/--output",
        "--cell",
        "-q/--quiet",
        "--json",
        "--id",
        "--time",
        "--features",
        "--text",
        "--missing",
        *FILLED,
        *WRITTEN,
        "--debug",
    ],
    "train": [
        "data",
        "--task",
        "--per-step",
        "--test",
        "-o/--output",
        "--config",
        "--resume",
        "-q/--quiet",
        "--json",
        "--hidden-size",
        "--cell",
        "--num-layers",
        "--bidirectional/--no-bidirectional",
        "--bias/--no-bias",
        "--dropout",
        "--head-dropout",
        "--input-dropout",
        "--hidden-dropout",
        "--zoneout",
        "--weight-drop",
        "--pooling",
        "--scaling",
        "--target-scaling",
        "--context",
        "--horizon",
        "--decoder",
        "--quantiles",
        "--log1p/--no-log1p",
        "--season",
        "--linear/--no-linear",
        "--embedding-size",
        "--tie/--no-tie",
        "--transformer-layers",
        "--heads",
        "--epochs",
        "--batch-size",
        "--epoch-size",
        "--accumulate",
        "--learning-rate",
        "--optimizer",
        "--weight-decay",
        "--schedule",
        "--warmup",
        "--loss",
        "--label-smoothing",
        "--class-weight",
        "--clip-norm",
        "--ema",
        "--noise",
        "--time-crop",
        "--feature-dropout",
        "--init",
        "--freeze",
        "--refit/--no-refit",
        "--skip-nonfinite",
        "--detect-anomaly/--no-detect-anomaly",
        "--save-every",
        "--patience",
        "--validation",
        "--test-share",
        "--stream",
        "--stride",
        "--tokens",
        "--unroll",
        "--seed",
        "--device",
        "--precision",
        "--threads",
        "--backend",
        "--chunk",
        *TABLE[:4],
        *CATEGORIES,
        *TABLE[4:],
        *SERIES,
        "--debug",
    ],
    "verify": ["run", "--onnx", "--runtimes", "--cell", "-q/--quiet", "--json", "--debug"],
}
OPTIONS["config"] = [
    *("data", "--task", "--per-step", "--test", "--config", "--json"),
    *OPTIONS["train"][OPTIONS["train"].index("--hidden-size") :],
]
OPTIONS["tune"] = [
    *("data", "--task", "--per-step", "--test", "-o/--output", "--trials", "--space", "--metric"),
    *("--pruner", "--storage", "--heartbeat", "--config", "-q/--quiet", "--json"),
    *OPTIONS["train"][OPTIONS["train"].index("--hidden-size") :],
]


def command_of(name):
    command = app.get_command(click.Context(app), name)
    assert command is not None
    return command


def test_the_commands_are_those_of_the_frozen_table():
    assert sorted(COMMANDS) == sorted(OPTIONS) == app.list_commands(click.Context(app))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_are_those_of_the_frozen_table(name):
    found = ["/".join([*p.opts, *p.secondary_opts]) for p in command_of(name).params]
    assert found == OPTIONS[name]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_command_and_option_has_help(name):
    result = invoke(name, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == invoke(name, "-h").stdout
    assert command_of(name).help
    for parameter in command_of(name).params:
        assert isinstance(parameter, click.Argument) or parameter.help
        assert all(option in result.stdout for option in parameter.opts if option[0] == "-")


def test_the_help_of_the_program_names_every_command():
    result = invoke("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", result.stdout, re.MULTILINE)


def test_the_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"lstm-compile, version \d+\.\d+\.\d+\n", result.stdout)


def test_an_unknown_command_is_refused(here):
    assert_refused(invoke("trian"), "No such command 'trian'.", {}, here)


# ---- train


def test_what_train_prints_in_a_pipe(trained):
    _, run, result = trained
    lines = result.stdout.splitlines()
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert titles(result.stdout) == [
        *("data", "parts", "run", "stopped", "backend", "model", "report", "validation"),
        *("baseline", "baseline", "baseline", "verdict", "next"),
    ]
    assert lines[0].endswith("data.npz: 2 features, 2 classes")
    assert lines[1:3] == [
        "parts       54 sequences to train, 6 to validate",
        f"run         {run}",
    ]
    epoch = r"train loss [\d.]+, validation loss [\d.]+, accuracy [\d.]+ %, macro_f1 [\d.]+ %"
    for number, line in enumerate(lines[3:5], 1):
        assert re.fullmatch(rf"epoch {number}: {epoch}, [\d.]+ s(  best)?", line)
    assert lines[5] == "stopped     all epochs done"
    model = rf"model       {re.escape(str(run))}/model\.safetensors \(\d+ kB, [\d.]+ s\)"
    why = r"the LSTM takes \d+ s at most, too little for compiling to pay"
    assert re.fullmatch(rf"backend     vendor, {why}", lines[6])
    assert re.fullmatch(model, lines[7])
    assert lines[8] == f"report      {run}/report.html"
    assert re.fullmatch(r"validation  accuracy .*, macro_f1 .*, loss .* \(6 sequences\)", lines[9])
    assert lines[10].startswith("baseline    majority class: accuracy 50.00 %, macro_f1 33.33 %")
    assert lines[-1] == f"next        lstm-compile export {run} --onnx"


def test_train_prints_a_table_on_a_terminal(here):
    data = write_npz(here / "data.npz")
    result = invoke("train", data, *QUICK, env={"FORCE_COLOR": "1", "COLUMNS": "200"})
    assert result.exit_code == 0
    plain = re.sub(r"\x1b\[[\d;]*m", "", result.stdout)
    table = [line.split() for line in plain.splitlines()[3:6]]
    head = "epoch train loss val. loss accuracy macro_f1 rate s best"
    assert " ".join(table[0]) == head
    assert [row[0] for row in table[1:]] == ["1/2", "2/2"]
    assert table[1][-1] == "✓"


def test_train_prints_one_json_object(here):
    data, test = write_npz(here / "data.npz"), write_npz(here / "test.npz", seed=1)
    result = invoke("train", data, "--test", test, "--json", *QUICK)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert list(found) == [
        *("run", "seconds", "compile_seconds", "backend", "epochs", "stopped", "tested_on"),
        *("task", "rows", "metrics", "baselines", "verdict", "interval"),
    ]
    assert (found["run"], found["epochs"], found["stopped"]) == ("runs/data-1", 2, "epochs")
    assert (found["tested_on"], found["task"], found["rows"]) == ("test", "classify", 60)
    assert set(found["metrics"]) == {"accuracy", "macro_f1", "loss"}
    assert titles(result.stderr)[-1] == "next"
    assert "epoch 2: " in result.stderr


def test_train_stops_when_patience_is_used_up(here):
    data = write_npz(here / "data.npz")
    result = invoke("train", data, *QUICK, "--epochs", 9, "--learning-rate", 1e-30, "--patience", 3)
    assert result.exit_code == 0
    assert result.stdout.count("epoch ") == 4
    assert "stopped     no better validation loss for 3 epochs\n" in result.stdout


def test_train_on_a_text_file_and_on_targets(here):
    result = invoke("train", write_ts(here / "some.name.ts"), *QUICK, "--output", "deep/a")
    assert result.exit_code == 0
    assert load_model("deep/a").schema.classes == ("a", "b")
    numbers = write_npz(here / "numbers.npz", targets=2)
    result = invoke("train", numbers, *QUICK, "--output", "b", "--no-bias", "--loss", "huber")
    assert result.exit_code == 0
    assert "2 features, targets target_0, target_1" in result.stdout
    assert re.search(r"^validation  mae .*, rmse .*, r2 .* \(6 seq", result.stdout, re.MULTILINE)
    assert load_model("b").config.bias is False


def test_runs_are_numbered_and_the_newest_is_the_default(here):
    data = write_npz(here / "data.npz")
    for number, seed in ((1, 4), (2, 5)):
        result = invoke("train", data, *QUICK, "--seed", seed)
        assert f"run         runs/data-{number}\n" in result.stdout
    for name, seed in (("data-2", 5), ("data-1", 4)):
        os.utime(f"runs/{name}/model.safetensors")
        assert load_model(f"runs/{name}").training["seed"] == seed
        moved = Path("runs") / name
        result = invoke("evaluate", moved, data)
        newest = invoke("verify")  # no ONNX file yet, so it names the one it looked for
        assert newest.exit_code == 2
        assert str(moved / "model.onnx") in newest.stderr
        assert result.exit_code == 0


def test_a_path_that_a_shell_would_cut_is_quoted_in_the_next_command(here):
    result = invoke("train", write_npz(here / "data.npz"), *QUICK, "--output", "my run :cat:")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "next        lstm-compile export 'my run :cat:' --onnx"
    assert "run         my run :cat:\n" in result.stdout


# ---- --config


def test_the_config_of_a_run_trains_the_same_model_bit_for_bit(trained):
    _, run, _ = trained
    result = invoke("train", "--config", run / "config.toml", "--output", "again")
    assert result.exit_code == 0
    first, second = load_file(run / "model.safetensors"), load_file("again/model.safetensors")
    assert all(second[name].equal(value) for name, value in first.items())
    assert (run / "config.toml").read_bytes() == Path("again/config.toml").read_bytes()


def test_the_config_of_a_run_with_a_test_file_repeats_its_figures(here):
    data, test = write_npz(here / "data.npz"), write_npz(here / "test.npz", seed=1)
    first = invoke("train", data, "--test", test, "--json", *QUICK)
    again = invoke("train", "--config", "runs/data-1/config.toml", "--json")
    ours, theirs = (json.loads(result.stdout) for result in (first, again))
    assert theirs["run"] == "runs/data-2"
    for name in ("tested_on", "rows", "metrics", "baselines", "verdict", "interval"):
        assert theirs[name] == ours[name]


def test_flags_win_over_the_config_file_over_the_defaults(here):
    data = write_npz(here / "data.npz")
    text = "[model]\nhidden_size = 5\nbias = false\nnum_layers = 1\n[training]\nepochs = 1\n"
    Path("some.toml").write_text(f'data = "absent.npz"\n{text}')
    result = invoke("train", data, "--hidden-size", 4, "--config", "some.toml", "--output", "run")
    assert result.exit_code == 0
    config = load_model("run").config
    assert (config.hidden_size, config.bias, config.bidirectional) == (4, False, True)
    assert tomllib.loads(Path("run/config.toml").read_text())["training"]["epochs"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hidden_size = 3",
            "unknown key 'hidden_size'; known are data, test, task, [model], [training]",
        ),
        (
            "[modle]\nhidden_size = 3",
            "unknown key 'modle'; known are data, test, task, [model], [training], [table]",
        ),
        ("[model]\nhiden_size = 3", "unknown keys ['hiden_size'] in [model]; known are ['hidden"),
        ("[model]\nepochs = 3", "unknown keys ['epochs'] in [model]; known are ['hidden_size', "),
        ('[model]\ntask = "regress"', "unknown keys ['task'] in [model]; known are ['hidden_size"),
        ("[model]\nhidden_size = 3.7", "[model] hidden_size must be of type int, got 3.7"),
        ("[model]\nhidden_size = 0", "[model] hidden_size must be at least 1, got 0"),
        ("[model]\ndropout = true", "[model] dropout must be of type float, got True"),
        ('[model]\nbias = "no"', "[model] bias must be of type bool, got 'no'"),
        ('[model]\npooling = "lats"', "[model] pooling must be one of last, mean, max, attention"),
        ("[training]\nepochs = [1]", "[training] epochs must be of type int, got [1]"),
        ("[training]\nlearning_rate = inf", "[training] learning_rate must be at most 3.4e+38, "),
        ("[training]\nseed = -1", "[training] seed must be at least 0, got -1"),
        ("data = 3", "data must be a name or a path, got 3"),
        ("test = true", "test must be a name or a path, got True"),
        (
            "model = 3",
            "unknown key 'model'; known are data, test, task, [model], [training], [table]",
        ),
        ("not toml", "not a readable TOML file (Expected '=' after a key"),
        ("a = 1\na = 2", "not a readable TOML file (Cannot overwrite a value"),
        (b"\xff\xfe", "not a readable TOML file ("),
    ],
)
def test_a_wrong_config_file_is_refused(here, text, message):
    data, path = write_npz(here / "data.npz"), here / "some.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = snapshot(here)
    result = invoke("train", data, *QUICK, "--config", path, "--output", "run")
    assert_refused(result, f"Invalid value for '--config': {path}: {message}", before, here)


# ---- evaluate


def test_evaluate_gives_the_figures_of_training(trained):
    data, run, _ = trained
    result = invoke("evaluate", run, data)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert titles(result.stdout) == [
        *("model", "result", "baseline", "baseline", "baseline", "verdict", "next")
    ]
    assert lines[0] == f"model       {run}"
    assert re.fullmatch(r"result      accuracy .* %, macro_f1 .*, loss .* \(60 seq.*\)", lines[1])
    assert lines[-1] == f"next        lstm-compile export {run} --onnx"
    file = invoke("evaluate", run / "model.safetensors", data)
    assert file.stdout.splitlines()[1:-1] == lines[1:-1]


def test_evaluate_prints_one_json_object(trained):
    data, run, _ = trained
    result = invoke("evaluate", run, data, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert list(found) == ["task", "rows", "metrics", "baselines", "verdict", "interval"]
    assert (found["task"], found["rows"]) == ("classify", 60)
    assert set(found["baselines"]) == {
        "majority class",
        "logistic regression on summaries",
        "logistic regression on 24 frames",
    }


def test_evaluate_goes_without_the_baselines_file(trained, here):
    data, run, _ = trained
    (here / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    result = invoke("evaluate", here, data, "--json")
    found = json.loads(result.stdout)
    assert (found["baselines"], found["verdict"]) == ({}, "no baseline to compare with")


def test_a_bundled_data_set_from_end_to_end(here):
    result = invoke("train", "japanese-vowels", *QUICK, "--json")
    assert result.exit_code == 0
    ours = json.loads(result.stdout)
    assert (ours["run"], ours["tested_on"], ours["rows"]) == ("runs/japanese-vowels-1", "test", 370)
    assert "to train, 27 to validate, 370 to test\n" in result.stderr
    result = invoke("evaluate", "--json")  # the newest run, on the test part of its data set
    again = json.loads(result.stdout)
    assert again == {name: ours[name] for name in again}
    assert invoke("evaluate", "runs/japanese-vowels-1", "japanese-vowels", "--json").stdout == (
        result.stdout
    )


# ---- export, verify, evaluate of an ONNX file


@pytest.mark.slow
def test_what_export_prints(exported, trained):
    path, result = exported
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    checks = [line for line in lines if line.startswith("[")]
    assert all(line.startswith("[✓] ") for line in checks)
    assert any("onnxruntime" in line for line in checks)
    others = [title for title in titles("\n".join(lines[len(checks) :])) if title != "known"]
    assert others == ["wrote", "beside it", "next"]
    assert re.fullmatch(rf"wrote       {re.escape(str(path))} \(\d+ kB, [\d.]+ s\)", lines[-3])
    assert lines[-1] == f"next        lstm-compile evaluate '{path}'"
    assert {file.name for file in path.parent.iterdir()} == {
        path.name,
        "parity.json",
        "selftest.json",
    }


@pytest.mark.slow
def test_export_prints_one_json_object(trained, here):
    _, run, _ = trained
    (here / "runs/one").mkdir(parents=True)
    (here / "runs/one/model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    result = invoke("export", "--onnx", "--json")  # the newest run, beside its model
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)["path"] == "runs/one/model.onnx"
    assert Path("runs/one/model.onnx").exists()
    assert "next        lstm-compile verify runs/one --onnx runs/one/model.onnx\n" in (
        invoke("evaluate", "runs/one/model.onnx", trained[0]).stdout
    )


@pytest.mark.slow
def test_an_exported_file_evaluates_as_its_run(exported, trained):
    data, run, _ = trained
    path, _ = exported
    ours = json.loads(invoke("evaluate", run, data, "--json").stdout)
    result = invoke("evaluate", path, data, "--json")
    theirs = json.loads(result.stdout)
    assert theirs["metrics"] == pytest.approx(ours["metrics"], abs=1e-5)
    assert (theirs["rows"], theirs["baselines"]) == (60, {})
    lines = invoke("evaluate", path, data).stdout.splitlines()
    assert lines[-1] == f"next        lstm-compile inspect '{path}'"


@pytest.mark.slow
def test_verify_and_the_newest_run(exported, trained, here):
    _, run, _ = trained
    path, _ = exported
    (here / "runs" / "one").mkdir(parents=True)
    (here / "runs/one/model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    (here / "runs/one/model.onnx").write_bytes(path.read_bytes())
    before = snapshot(here)
    result = invoke("verify", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert found["path"] == "runs/one/model.onnx"
    assert snapshot(here) == before
    other = load_file(run / "model.safetensors")
    other["head.bias"][0] += 0.5
    changed = load_model(run)._replace(params=other)
    save_model(here / "runs/one/model.safetensors", *changed)
    result = invoke("verify", "runs/one", "--onnx", path)
    assert result.exit_code == 1
    assert f"Error: {path}: does not agree with runs/one/model.safetensors; export it again\n" in (
        result.stderr
    )
    assert "[x] " in result.stdout


# ---- what is refused


def files(folder):
    """Good and bad files, by name."""
    write_npz(folder / "data.npz")
    write_npz(folder / "three.npz", features=3)
    write_npz(folder / "unknown.npz", labels=("no", "yse"))
    write_npz(folder / "numbers.npz", targets=1)
    write_npz(folder / "single.npz", count=1)
    write_npz(folder / "different.npz", count=3, labels=("a", "b", "c"))
    (folder / "empty.npz").touch()
    (folder / "garbage.npz").write_bytes(b"garbage")
    (folder / "cut.npz").write_bytes((folder / "data.npz").read_bytes()[:300])
    (folder / "data.csv").write_text("1,2\n")
    (folder / "bad.ts").write_text("@classLabel true a\n@data\n1,?:a\n")
    (folder / "file").write_text("kept")
    (folder / "nothing").mkdir()
    (folder / "garbage.onnx").write_bytes(b"garbage")
    (folder / "empty.onnx").touch()
    save_file({"w": torch.ones(2)}, folder / "foreign.safetensors")


TRAIN_REFUSES = [
    (["absent.npz"], "absent.npz: cannot be read (No such file or directory)"),
    (["empty.npz"], "empty.npz: the file is empty"),
    (["garbage.npz"], "garbage.npz: not a complete .npz (zip) file; write it again with np.savez"),
    (["cut.npz"], "cut.npz: not a complete .npz (zip) file"),
    (["bad.ts"], "bad.ts, line 3, dimension 1, step 2: missing value '?'; fill the gap or drop"),
    (["data.csv"], "data.csv: no row below the header; expected at least one"),
    (["data.txt"], "data.txt: no such text file; name a text file, a folder of them or a glob"),
    (["file"], "file: expected a file that ends in .npz, .ts, .csv, .parquet, .arrow, .feather, "),
    (["nothing"], "nothing: no file here; expected files that end in .csv, .parquet, .arrow, "),
    (
        ["spoken-digit"],
        "spoken-digit: neither a file nor a bundled data set (spoken-digits, japanese-vowels, air",
    ),
    (["data.npz", "--hiden-size", "3"], "No such option '--hiden-size'. (Did you mean one of: "),
    (["data.npz", "--hidden-size", "x"], "Invalid value for '--hidden-size': 'x' is not a valid "),
    (["data.npz", "--hidden-size", "0"], "hidden_size must be at least 1, got 0"),
    (["data.npz", "--hidden-size", "99999"], "hidden_size must be at most 65536, got 99999"),
    (["data.npz", "--dropout", "nan"], "dropout must be at least 0.0, got nan"),
    (["data.npz", "--learning-rate", "inf"], "learning_rate must be at most 3.4e+38, got inf"),
    (["data.npz", "--pooling", "lats"], "Invalid value for '--pooling': 'lats' is not one of 'la"),
    (["data.npz", "--epochs", "0"], "epochs must be at least 1, got 0"),
    (["data.npz", "--seed", str(1 << 70)], "seed must be at most 9223372036854775807, got "),
    (["data.npz", "--validation", "0"], "data.npz: nothing is held out to measure on; t"),
    (["single.npz"], "single.npz: a validation split needs at least 2 sequences, found 1"),
    (["different.npz"], "different.npz: a validation split needs a class with at least 2 sequence"),
    (["data.npz", "--device", "tpu"], "device must be cpu, cuda, cuda:N or auto; got 'tpu'"),
    (["data.npz", "--device", "cuda:99"], "device cuda:99 is not here: torch sees "),
    (
        ["data.npz", "--loss", "mse"],
        "loss must be one of auto, cross-entropy for task classify; got 'mse'",
    ),
    (["data.npz", "extra.npz"], "Got unexpected extra argument (extra.npz)"),
    (["data.npz", "--config", "absent.toml"], "File 'absent.toml' does not exist."),
    (
        ["data.npz", "--test", "three.npz"],
        "three.npz: 3 features, but the model was trained on 2: ",
    ),
    (["data.npz", "--test", "unknown.npz"], "unknown.npz, sequence 1: unknown class 'yse'; known "),
    (["data.npz", "--test", "numbers.npz"], "numbers.npz: holds number targets, but the model was"),
    (
        ["data.npz", "--test", "absent.npz"],
        "absent.npz: cannot be read (No such file or directory)",
    ),
    (["data.npz", "--output", "file"], "file: cannot be made (File exists); name another --output"),
    (["data.npz", "--output", "file/run"], "file/run: cannot be made (Not a directory); name anot"),
]


@pytest.mark.parametrize(("args", "message"), TRAIN_REFUSES)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_train_refuses_and_writes_nothing(here, args, message, more):
    files(here)
    before = snapshot(here)
    assert_refused(invoke("train", *args, *more), message, before, here)


def test_train_never_writes_into_a_folder_that_holds_a_run(trained, here):
    data, run, _ = trained
    before = snapshot(run)
    result = invoke("train", data, *QUICK, "--output", run)
    message = f"Error: {run}: holds a run already; name another --output or remove it"
    assert_refused(result, message, before, run)


EVALUATE_REFUSES = [
    (
        ["RUN", "three.npz"],
        "three.npz: 3 features, but the model was trained on 2: feature_0, feat",
    ),
    (
        ["RUN", "unknown.npz"],
        "unknown.npz, sequence 1: unknown class 'yse'; known are no, yes; did you mean 'yes'?",
    ),
    (["RUN", "numbers.npz"], "numbers.npz: holds number targets, but the model was trained on cla"),
    (["RUN", "empty.npz"], "empty.npz: the file is empty"),
    (["RUN", "absent.npz"], "absent.npz: cannot be read (No such file or directory)"),
    (["RUN", "japanese-vowel"], "did you mean 'japanese-vowels'?"),
    (["RUN", "japanese-vowels"], "12 features, but the model was trained on 2: feature_0, featur"),
    (["RUN"], "which has no test part of its own; name the data: lstm-compile evaluate "),
    (["RUN", "data.npz", "--jsno"], "No such option '--jsno'. Did you mean '--json'?"),
    (["absent"], "absent: no such file or run folder; make one with `lstm-compile train`"),
    (["nothing"], "nothing: no model.safetensors in this folder; name a run folder, or make one"),
    (["file"], "file: not a readable safetensors file ("),
    (["cut.safetensors"], "cut.safetensors: not a readable safetensors file ("),
    (["foreign.safetensors"], "foreign.safetensors: a safetensors file, but not one of this pack"),
    (["absent.onnx"], "absent.onnx: no such file; make one with `lstm-compile export --onnx`"),
    (["garbage.onnx", "data.npz"], "garbage.onnx: not a readable ONNX file ("),
    (["empty.onnx", "data.npz"], "empty.onnx: not a readable ONNX file ("),
    ([], "train one with `lstm-compile train`, or name a folder"),
]


@pytest.mark.parametrize(("args", "message"), EVALUATE_REFUSES)
def test_evaluate_refuses_and_writes_nothing(trained, here, args, message):
    _, run, _ = trained
    files(here)
    (here / "cut.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:500])
    before = snapshot(here)
    result = invoke("evaluate", *(run if arg == "RUN" else arg for arg in args))
    assert_refused(result, message, before, here)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "baselines.safetensors: not a readable safetensors file ("),
        (b"", "baselines.safetensors: not a readable safetensors file ("),
        (save({"baseline.median.bias": torch.ones(2)}), "unknown baseline 'median'; known are maj"),
        (
            save(
                {
                    "baseline.majority class.weight": torch.zeros(0, 3).double(),
                    "baseline.majority class.bias": torch.zeros(3).double(),
                }
            ),
            "baseline 'majority class' maps 0 columns to 3 outputs, but the data has 0 and 2",
        ),
    ],
)
def test_damaged_baselines_are_refused(trained, here, content, message):
    data, run, _ = trained
    (here / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    (here / "baselines.safetensors").write_bytes(content)
    before = snapshot(here)
    assert_refused(invoke("evaluate", here, data), message, before, here)


EXPORT_REFUSES = [
    (["export"], "train one with `lstm-compile train`, or name a folder"),
    (["export", "--onnx"], "train one with `lstm-compile train`, or name a folder"),
    (["export", "nothing", "--onnx"], "nothing: no model.safetensors in this folder; name a run"),
    (["export", "absent", "--onnx"], "absent: no such file or run folder; make one with"),
    (["export", "cut.safetensors", "--onnx"], "cut.safetensors: not a readable safetensors file"),
    (["export", "RUN", "--onxn"], "No such option '--onxn'. (Did you mean one of: "),
    (["export", "RUN", "--onnx", "--output", "absent/m.onnx"], "absent"),
    (["verify"], "train one with `lstm-compile train`, or name a folder"),
    (["verify", "absent"], "absent: no such file or run folder; make one with `lstm-compile tra"),
    (["verify", "RUN"], "model.onnx: cannot be read (No such file or directory); export it first"),
    (["verify", "RUN", "--onnx", "garbage.onnx"], "garbage.onnx: "),
]


@pytest.mark.parametrize(("args", "message"), EXPORT_REFUSES)
def test_export_and_verify_refuse_and_write_nothing(trained, here, args, message):
    _, run, _ = trained
    files(here)
    (here / "cut.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:500])
    before = snapshot(here), snapshot(run)
    result = invoke(*(run if arg == "RUN" else arg for arg in args))
    assert_refused(result, message, before[0], here)
    assert snapshot(run) == before[1]


# ---- errors at the edge


def test_failed_work_exits_with_1_and_keeps_the_best_weights(here, monkeypatch):
    def fail(*_):
        raise RunError("the loss of epoch 2 is nan; lower --learning-rate")

    monkeypatch.setattr("lstm_compile.training.run.run", fail)
    result = invoke("train", write_npz(here / "data.npz"), *QUICK)
    assert result.exit_code == 1
    assert result.stderr == "Error: the loss of epoch 2 is nan; lower --learning-rate\n"


def test_a_bug_is_one_line_too(here, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr("lstm_compile.training.run.run", fail)
    data = write_npz(here / "data.npz")
    result = invoke("train", data, *QUICK, "--output", "a")
    assert result.exit_code == 1
    assert result.stderr == "Error: ZeroDivisionError: first line (a bug; --debug shows where)\n"
    result = invoke("train", data, *QUICK, "--output", "b", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


@pytest.mark.slow
def test_debug_shows_the_traceback_of_an_input_error():
    done = launch("train", "absent.npz", "--debug")
    _, stderr = done.communicate()
    assert done.returncode == 2
    assert stderr.startswith("Traceback (most recent call last):")
    assert stderr.splitlines()[-1] == (
        "Error: absent.npz: cannot be read (No such file or directory)"
    )


# ---- signals


def launch(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "lstm_compile", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def stop_after(process, start, number):
    """Send the signal once a line begins with `start`; all lines of standard output."""
    lines = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith(start):
                process.send_signal(number)
                break
        rest, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    return [*lines, *rest.splitlines(keepends=True)], stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_with_the_best_weights(here, number, code):
    data = write_npz(here / "data.npz")
    endless = ["--epochs", 10**6, "--patience", 10**6, "--output", "run", "--json"]
    process = launch("train", data, *QUICK, *endless[:-1])
    lines, stderr = stop_after(process, "epoch 1:", number)
    assert process.returncode == code
    assert "Traceback" not in stderr
    assert "stopped     stopped by a signal; the best weights so far are kept\n" in lines
    assert lines[-1] == "next        lstm-compile export run --onnx\n"
    assert "resume      lstm-compile train --resume run\n" in lines
    model = load_model("run")
    assert model.training["stopped"] == "interrupt"
    assert model.training["epochs"] >= 1
    assert invoke("evaluate", "run", data).exit_code == 0
    process = launch("train", "--resume", "run")
    lines, stderr = stop_after(process, "epoch ", number)
    assert (process.returncode, stderr) == (code, "")
    assert titles("".join(lines))[:4] == ["data", "parts", "run", "resumed"]
    assert load_model("run").training["epochs"] >= model.training["epochs"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--resume", "RUN", "--batch-size", 9], "settings of the run; leave --batch-size out"),
        (["--resume", "RUN", "--epochs", 2], "run: has 2 epochs already; give --epochs a larger"),
        (["other.npz", "--resume", "RUN"], "settings of the run; leave DATA out"),
        (["--resume", "absent"], "absent: no config.toml there: no run that can be resumed"),
        (["--resume", "torn"], "torn/config.toml: not a readable TOML file"),
    ],
)
def test_what_cannot_be_resumed_is_refused(trained, here, args, message):
    _, run, _ = trained
    (here / "torn").mkdir()
    (here / "torn" / "config.toml").write_text("[model")
    before = snapshot(here), snapshot(run)
    result = invoke("train", *(run if arg == "RUN" else arg for arg in args))
    assert_refused(result, message, before[0], here)
    assert snapshot(run) == before[1]


def test_resuming_a_finished_run_says_so_and_changes_nothing(trained):
    _, run, _ = trained
    before = snapshot(run)
    result = invoke("train", "--resume", run)
    assert (result.exit_code, result.stderr) == (0, "")
    assert titles(result.stdout) == ["finished"]
    assert "this run is finished (best epoch " in result.stdout
    result = invoke("train", "--resume", run, "--json")
    assert (result.exit_code, json.loads(result.stdout)["stopped"]) == (0, "epochs")
    assert snapshot(run) == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_process_at_once(here, monkeypatch, number, code):
    program = """
import os, signal, sys, time
import lstm_compile.training.prepare
def stubborn(*args, **options):
    try:
        os.kill(os.getpid(), number)
        time.sleep(30)
    finally:
        os.kill(os.getpid(), number)
        time.sleep(30)
lstm_compile.training.prepare.prepare = stubborn
number, sys.argv = int(sys.argv[1]), ["lstm-compile", "train", "data.npz"]
from lstm_compile.cli import main
main()
"""
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program, str(int(number))], timeout=60)
    assert done.returncode == code
    assert time.monotonic() - begun < 30


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_epoch_leaves_no_model(here, number, code):
    lengths = np.full(200, 400)
    x = np.random.default_rng(0).standard_normal((lengths.sum(), 1), dtype=np.float32)
    np.savez(here / "long.npz", x=x, lengths=lengths, y=np.arange(200) % 2)
    slow = ["--batch-size", 1, "--backend", "reference", "--output", "run"]
    process = launch("train", "long.npz", *slow)
    lines, stderr = stop_after(process, "run ", number)
    assert process.returncode == code
    assert stderr == "stopped\n"
    way_on = ["resume"] if Path("run/config.toml").exists() else []
    assert titles("".join(lines)) == ["data", "target", "parts", "run", *way_on]
    assert not Path("run/model.safetensors").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_prints_its_json_object(here, monkeypatch, number, code):
    def stop(epoch):
        os.kill(os.getpid(), number)
        return "epoch"

    monkeypatch.setattr("lstm_compile.cli.epochs.plain", stop)
    result = invoke("train", write_npz(here / "data.npz"), *QUICK, "--epochs", 9, "--json")
    assert result.exit_code == code
    found = json.loads(result.stdout)
    assert (found["stopped"], found["epochs"]) == ("interrupt", 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_data_are_read_is_no_traceback(here, monkeypatch, number, code):
    def stop(*args, **options):
        os.kill(os.getpid(), number)

    monkeypatch.setattr("lstm_compile.training.prepare.prepare", stop)
    result = invoke("train", write_npz(here / "data.npz"), *QUICK)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "stopped\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("modules", [120, 300, slow(450), slow(600), slow(900), slow(1200)])
def test_a_signal_while_modules_are_imported_is_no_traceback(modules, number, code):
    """An exception within the import of a module in C became an ImportError, "a bug"."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "lstm_compile", "evaluate", "absent", "data"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(modules)]  # one a module
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    lines += stderr.splitlines(keepends=True)
    assert process.returncode == code
    assert stdout == ""
    assert {line for line in lines if not line.startswith("import time:")} <= {"stopped\n"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_every_command_in_order(here, monkeypatch, number, code):
    def stop(*args, **options):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:  # as some libraries do
            raise RuntimeError from error

    monkeypatch.setattr("lstm_compile.export.use.evaluate_file.evaluate_file", stop)
    result = invoke("evaluate", "run", "data.npz")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", "stopped\n")


def test_the_handler_of_sigterm_is_given_back(here):
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("train", write_npz(here / "data.npz"), *QUICK).exit_code == 0
    assert signal.getsignal(signal.SIGTERM) is before
