"""Runs of every kind that can be cut short, and what two equal runs have in common."""

import json
import os
import random
import traceback
from dataclasses import replace

import numpy as np
import torch
from stream_cases import write_parquet
from training_cases import QUICK, SMALL, means, prepared, save_npz, two_classes

from lstm_compile import load_model
from lstm_compile.data import Sequences
from lstm_compile.data.tables.columns import TableOptions

DROPS = {**SMALL, "num_layers": 2, "dropout": 0.3, "head_dropout": 0.3}
EVERY = replace(QUICK, epochs=3, save_every="1 steps")


def tags(seed=0):
    data = two_classes(60, seed)
    y = (data.x[:, 0] > 0).long()
    return Sequences(data.x, data.offsets, y, data.features, data.classes, (), per_step=True)


def levels(seed=0):
    data = two_classes(60, seed)
    y = data.x.cumsum(0)
    names = data.features, (), ("u", "v")
    return Sequences(data.x, data.offsets, y, *names, per_step=True)


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
    "regress-steps": (
        lambda p: save_npz(p, levels()), "regress-steps", DROPS,
        {"time_crop": 0.3, "accumulate": 2},
    ),
    "forecast": (
        write_series, "forecast", WINDOWS, {"epoch_size": 50, "validation": 0.2},
    ),
    "lm": (write_text, "lm", {**LM, "head_dropout": 0.3}, {"batch_size": 4, "unroll": 16}),
    "refit": (lambda p: save_npz(p, two_classes()), None, DROPS, {"refit": True}),
    "stream": (
        lambda p: str(write_parquet(p / "parquet")), None, DROPS,
        {"stream": 1, "batch_size": 24, "accumulate": 2},
    ),
}  # fmt: skip


def job_of(folder, name, output, *, resume=False, path=None, **changes):
    data, task, model, training = CASES[name]
    table = TableOptions(time="t", target=("v",)) if name == "forecast" else None
    settings = replace(EVERY, **{**training, **changes})
    return prepared(
        path or data(folder), model, settings, task=task, output=output, table=table, resume=resume
    )


def figures_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def model_of(folder):
    model = load_model(folder)
    return model.params, {
        k: v for k, v in model.training.items() if "seconds" not in k and k != "backend"
    }


def assert_same_run(found, expected):
    assert figures_of(found) == figures_of(expected)
    params, training = model_of(found)
    others, other_training = model_of(expected)
    assert params.keys() == others.keys()
    assert all(params[name].equal(others[name]) for name in params)
    assert training == other_training


def forked(action):
    """The id of a process that does `action` and nothing else."""
    torch.set_num_threads(1)  # before it forks: threads do not live on in the children
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
