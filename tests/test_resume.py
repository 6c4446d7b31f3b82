import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_cases import QUICK, SMALL, means, save_npz, setting, two_classes

from lstm_compile import load_model
from lstm_compile.data import Sequences
from lstm_compile.data.columns import TableOptions
from lstm_compile.errors import InputError, RunError
from lstm_compile.locking import locked
from lstm_compile.training import passes
from lstm_compile.training.config import TrainingConfig, parse_interval
from lstm_compile.training.job import prepare
from lstm_compile.training.loop import fit
from lstm_compile.training.run import run
from lstm_compile.training.saving import Keeper, load_progress, save_progress

DROPS = {**SMALL, "num_layers": 2, "dropout": 0.3, "head_dropout": 0.3}
EVERY = replace(QUICK, epochs=3, save_every="1 steps")


def tags(seed=0):
    data = two_classes(60, seed)
    y = (data.x[:, 0] > 0).long()
    return Sequences(data.x, data.offsets, y, data.features, data.classes, (), per_step=True)


def write_series(folder):
    rows = np.arange(150)
    wave = np.sin(rows / 5) + 0.01 * rows
    lines = ["t,v", *(f"{row},{value:.5f}" for row, value in zip(rows, wave, strict=True))]
    path = folder / "series.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_text(folder):
    text = "".join(random.Random(0).choices("abcde \n", k=900))
    for name, part in (("one.txt", text[:700]), ("two.txt", text[700:])):
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / name).write_text(part)
    return str(folder / "texts")


LM = {"hidden_size": 6, "num_layers": 1, "bidirectional": False, "dropout": 0.0, "tie": False}
WINDOWS = {**DROPS, "bidirectional": False, "context": 12, "horizon": 4, "scaling": "mean"}
CASES = {  # data, its task, the model, changes of the training
    "classify": (lambda p: save_npz(p, two_classes()), None, DROPS, {}),
    "augmented": (
        lambda p: save_npz(p, two_classes()),
        None,
        DROPS,
        {"noise": 0.1, "time_crop": 0.3, "ema": 0.8, "accumulate": 2, "class_weight": "balanced"},
    ),
    "regress": (lambda p: save_npz(p, means()), None, DROPS, {"schedule": "plateau"}),
    "tag": (lambda p: save_npz(p, tags()), "tag", DROPS, {}),
    "forecast": (
        write_series, "forecast", WINDOWS, {"epoch_size": 50, "validation": 0.2},
    ),
    "lm": (write_text, "lm", {**LM, "head_dropout": 0.3}, {"batch_size": 4, "unroll": 16}),
    "refit": (lambda p: save_npz(p, two_classes()), None, DROPS, {"refit": True}),
}  # fmt: skip


def job_of(folder, name, output, *, resume=False, **changes):
    data, task, model, training = CASES[name]
    table = TableOptions(time="t", target=("v",)) if name == "forecast" else None
    settings = replace(EVERY, **{**training, **changes})
    return prepare(
        data(folder), model, settings, task=task, output=output, table=table, resume=resume
    )


def figures_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def model_of(folder):
    model = load_model(folder)
    return model.params, {k: v for k, v in model.training.items() if "seconds" not in k}


def assert_same_run(found, expected):
    assert figures_of(found) == figures_of(expected)
    params, training = model_of(found)
    others, other_training = model_of(expected)
    assert params.keys() == others.keys()
    assert all(params[name].equal(others[name]) for name in params)
    assert training == other_training


def interrupt_at(monkeypatch, step):
    """Ctrl-C within step `step`, counted from 1, once it has drawn its random numbers."""
    original, calls = passes.train_step, count(1)

    def stopping(*args):
        result = original(*args)
        if next(calls) == step:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(passes, "train_step", stopping)


def interrupted_run(folder, monkeypatch, name, step, output, **changes):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        try:
            outcome = run(job_of(folder, name, output, **changes))
        except KeyboardInterrupt:
            return "before an epoch"
    return outcome.fit.stopped


# ---- going on


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_was_stopped_anywhere_ends_as_if_it_never_was(tmp_path, monkeypatch, name):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(job_of(tmp_path, name, whole))
    total = load_file(whole / "last.safetensors")["params.head.bias"].numel() and int(
        json.loads(progress_text(whole))["step"]
    )
    stops = {1, 2, total // 2, total - 1, *([total + 2] if name == "refit" else [])}
    for step in sorted(stops):
        stopped = interrupted_run(tmp_path, monkeypatch, name, step, cut)
        assert stopped in ("interrupt", "before an epoch")
        run(job_of(tmp_path, name, cut, resume=True))
        assert_same_run(cut, whole)
        shutil.rmtree(cut)


def progress_text(folder):
    from safetensors import safe_open

    with safe_open(folder / "last.safetensors", framework="pt") as archive:
        return archive.metadata()["progress"]
