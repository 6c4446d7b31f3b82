"""A task that only this file knows: one module and one line of `TASKS` are enough."""

import csv
import json

import numpy as np
import pytest
import torch
from training_cases import prepared

from lstm_compile import ModelConfig, load_model
from lstm_compile.errors import InputError
from lstm_compile.export import export_onnx
from lstm_compile.export.use.evaluate_file import evaluate_file
from lstm_compile.export.use.predict_file import predict_file, write_predictions
from lstm_compile.formatting import result
from lstm_compile.tasks import TASKS, find_task, tasks_with
from lstm_compile.training.defaults import complete, resolve
from lstm_compile.training.run import run
from lstm_compile.tuning.space import default_space
from lstm_compile.tuning.study import plan_of

MODULE = '''
"""Task `grow`: positive numbers for each sequence, learned by their logarithms."""

from dataclasses import replace

import torch

from lstm_compile.evaluation.linear import fit_ridge
from lstm_compile.tasks.regress import TASK as REGRESS
from lstm_compile.tasks.task import OneOf


def loss(given):
    return (given.prediction.log() - given.y.log()).abs().mean()


def exponential(values):
    return values.exp()


def score(predictions, y):
    return {"log_error": row_score(predictions, y).mean().item()}


def row_score(predictions, y):
    return (predictions.double().clamp(min=1e-9).log() - y.double().log()).abs().mean(1)


def minus(mean):
    return -mean


def medians(sequences):
    parts = sequences.x[:, 0].double().split(sequences.lengths.tolist())
    return torch.stack([part.median() for part in parts])[:, None]


def line(features, y, sequences):
    return fit_ridge(features, y)


TASK = replace(
    REGRESS,
    name="grow",
    has_target_scaler=False,
    output="size",
    rows="cultures",
    losses=("log error",),
    loss=loss,
    finish=exponential,
    score=score,
    row_score=row_score,
    gain=minus,
    headline="log_error",
    rising=(),
    tuned=("log_error",),
    baselines=("mean", "line over medians"),
    own_baselines={"line over medians": (medians, line)},
    settings={
        "model": {"hidden_size": 8, "num_layers": 1, "dropout": 0.0, "head_dropout": 0.0},
        "training": {"epochs": 12, "learning_rate": 0.03, "device": "cpu"},
    },
    space={"hidden_size": OneOf((4, 8))},
)
'''
COUNT, TIME = 80, 5


@pytest.fixture
def grow(tmp_path, monkeypatch):
    """The name of the task, known while a test lasts."""
    (tmp_path / "task_that_grows.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "grow", "task_that_grows")
    return "grow"


@pytest.fixture
def data(tmp_path):
    """Sequences whose target is the exponential of their mean."""
    random = np.random.default_rng(0)
    level = random.uniform(-1, 3, COUNT)
    x = level[:, None] + 0.1 * random.standard_normal((COUNT, TIME))
    path, y = tmp_path / "data.npz", np.exp(level)[:, None].astype(np.float32)
    x = x.reshape(-1, 1).astype(np.float32)
    np.savez(path, x=x, lengths=np.full(COUNT, TIME), y=y, targets=["cells"])
    return str(path)


def trained(data, folder):
    """A run, with the settings that the task brings."""
    asked = resolve(data, "grow")
    job = prepared(data, asked.model, asked.training, task=asked.task, output=folder)
    return run(job)


def test_a_new_task_goes_the_whole_way(grow, data, tmp_path):
    folder = tmp_path / "run"
    found = trained(data, folder)
    config = found.model.config
    assert (config.task, config.hidden_size) == ("grow", 8)
    assert len(found.fit.epochs) > 5
    assert set(found.fit.epochs[0].validation) == {"log_error"}
    assert found.fit.epochs[-1].validation["log_error"] < 0.3
    assert 'task = "grow"' in (folder / "config.toml").read_text()
    assert not {"target_scaler.shift", "target_scaler.scale"} & set(found.model.params)

    ours = evaluate_file(folder, data)
    assert set(ours.metrics) == {"log_error"}
    assert ours.verdict.startswith("better than every baseline: log_error")
    assert ours.interval is not None
    assert ours.interval[0] > 0
    assert list(ours.baselines) == ["mean", "line over medians"]
    assert result(ours).endswith(f"({COUNT} cultures)")

    report = export_onnx(folder, folder / "model.onnx")
    assert report.parity.passed
    theirs = evaluate_file(folder / "model.onnx", data)
    assert theirs.metrics["log_error"] == pytest.approx(ours.metrics["log_error"], abs=1e-4)
    assert json.loads((folder / "selftest.json").read_text())["output"] == "size"

    answers = predict_file(folder / "model.onnx", data)
    np.testing.assert_allclose(answers.values, predict_file(folder, data).values, rtol=1e-4)
    assert write_predictions(tmp_path / "out.csv", answers) == ["sequence", "cells"]
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert len(rows) == COUNT
    assert all(float(row["cells"]) > 0 for row in rows)
    model = load_model(folder)
    assert (model.config.task, model.schema.targets) == ("grow", ("cells",))


def test_settings_messages_and_tuning_know_a_new_task(grow, data):
    assert tasks_with(has_classes=True) == ("classify", "tag")
    assert tasks_with(can_stream=True) == ("classify", "regress", "grow")
    settings = complete(resolve(data, grow))
    assert settings["model"]["pooling"] == "attention"
    assert "context" not in settings["model"]
    with pytest.raises(InputError, match="context is for task forecast, the task is grow"):
        ModelConfig(task=grow, input_size=1, output_size=1, context=5)
    with pytest.raises(InputError, match=r"pooling is for task classify or regress or .* or grow,"):
        ModelConfig(task="tag", input_size=1, output_size=1, pooling="last")
    plan = plan_of(data, task=grow)
    assert (plan.metric, plan.direction, plan.space) == (
        "log_error",
        "minimize",
        default_space(grow, {}),
    )


def test_data_are_still_learned_by_the_first_task_that_fits(grow, data, tmp_path):
    asked = resolve(data)
    job = prepared(data, asked.model, asked.training, output=tmp_path / "run")
    assert job.config.task == "regress"
    labels = tmp_path / "labels.npz"
    np.savez(labels, x=torch.randn(20, 1), lengths=np.full(10, 2), y=["a", "b"] * 5)
    with pytest.raises(InputError, match="good for task classify, not grow; leave --task out"):
        prepared(str(labels), {}, resolve(str(labels)).training, task=grow, output=tmp_path / "no")


def test_an_unknown_task_is_refused(grow):
    with pytest.raises(InputError, match=r"task must be one of classify, .*, lm, grow; got 'sing'"):
        find_task("sing")
