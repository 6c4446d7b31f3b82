import json
import re
import tomllib
from dataclasses import fields

import pytest
from cli_cases import QUICK, assert_refused, invoke, write_npz
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_compile import load_model
from lstm_compile.cli import train
from lstm_compile.config import is_known
from lstm_compile.errors import InputError
from lstm_compile.tasks import find_task, tasks_with
from lstm_compile.training.defaults import SECTIONS, resolve

DEFAULTS = {f.name: f.default for f in fields(SECTIONS["model"]) if "help" in f.metadata}
DATA = {  # what to take, and the task that it is
    "spoken-digits": None,
    "japanese-vowels": "classify",
    "airline": None,
    "absent.csv": "forecast",
    "absent.txt": "lm",
    "absent.npz": "tag",
    "a 'strange' [name] \\ \u00fc.parquet": "regress",
}
NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(
    lambda name: name.strip() == name and not name.startswith("-")
)
FLAGS = {
    "--hidden-size": st.integers(1, 500),
    "--num-layers": st.integers(1, 4),
    "--dropout": st.floats(0, 1),
    "--learning-rate": st.floats(1e-9, 1e3),
    "--weight-decay": st.floats(0, 3e38),
    "--epochs": st.integers(1, 10**9),
    "--seed": st.integers(0, (1 << 63) - 1),
    "--schedule": st.sampled_from(["cosine", "constant", "plateau"]),
    "--save-every": st.sampled_from(["100 steps", "2.5 minutes"]),
    "--init": NAMES,
    "--threads": st.integers(0, 9),
    "--no-bias": st.none(),
    "--detect-anomaly": st.none(),
}
OF_SERIES = {
    "--context": st.integers(1, 99),
    "--quantiles": st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4, unique=True).map(
        lambda found: ",".join(map(repr, sorted(found)))
    ),
    "--log1p": st.none(),
    "--calendar": st.sampled_from(["hour,month", "none", "auto"]),
    "--gaps": st.sampled_from(["linear", "indicate"]),
    "--test-share": st.floats(0, 1),
}
OF_TABLES = {
    "--id": NAMES,
    "--missing": st.sampled_from(["mean", "forward"]),
    "--target": st.lists(NAMES, min_size=1, max_size=3).map(
        lambda names: ",".join('"' + name.replace('"', '""') + '"' for name in names)
    ),
    "--time-crop": st.floats(0, 1),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def taken(*words):
    """The settings that `train` takes with these words, the defaults written out."""
    found = []

    def kept(*args, **given):
        found.append(resolve(*args, **given))
        raise InputError("enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "resolve", kept)
        assert invoke("train", *words).stderr == "Error: enough\n"
    return found[0]._replace(model={**DEFAULTS, **found[0].model})


@st.composite
def commands(draw):
    data = draw(st.sampled_from(list(DATA)))
    is_series = data == "airline" or DATA[data] == "forecast"
    known = {**FLAGS, **(OF_SERIES if is_series else {})}
    if not is_series and DATA[data] != "lm":
        known |= OF_TABLES
    names = draw(st.lists(st.sampled_from(sorted(known)), max_size=5, unique=True))
    words = [data, *(("--task", DATA[data]) if DATA[data] else ())]
    for name in names:
        value = draw(known[name])
        words += [name] if value is None else [name, value]
    return words


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(commands())
def test_what_is_printed_is_the_same_settings_given_back(tmp_path_factory, words):
    path = tmp_path_factory.getbasetemp() / "given_back.toml"
    result = invoke("config", *words)
    assert result.exit_code == 0, result.output
    path.write_text(result.stdout, "utf-8")
    again = invoke("config", "--config", path, "--json")
    assert json.loads(again.stdout) == json.loads(invoke("config", *words, "--json").stdout)
    assert taken("--config", path) == taken(*words)


@pytest.mark.parametrize("data", DATA)
def test_every_setting_of_the_task_is_printed_and_explained(folder, data):
    task = DATA[data]
    result = invoke("config", data, *(["--task", task] if task else []), "--test", "held out.csv")
    assert (result.exit_code, result.stderr) == (0, "")
    assert not list(folder.iterdir())
    document = tomllib.loads(result.stdout)
    assert (document["data"], document["test"]) == (data, "held out.csv")
    assert document.get("task") == (task or {"airline": "forecast"}.get(data))
    found = json.loads(invoke("config", data, *(["--task", task] if task else []), "--json").stdout)
    assert list(found) == ["task", "data", "test", *SECTIONS]
    possible = {found["task"]} if found["task"] else set(tasks_with(is_whole=True))
    lines = result.stdout.splitlines()
    for title, cls in SECTIONS.items():
        known = [
            f
            for f in fields(cls)
            if "help" in f.metadata and any(is_known(f, find_task(name)) for name in possible)
        ]
        assert list(found[title]) == [f.name for f in known]
        for field in known:
            value = found[title][field.name]
            assert document.get(title, {}).get(field.name) == value
            (place,) = [
                k for k, line in enumerate(lines) if re.match(rf"(# )?{field.name} =", line)
            ]
            assert lines[place - 1].startswith(f"# {field.metadata['help']}")


def test_the_settings_of_task_and_data_set_are_among_them():
    airline = tomllib.loads(invoke("config", "airline").stdout)
    assert (airline["model"]["season"], airline["training"]["epochs"]) == (12, 60)
    assert airline["model"]["num_layers"] == 1
    text = tomllib.loads(invoke("config", "some.txt", "--hidden-size", 9).stdout)
    assert (text["task"], text["training"]["unroll"], text["model"]["hidden_size"]) == ("lm", 64, 9)


def test_choices_and_what_stands_for_nothing_are_told():
    lines = invoke("config").stdout.splitlines()
    assert lines[0] == 'data = "spoken-digits"'
    assert "# The optimizer. One of: adamw, adam." in lines
    id_at = lines.index("# id =")
    assert lines[id_at - 1] == "# Column that names each row's sequence. Unset: inferred."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--context", 4], "context is for task forecast, the task is classify"),
        (["a.csv", "--task", "lm", "--id", "a"], "id is for task classify or regress or forecast"),
        (["a.txt", "--bidirectional"], "task lm needs --no-bidirectional"),
        (["--epochs", 0], "epochs must be"),
        (["--refit", "--validation", 0], "refit needs a validation part"),
        (["--task", "sing"], "Invalid value for '--task'"),
        (["--config", "absent.toml"], "Invalid value for '--config'"),
    ],
)
def test_what_train_would_refuse_is_refused(folder, words, message):
    assert_refused(invoke("config", *words), message, {}, folder)


def test_a_run_from_it_is_the_run_of_the_flags(folder):
    data = write_npz(folder / "data.npz")
    (folder / "kept.toml").write_text(invoke("config", data, *QUICK).stdout)
    for words in (["--config", "kept.toml", "--output", "kept"], [data, *QUICK, "--output", "run"]):
        result = invoke("train", *words)
        assert result.exit_code == 0, result.output
    assert (folder / "kept/config.toml").read_bytes() == (folder / "run/config.toml").read_bytes()
    ours, theirs = (load_model(folder / name).params for name in ("kept", "run"))
    assert all(theirs[name].equal(value) for name, value in ours.items())
