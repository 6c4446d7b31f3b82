"""`runs`, and runs that are extended with `train --resume RUN --epochs N`."""

import json
import os
from pathlib import Path

import pytest
from cli_cases import QUICK, invoke, write_npz
from safetensors.torch import load_file

from lstm_compile.errors import RunError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Two runs on one file, of different quality and size, and one on another task."""
    folder = tmp_path_factory.mktemp("three")
    data, numbers = folder / "data.npz", folder / "numbers.npz"
    write_npz(data)
    write_npz(numbers, targets=1)
    for name, file, flags in (
        ("a", data, ["--learning-rate", 1e-6]),
        ("b", data, ["--hidden-size", 9]),
        ("c", numbers, []),
    ):
        result = invoke("train", file, *QUICK, *flags, "--output", folder / "runs" / name)
        assert result.exit_code == 0, result.output
    for index, name in enumerate("cab"):
        os.utime(folder / "runs" / name / "model.safetensors", (1e9 + index, 1e9 + index))
    return folder / "runs"


def listed(folder, *words):
    result = invoke("runs", folder, "--json", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["runs"]


def test_runs_are_listed_with_data_figure_size_and_changed_settings(three):
    newest, _, oldest = listed(three)
    assert [Path(run["run"]).name for run in (newest, oldest)] == ["b", "c"]
    assert newest["data"].endswith("data.npz")
    assert (newest["task"], newest["metric"], newest["part"]) == (
        "classify",
        "accuracy",
        "validation",
    )
    assert newest["bytes"] == (three / "b/model.safetensors").stat().st_size
    assert newest["date"].startswith("2001-09-09")
    assert newest["settings"] == {
        "hidden_size": 9, "num_layers": 1, "epochs": 2, "batch_size": 16, "learning_rate": 0.02,
        "device": "cpu",
    }  # fmt: skip
    assert (newest["stopped"], newest["problem"]) == ("epochs", "")
    assert oldest["task"] == "regress"


def test_runs_are_sorted(three):
    assert [Path(r["run"]).name for r in listed(three, "--sort", "size")][-1] == "b"
    assert [Path(r["run"]).name for r in listed(three, "--sort", "data")][-1] == "c"
    first, second, last = listed(three, "--sort", "metric")
    assert first["value"] >= second["value"]
    assert Path(last["run"]).name == "c"


def test_the_table_of_runs(three, monkeypatch):
    monkeypatch.chdir(three.parent)
    head, *lines = invoke("runs").stdout.splitlines()
    assert head.split() == ["run", "figure", "of", "part", "epoch", "size", "date"]
    assert lines[0].startswith("runs/b  accuracy ")
    assert "hidden_size 9" in lines[1]
    assert invoke("runs", "run").stderr.endswith("; did you mean 'runs'?\n")


def test_a_damaged_and_an_unfinished_run_are_told(here):
    for name, text in (("cut", "x"), ("begun", None)):
        (here / "runs" / name).mkdir(parents=True)
        (here / "runs" / name / "config.toml").write_text('data = "d.csv"\ntask = "classify"\n')
        if text:
            (here / "runs" / name / "model.safetensors").write_text(text)
    found = {Path(run["run"]).name: run for run in listed(here / "runs")}
    assert "not a readable safetensors file" in found["cut"]["problem"]
    assert found["begun"]["data"] == "d.csv"
    assert "not finished" in invoke("runs").stdout
    assert invoke("runs", here).exit_code == 2


# ---- more epochs for a finished run


def stripped(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def test_a_finished_run_goes_on_as_a_longer_one(here):
    data, flags = write_npz(here / "data.npz"), [*QUICK[2:], "--schedule", "constant"]
    flags += ["--warmup", 0]
    for name, epochs in (("short", 2), ("long", 4)):
        result = invoke("train", data, *flags, "--epochs", epochs, "-o", name)
        assert result.exit_code == 0, result.output
    result = invoke("train", "--resume", "short", "--epochs", 4)
    assert result.exit_code == 0, result.output
    resumed = "resumed     epoch 3, after 0 steps of it; at most 4 epochs in place of 2"
    assert resumed in result.stdout.splitlines()
    assert stripped(here / "short") == stripped(here / "long")
    models = [load_file(here / name / "model.safetensors") for name in ("short", "long")]
    assert all(models[0][name].equal(value) for name, value in models[1].items())
    assert "epochs = 4\n" in (here / "short/config.toml").read_text()
    again = invoke("train", "--resume", "short")
    assert again.stdout.startswith("finished    short: this run is finished")
    assert "give it more with --epochs" in again.stdout


def test_an_extension_that_is_killed_is_resumed(here, monkeypatch):
    data = write_npz(here / "data.npz")
    assert invoke("train", data, *QUICK, "-o", "run").exit_code == 0

    def kill(*_):
        raise RunError("killed")

    with monkeypatch.context() as patched:
        patched.setattr("lstm_compile.training.run._fit", kill)
        assert invoke("train", "--resume", "run", "--epochs", 3).exit_code == 1
    assert listed(here)[0]["stopped"] == ""
    result = invoke("train", "--resume", "run")
    assert result.exit_code == 0, result.output
    assert len(stripped(here / "run")) == 3


def test_an_extension_without_a_next_epoch_is_refused(here):
    data = write_npz(here / "data.npz")
    flags = ["--epochs", 5, "--patience", 1, "--learning-rate", 1e-30]
    assert invoke("train", data, *QUICK, *flags, "-o", "run").exit_code == 0
    before = (here / "run/model.safetensors").read_bytes()
    result = invoke("train", "--resume", "run", "--epochs", 9)
    assert result.exit_code == 2
    assert "run: no better validation loss for 1 epoch, and patience is 1; raise" in result.stderr
    assert (here / "run/model.safetensors").read_bytes() == before
    result = invoke("train", "--resume", "run", "--epochs", 9, "--patience", 3)
    assert result.exit_code == 0, result.output
    assert len(stripped(here / "run")) == 4
