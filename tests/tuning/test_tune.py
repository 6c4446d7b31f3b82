import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from typing import get_type_hints

import numpy as np
import pytest
from cli_cases import invoke

from lstm_compile.config import ModelConfig
from lstm_compile.errors import InputError
from lstm_compile.tasks import TASKS, find_task
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.tuning import space as spaces
from lstm_compile.tuning.space import OneOf, Range, default_space, read_space, section_of

optuna = pytest.importorskip("optuna")
from lstm_compile.tuning.study import plan_of, tune  # noqa: E402

SMALL = """
hidden_size = { low = 2, high = 6 }
learning_rate = { low = 1e-3, high = 3e-2, log = true }
pooling = ["last", "mean", "attention"]
num_layers = [1, 2]
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, count=40, targets=0):
    random = np.random.default_rng(0)
    lengths = random.integers(1, 9, count)
    x = random.standard_normal((lengths.sum(), 2), dtype=np.float32)
    y = random.standard_normal((count, targets)) if targets else np.arange(count) % 2
    np.savez(folder / "data.npz", x=x, lengths=lengths, y=y)
    (folder / "space.toml").write_text(SMALL)
    return folder / "data.npz"


def quick(data, *more):
    return invoke("tune", data, "--space", "space.toml", "--epochs", 2, "--device", "cpu", *more)


# ---- the space


@pytest.mark.parametrize("task", TASKS)
def test_every_value_of_a_default_space_is_one_that_its_field_takes(task):
    for name, part in find_task(task).space.items():
        values = part.values if isinstance(part, OneOf) else (part.low, part.high)
        hint = get_type_hints(spaces.SECTIONS[section_of(name)])[name]
        assert not isinstance(part, Range) or part.whole == (hint is int)
        for value in values:
            if section_of(name) == "training":
                TrainingConfig(**{name: value}).check_task(task)
            else:
                sizes = {"vocabulary_size": 2, "bidirectional": False} if task == "lm" else {}
                outputs = 2 if task == "lm" else 1
                ModelConfig(task=task, input_size=1, output_size=outputs, **{**sizes, name: value})


def test_what_is_fixed_is_not_tried():
    assert "hidden_size" in default_space("classify", {})
    assert "hidden_size" not in default_space("classify", {"hidden_size": 8})


def test_a_space_is_read_from_toml(tmp_path):
    (tmp_path / "s.toml").write_text(SMALL + "quantiles = [[0.1, 0.5, 0.9], [0.5]]\n")
    assert read_space(tmp_path / "s.toml") == {
        "hidden_size": Range(2, 6, whole=True),
        "learning_rate": Range(1e-3, 3e-2, log=True),
        "pooling": OneOf(("last", "mean", "attention")),
        "num_layers": OneOf((1, 2)),
        "quantiles": OneOf(((0.1, 0.5, 0.9), (0.5,))),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no setting; add one, such as pooling"),
        ("x =", "not a readable TOML file"),
        ("hiden_size = [1]", "unknown setting 'hiden_size'; known are accumulate, backend, batch"),
        ("hidden_size = 3", "hidden_size must be a list of values or { low"),
        ("hidden_size = []", "hidden_size must be a list of values or { low"),
        ("hidden_size = { low = 1 }", "hidden_size must be a list of values or { low"),
        ("hidden_size = { low = 1, high = 2, step = 1 }", "must be a list of values or { low"),
        ("hidden_size = { low = 8, high = 8 }", "hidden_size needs low below high"),
        ("dropout = { low = 0.0, high = 0.5, log = true }", "dropout needs low above 0 and below"),
        ("hidden_size = { low = 0, high = 8 }", "hidden_size must be at least 1, got 0"),
        ("hidden_size = { low = 1.5, high = 8 }", "hidden_size must be of type int, got 1.5"),
        ("pooling = { low = 0, high = 1 }", "pooling takes a list of values"),
        ("pooling = ['best']", "pooling must be one of last, mean"),
        ("task = ['classify']", "unknown setting 'task'"),
    ],
)
def test_a_wrong_space_is_refused(tmp_path, text, message):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(InputError, match=rf"s\.toml: .*{re.escape(message)}"):
        read_space(tmp_path / "s.toml")


# ---- a study


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study of five trials, what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("studied")
    before = os.getcwd()
    os.chdir(folder)
    try:
        result = quick(write(folder), "--trials", 5, "--output", "study")
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.output
    return folder, result


def test_it_prints_each_trial_and_ends_with_the_next_command(studied):
    _, result = studied
    lines = result.stdout.splitlines()
    assert sum(line.startswith("trial ") for line in lines) == 5
    assert "  best" in result.stdout
    assert lines[-1].startswith("next        lstm-compile train ")
    assert lines[-1].endswith("data.npz --config study/best.toml")


def test_the_best_settings_train(studied):
    folder, _ = studied
    best = tomllib.loads((folder / "study/best.toml").read_text())
    assert 2 <= best["model"]["hidden_size"] <= 6
    assert best["training"]["epochs"] == 2
    result = invoke("train", "--config", folder / "study/best.toml", folder / "data.npz")
    assert result.exit_code == 0, result.output


def test_the_report_needs_nothing_beside_it(studied):
    folder, _ = studied
    text = (folder / "study/report.html").read_text()
    assert text.count("<svg") == 2
    assert "What mattered" in text
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)", text)
    addresses = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', text))
    assert not addresses
    rows = re.findall(r"<tr[^>]*><td>(\d+)</td><td>(\w+)</td>", text)
    assert sorted(number for number, _ in rows) == list("01234")  # the best comes first
    complete = re.findall(r"<tr[^>]*><td>\d+</td><td>complete</td><td>([^<]+)</td>", text)
    assert [*map(float, complete)] == sorted(map(float, complete))


def test_the_same_command_goes_on_and_another_is_refused(studied, monkeypatch):
    folder, _ = studied
    monkeypatch.chdir(folder)
    data = folder / "data.npz"
    result = quick(data, "--trials", 6, "--output", "study", "--json")
    found = json.loads(result.stdout)
    assert sum(found["trials"].get(state, 0) for state in ("complete", "pruned")) == 6
    assert set(found["importances"]) <= {"hidden_size", "learning_rate", "pooling", "num_layers"}
    again = json.loads(quick(data, "--trials", 6, "--output", "study", "--json").stdout)
    assert again == found
    other = quick(data, "--trials", 6, "--output", "study", "--batch-size", 8)
    assert other.exit_code == 2
    assert "study: holds a study of other data, settings or space; name another" in other.stderr


@pytest.mark.slow
def test_processes_of_one_study_draw_different_settings(tmp_path):
    data, space = write(tmp_path), {"hidden_size": Range(2, 60, whole=True)}
    plan = plan_of(str(data), space, training={"epochs": 1, "device": "cpu"})
    drawn = [
        tune(plan, tmp_path / "s", trials=count, seed=3).study.trials[-1].params for count in (1, 2)
    ]
    assert drawn[0] != drawn[1]


def test_metrics_of_which_more_is_better_are_maximized(tmp_path):
    data, space = write(tmp_path, targets=1), {"hidden_size": OneOf((2, 3))}
    plan = plan_of(str(data), space, training={"epochs": 1, "device": "cpu"}, metric="r2")
    assert plan.direction == "maximize"
    tuned = tune(plan, tmp_path / "s", trials=2, pruner="hyperband")
    values = [trial.value for trial in tuned.study.trials if trial.value is not None]
    assert tuned.best.value == max(values)
    assert plan_of(str(data), space).metric == find_task("regress").tuned[0] == "rmse"


def test_settings_that_the_data_cannot_have_are_pruned_with_the_reason(tmp_path):
    data = write(tmp_path)
    space = {"validation": OneOf((0.1, 0.0))}  # a study needs something to validate on
    plan = plan_of(str(data), space, training={"epochs": 1, "device": "cpu"})
    tuned = tune(plan, tmp_path / "s", trials=6)
    reasons = [trial.user_attrs.get("reason", "") for trial in tuned.study.trials]
    assert any(reasons)
    assert not all(reasons)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["absent.npz"], "absent.npz: cannot be read"),
        (["data.npz", "--metric", "rmse"], "metric must be one of loss, accuracy, macro_f1; got"),
        (["data.npz", "--hidden-size", "4"], "hidden_size cannot be both fixed and in the space"),
        (["data.npz", "--storage", "nodb://me:secret@x"], "nodb://...@x: no such database ("),
        (["data.npz", "--output", "data.npz/x"], "data.npz/x: cannot be made (Not a directory)"),
    ],
)
def test_wrong_input_is_refused_in_one_line(tmp_path, args, message):
    write(tmp_path)
    result = quick(*args)
    assert result.exit_code == 2, result.output
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert "secret" not in result.output


def test_what_to_install_is_said_first(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setattr("lstm_compile.tuning.study.find_spec", lambda name: None)
    result = quick("data.npz")
    assert result.exit_code == 2
    assert result.stderr == "Error: tune needs optuna; pip install 'lstm-compile[tune]'\n"


# ---- processes


def start(folder, *args):
    command = [sys.executable, "-m", "lstm_compile", "tune", "japanese-vowels", *args]
    return subprocess.Popen(
        [str(word) for word in command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def wait_for(line, process, count=1):
    for text in process.stdout:
        count -= text.startswith(line)
        if not count:
            return
    pytest.fail(f"the process ended without {line!r}: {process.stderr.read()}")


@pytest.mark.slow
def test_a_study_of_two_processes_survives_the_kill_of_one(tmp_path):
    for attempt in range(5):  # a kill between two trials fails none of them
        folder = tmp_path / str(attempt)
        folder.mkdir()
        trials, output = killed_study(folder)
        states = [trial.state.name for trial in trials]
        assert states.count("COMPLETE") + states.count("PRUNED") >= 20
        assert states.count("RUNNING") == 0
        assert (folder / "study/best.toml").is_file()
        assert "next        lstm-compile train japanese-vowels --config study/best.toml" in output
        if "FAIL" in states:
            break
    (killed,) = [trial for trial in trials if trial.state.name == "FAIL"]
    retried = [t for t in trials if t.params == killed.params and t.number != killed.number]
    assert [trial.state.name for trial in retried] != ["FAIL"]


def killed_study(folder):
    """A study of two processes, one killed, that a third ends: its trials; what the other said."""
    write(folder)
    args = ["--space", "space.toml", "--epochs", 3, "--device", "cpu", "--threads", 1]
    args += ["--trials", 20, "--heartbeat", 1, "--output", "study"]
    first, second = (start(folder, *args) for _ in range(2))
    wait_for("trial ", first, 3)
    time.sleep(0.2)  # into the fourth
    first.send_signal(signal.SIGKILL)
    output, errors = second.communicate(timeout=300)
    first.communicate()
    assert second.returncode == 0, errors
    time.sleep(3)  # without a sign of life for longer than two heartbeats
    _, errors = start(folder, *args).communicate(timeout=300)
    assert not errors
    storage = f"sqlite:///{folder}/study/study.db"
    return optuna.load_study(study_name="lstm-compile", storage=storage).trials, output


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_what_there_is(tmp_path, number, code):
    write(tmp_path)
    args = ["--space", "space.toml", "--epochs", 3, "--device", "cpu", "--output", "study"]
    process = start(tmp_path, *args, "--trials", 500)
    wait_for("trial ", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == code
    assert errors == "stopped\n"
    assert (tmp_path / "study/best.toml").is_file()
    assert (tmp_path / "study/report.html").is_file()
