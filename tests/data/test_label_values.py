"""Whether labels are classes or numbers: `--task` decides, else their values do."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lstm_compile.cli.app import app
from lstm_compile.data import read_sequences
from lstm_compile.data.tables.label_values import codes_of, one_of_each
from lstm_compile.errors import InputError


def write(folder, labels, suffix=".csv"):
    """A table of three rows a sequence, one label a sequence."""
    path, count = folder / f"t{suffix}", len(labels)
    frame = pd.DataFrame(
        {
            "id": np.repeat(np.arange(count), 3),
            "time": np.tile(np.arange(3), count),
            "u": np.random.default_rng(0).standard_normal(3 * count),
            "label": pd.Series(labels).repeat(3).to_numpy(),
        }
    )
    save = {".csv": frame.to_csv, ".parquet": frame.to_parquet}[suffix]
    save(path, index=False)
    return str(path)


KINDS = [
    ([*range(30)], "regress"),  # more than 20 different numbers
    ([*range(21)] * 20, "regress"),
    ([*range(20)] * 20, "classify"),
    ([*range(7)] * 6, "regress"),  # more than a tenth of the rows
    ([*range(6)] * 10, "classify"),
    ([*range(5)] * 2, "classify"),  # few
    ([1.0, 2.0] * 10, "regress"),
    (["a", "b"] * 10, "classify"),
    ([True, False] * 10, "classify"),
]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(("labels", "task"), KINDS)
def test_without_a_task_the_values_decide(tmp_path, labels, task, suffix):
    assert read_sequences(write(tmp_path, labels, suffix)).task == task


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_task_decides(tmp_path, suffix):
    counts = write(tmp_path, [3, 1, 2, 2], suffix)
    found = read_sequences(counts, has_classes=False)
    assert (found.task, found.y.tolist()) == ("regress", [[3.0], [1.0], [2.0], [2.0]])
    halves = write(tmp_path, [1.0, 2.0, 2.0], suffix)
    found = read_sequences(halves, has_classes=True)
    assert (found.classes, found.y.tolist()) == (("1.0", "2.0"), [0, 1, 1])
    flags = write(tmp_path, [True, False, True], suffix)
    assert read_sequences(flags, has_classes=False).y.tolist() == [[1.0], [0.0], [1.0]]


def test_the_task_decides_for_arrays_too(tmp_path):
    path, shape = tmp_path / "a.npz", {"x": np.ones((4, 1)), "lengths": [2, 2]}
    np.savez(path, **shape, y=[7, 9])
    assert read_sequences(path).classes == ("7", "9")
    assert read_sequences(path, has_classes=False).y.tolist() == [[7.0], [9.0]]
    np.savez(path, **shape, y=[1.0, 2.0])
    found = read_sequences(path, has_classes=True)
    assert (found.classes, found.y.tolist()) == (("1.0", "2.0"), [0, 1])
    np.savez(path, **shape, y=["7", "x"])
    with pytest.raises(InputError, match="sequence 1: found 'x', expected a finite float32 number"):
        read_sequences(path, has_classes=False)


@pytest.mark.parametrize("first", [".csv", ".parquet"])
def test_booleans_and_words_are_one_class(tmp_path, first):
    trained = read_sequences(write(tmp_path, [True, False, True], first))
    for labels in ([True, False], ["true", "false"], ["TRUE", "False"]):
        for suffix in (".csv", ".parquet"):
            found = read_sequences(write(tmp_path, labels, suffix), schema=trained.schema)
            assert [trained.classes[code].lower() for code in found.y] == ["true", "false"]


def test_numbers_are_one_class_however_they_are_written(tmp_path):
    trained = read_sequences(write(tmp_path, [1, 2, 1]))
    found = read_sequences(write(tmp_path, [2.0, 1.0], ".parquet"), schema=trained.schema)
    assert found.y.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"unknown class '1.5'; known are 1, 2"):
        read_sequences(write(tmp_path, [2.0, 1.5]), schema=trained.schema)


def test_spellings():
    assert one_of_each(["true", "True", "1", "1.0", "01", "a", "A"]) == [
        "01",
        "1",
        "A",
        "True",
        "a",
    ]
    assert codes_of(["1.0", "1", "TRUE", "b"], ("1", "1.0", "true")) == {
        "1.0": 1,
        "1": 0,
        "TRUE": 2,
    }


@given(st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_every_class_has_its_own_code(classes):
    assert codes_of(classes, classes) == {name: code for code, name in enumerate(classes)}


def trained(*words):
    quick = ["--hidden-size", "2", "--num-layers", "1", "--epochs", "1", "--device", "cpu"]
    return CliRunner().invoke(app, ["train", *map(str, words), *quick])


def test_the_choice_is_printed_and_kept(tmp_path):
    path, run = write(tmp_path, [*range(30)] * 2), tmp_path / "run"
    found = trained(path, "--output", run)
    assert "30 different whole numbers, learned as numbers; learn classes with --task classify" in (
        " ".join(found.stdout.split())
    )
    assert "task =" not in (run / "config.toml").read_text()
    found = trained(path, "--task", "classify", "--output", tmp_path / "classes")
    assert "different whole numbers" not in found.stdout
    assert 'task = "classify"' in (tmp_path / "classes" / "config.toml").read_text()
    again = json.loads(CliRunner().invoke(app, ["evaluate", str(run), path, "--json"]).stdout)
    assert again["task"] == "regress"
    few = trained(write(tmp_path, [1, 2] * 10), "--output", tmp_path / "few")
    assert "2 different whole numbers, learned as classes; learn numbers with --task regress" in (
        " ".join(few.stdout.split())
    )


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        (["a", "b"], ["--task", "regress"], "found 'a', expected a finite float32 number to pred"),
        (
            np.arange(30) / 7,
            ["--task", "classify"],
            "30 different numbers with fractions are no cl",
        ),
        ([1, 2], ["--per-step"], "--per-step needs a task: add --task regress or --task classify"),
        ([1, 2], ["--per-step", "--task", "forecast"], "it is for tasks classify and regress"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path, labels, words, message):
    found = trained(write(tmp_path, labels), *words, "--output", tmp_path / "run")
    assert found.exit_code == 2
    assert message in found.output
