"""Trainings of a cell that no one ships: every task, a stop and a resumption, a warm start."""

from contextlib import suppress
from dataclasses import replace
from itertools import count

import pytest
import torch
from own_cells import forget_cells, write_cell
from resume_cases import CASES, assert_same_run, job_of
from safetensors import safe_open
from training_cases import QUICK, do, paths_of, prepared, two_classes

from lstm_compile import ModelConfig, load_model
from lstm_compile.errors import InputError
from lstm_compile.recurrence.any_cell import find_cell
from lstm_compile.recurrence.cell_file import read_cell
from lstm_compile.training import backend
from lstm_compile.training import epoch as epochs
from lstm_compile.training.processes import ProcessGroup
from lstm_compile.training.run import run


@pytest.fixture(autouse=True)
def _coupled(tmp_path, monkeypatch):
    """The only cell of these tests, in a process that knows it."""
    forget_cells(monkeypatch)
    read_cell(write_cell(tmp_path))


@pytest.fixture
def cases(monkeypatch):
    for name, (data, task, model, training) in CASES.items():
        settings = {**training, "backend": "reference"}
        monkeypatch.setitem(CASES, name, (data, task, {**model, "cell": "coupled"}, settings))
    return CASES


def stopped_run(folder, monkeypatch, name, output):
    """A run that Ctrl-C ends in its eighth step."""
    original, calls = epochs.train_step, count(1)

    def stopping(*args):
        result = original(*args)
        if next(calls) == 8:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(epochs, "train_step", stopping)
        run(job_of(folder, name, output))


@pytest.mark.parametrize("name", ["classify", "tag", "regress", "forecast", "lm"])
def test_a_stopped_run_ends_as_if_it_never_was(tmp_path, monkeypatch, cases, name):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(job_of(tmp_path, name, whole))
    stopped_run(tmp_path, monkeypatch, name, cut)
    run(job_of(tmp_path, name, cut, resume=True))
    assert_same_run(cut, whole)
    assert load_model(whole).config.state_parts == {"h": 6, "c": 6, "n": 5}


def test_the_saved_state_holds_every_part_by_its_name(tmp_path, monkeypatch, cases):
    stopped_run(tmp_path, monkeypatch, "lm", tmp_path / "run")
    with safe_open(tmp_path / "run/last.safetensors", "pt") as file:
        shapes = {k: file.get_tensor(k).shape for k in file.keys() if k.startswith("carried.")}  # noqa: SIM118
    assert shapes == {
        "carried.h": (1, 4, 6), "carried.c": (1, 4, 6), "carried.n": (1, 4, 5)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "change", "message"),
    [
        ("gru", "", "written with cell 'coupled', found 'gru'"),
        ("lstm", "", "written with cell 'coupled', found 'lstm'"),
        ("coupled", "# changed\n", "the file of cell 'coupled' has another text now"),
    ],
)
def test_another_cell_is_not_resumed(tmp_path, monkeypatch, cases, cell, change, message):
    stopped_run(tmp_path, monkeypatch, "lm", tmp_path / "run")
    if change:
        forget_cells(monkeypatch)
        path = tmp_path / "coupled.py"
        path.write_text(path.read_text() + change)
        read_cell(f"{path}:COUPLED")
    data, task, model, training = cases["lm"]
    monkeypatch.setitem(cases, "lm", (data, task, {**model, "cell": cell}, training))
    with pytest.raises(InputError, match=message):
        job_of(tmp_path, "lm", tmp_path / "run", resume=True)


def test_weights_of_another_cell_are_no_start(tmp_path):
    data, _ = paths_of(tmp_path)
    training = replace(QUICK, backend="reference", epochs=1)
    do(data, tmp_path / "first", training, cell="coupled")
    again = replace(training, init=str(tmp_path / "first"))
    warm = prepared(data, {**CASES["classify"][2], "num_layers": 1, "cell": "coupled"}, again).warm
    assert "cell.weight_hn_l0" in warm.taken
    with pytest.raises(InputError, match="no tensor of its cell 'coupled' fits this model"):
        prepared(data, {"cell": "slstm", "hidden_size": 6, "num_layers": 1}, again)


# ---- the backend


@pytest.mark.parametrize(
    ("has_compiler", "seconds", "expected"),
    [
        (True, 1.0, "compiled, no vendor has a kernel of cell coupled"),
        (True, 1e-9, "reference, its loop takes 0 s at most, too little for compiling to pay"),
        (False, 1.0, "reference, there is no compiler here"),
    ],
)
def test_auto_compiles_where_that_pays(monkeypatch, has_compiler, seconds, expected):
    monkeypatch.setattr(backend, "can_compile", lambda device: has_compiler)
    monkeypatch.setattr(backend, "loop_seconds", lambda *_, **__: seconds)
    config = ModelConfig(task="classify", input_size=2, output_size=2, cell="coupled")
    settled, why = backend.settle(config, QUICK, two_classes(), torch.device("cpu"))
    assert why == expected
    assert settled.backend == expected.partition(",")[0]
    assert settled.threads


@pytest.mark.parametrize("training", [True, False])
def test_the_loop_of_a_cell_is_timed(training):
    device = torch.device("cpu")
    assert 0 < backend.loop_seconds(find_cell("coupled"), 4, 2, device, training=training) < 1


def test_lanes_are_gathered_part_by_part(monkeypatch):
    whole = [torch.randn(2, 5, size) for size in (4, 4, 3)]
    sent = []
    monkeypatch.setattr(ProcessGroup, "sum", lambda _, value: sent.append(value) or value)
    for rank in (0, 1):
        group = ProcessGroup(rank, 2)
        group.gather_states(tuple(part[:, group.every_nth(5)] for part in whole), 5)
    monkeypatch.setattr(ProcessGroup, "sum", lambda *_: sent[0] + sent[1])
    found = ProcessGroup(0, 2).gather_states(tuple(part[:, ::2] for part in whole), 5)
    for one, other in zip(found, whole, strict=True):
        assert one.equal(other)


@pytest.mark.slow
def test_a_compiled_training_gives_the_losses_of_the_plain_loop(tmp_path):
    data, test = paths_of(tmp_path)
    losses = {}
    for name in ("reference", "compiled"):
        training = replace(QUICK, backend=name, chunk=2)
        outcome = do(data, tmp_path / name, training, test=test, cell="coupled")
        losses[name] = [epoch.train_loss for epoch in outcome.fit.epochs]
        assert (outcome.compile_seconds > 0) == (name == "compiled")
        assert outcome.backend == f"{name}, as asked for"
    assert losses["compiled"] == pytest.approx(losses["reference"], rel=1e-4)


@pytest.mark.parametrize("name", ["classify", "lm"])
@pytest.mark.parametrize("cell", ["lstm", "coupled"])
def test_a_resumed_run_draws_the_masks_of_a_whole_one(tmp_path, monkeypatch, cases, name, cell):
    drops = {"input_dropout": 0.2, "hidden_dropout": 0.3, "zoneout": 0.1, "weight_drop": 0.4}
    data, task, model, training = CASES[name]
    cases[name] = (data, task, {**model, **drops, "cell": cell}, training)
    run(job_of(tmp_path, name, tmp_path / "whole"))
    stopped_run(tmp_path, monkeypatch, name, tmp_path / "cut")
    run(job_of(tmp_path, name, tmp_path / "cut", resume=True))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert load_model(tmp_path / "whole").config.zoneout == 0.1
