"""What commands say of small mistakes, and what they suggest."""

import csv

import numpy as np
import pytest
from cli_cases import invoke, invoke_small, write_npz

import lstm_compile


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_machines(path, label=lambda sequence, step: "good" if sequence % 2 else "bad"):
    generator = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["machine", "t", "a", "b", "state"])
        for sequence in range(40):
            for step in range(6):
                a, b = generator.standard_normal(2).round(3)
                rows.writerow([f"m{sequence}", step, a, b, label(sequence, step)])
    return path


def test_the_version_is_that_of_the_command_line():
    assert invoke("--version").stdout == f"lstm-compile, version {lstm_compile.__version__}\n"
    assert lstm_compile.__version__.count(".") == 2


@pytest.mark.parametrize("command", [["predict", "--output", "o.csv"], ["evaluate"]])
def test_data_in_the_place_of_the_model_are_told(here, command):
    write_machines(here / "machines.csv")
    result = invoke(*command, "machines.csv", "run")
    assert result.exit_code == 2
    assert "machines.csv: is data, and a model comes first; name a run folder" in result.stderr


@pytest.mark.parametrize("name", ["machine.csv", "Machines.csv", "machnies.csv"])
def test_a_misspelt_file_is_suggested(here, name):
    write_machines(here / "machines.csv")
    result = invoke("train", name)
    assert result.exit_code == 2
    assert result.stderr.endswith("; did you mean 'machines.csv'?\n")


def test_a_misspelt_run_is_suggested(here):
    (here / "runs/airline-1").mkdir(parents=True)
    result = invoke("export", "runs/airlin-1", "--onnx")
    assert result.stderr.endswith("; did you mean 'runs/airline-1'?\n")


def test_a_learning_rate_of_zero_is_refused(here):
    result = invoke_small("train", write_npz(here / "data.npz"), "--learning-rate", 0)
    assert result.exit_code == 2
    assert "learning_rate must be above 0, got 0" in result.stderr
    assert not (here / "runs").exists()


def test_many_whole_numbers_as_tags_are_told(here):
    path = write_machines(here / "steps.csv", lambda sequence, step: 7 * sequence + step)
    flags = ["--id", "machine", "--target", "state", "--task", "tag"]
    result = invoke_small("train", path, *flags)
    lines = result.stdout.splitlines()
    assert any("different whole numbers, learned as classes; learn numbers" in x for x in lines)
    few = write_machines(here / "few.csv", lambda sequence, step: step % 3)
    assert "learned as classes" not in invoke_small("train", few, *flags).stdout


def test_inspect_suggests_the_one_column_that_can_be_the_target(here):
    path = write_machines(here / "machines.csv")
    lines = invoke("inspect", path.name, "--id", "machine").stdout.splitlines()
    command = "lstm-compile train machines.csv --id machine --target state"
    assert f"next        {command}" in lines
    assert lines[-1] == "next        lstm-compile predict RUN machines.csv --output predictions.csv"
    assert invoke_small(*command.split()[1:]).exit_code == 0


def test_one_row_is_no_plural(here):
    write_npz(here / "data.npz", count=4)
    write_npz(here / "test.npz", count=1)
    result = invoke_small("train", "data.npz", "--test", "test.npz", "--validation", 0)
    assert "(1 sequence)\n" in result.stdout


def test_tune_warns_of_a_tiny_validation_part_and_ranks_its_trials(here):
    pytest.importorskip("optuna")
    write_npz(here / "data.npz")
    result = invoke_small("tune", "data.npz", "--trials", 2, "--task", "classify")
    lines = result.stdout.splitlines()
    assert any("the validation part has 6 sequences, and chance" in line for line in lines)
    (ranking,) = [line for line in lines if line.startswith("ranking")]
    best = next(line for line in lines if line.startswith("best"))
    assert ranking.split()[1] == best.split()[2].rstrip(":")
    values = [float(part.strip("(),")) for part in ranking.split() if part.startswith("(")]
    assert len(values) == 2
    assert values == sorted(values)
