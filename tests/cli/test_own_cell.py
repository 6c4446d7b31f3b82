"""A cell of one's own, from its file to ONNX, each command as a process of its own."""

import csv
import signal
import subprocess
import sys

import numpy as np
import pytest
from cli_cases import write_npz

from lstm_compile.export.runtime import open_streams

COUPLED = """\
from torch import sigmoid, tanh
from torch.nn.functional import linear
from lstm_compile import Cell
def shapes(inputs, hidden):
    return {"weight_ih": (2 * hidden, inputs), "weight_hh": (2 * hidden, hidden),
            "bias": (2 * hidden,), "weight_slow": (SIZE, hidden), "weight_out": (hidden, SIZE)}
def step(params, share, state):
    h, c, slow = state
    f, z = (share + linear(h, params["weight_hh"])).chunk(2, -1)
    c = sigmoid(f) * c + (1 - sigmoid(f)) * tanh(z)
    slow = 0.9 * slow + 0.1 * linear(c, params["weight_slow"])
    h = tanh(c + linear(slow, params["weight_out"]))
    return h, (h, c, slow)
CELL = Cell("own", lambda hidden: {"h": hidden, "c": hidden, "slow": SIZE}, shapes,
            lambda params, x: linear(x, params["weight_ih"], params["bias"]), step)
"""
MINIMAL = """\
import torch
from lstm_compile import Cell
def step(params, share, state):
    h = torch.tanh(share + torch.sigmoid(params["decay"]) * state[0])
    return h, (h,)
CELL = Cell("own", lambda hidden: {"h": hidden},
            lambda inputs, hidden: {"weight": (hidden, inputs), "decay": (1,)},
            lambda params, x: x @ params["weight"].T, step)
"""
FUNCTIONS = """\
from torch import cat, cumsum, einsum, sigmoid, sin, softmax, tanh, where
from torch.nn.functional import layer_norm, linear, relu, softplus
from lstm_compile import Cell
def shapes(inputs, hidden):
    return {"weight_ih": (3 * hidden, inputs), "weight_hh": (3, hidden, hidden), "scale": (hidden,)}
def step(params, share, state):
    h, pair, count = state
    gates = einsum("bi,goi->bgo", h, params["weight_hh"]).flatten(1)
    a, b, o = (share + gates).chunk(3, -1)
    values = layer_norm(relu(b) + softplus(a), a.shape[-1:], params["scale"])
    keep = cumsum(softmax(b, -1), -1)
    h = keep * h + (1 - keep) * where(a > 0.1, tanh(values), 0.1 * values)
    pair, count = 0.5 * pair + cat([h, h * sigmoid(o)], -1), count + h.mean(-1, keepdim=True)
    return sigmoid(o) * h + 0.1 * pair[:, : h.shape[-1]] + sin(count), (h, pair, count)
CELL = Cell("own", lambda hidden: {"h": hidden, "pair": 2 * hidden, "count": 1}, shapes,
            lambda params, x: linear(x, params["weight_ih"]), step)
"""
FILES = {
    "a smaller part": COUPLED.replace("SIZE", "4"),
    "a larger part": COUPLED.replace("SIZE", "17"),
    "one part": MINIMAL,
    "functions of torch": FUNCTIONS,
}
LIMIT = 300  # seconds of a command
WITHOUT_SCAN = {"opencv", "mnn"}


def start(folder, *words):
    command = [sys.executable, "-m", "lstm_compile", *map(str, words)]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder, *words, codes=(0,)):
    process = start(folder, *words, "--cell", "own.py:CELL")
    printed, errors = process.communicate(timeout=LIMIT)
    assert process.returncode in codes, printed + errors
    return printed


def stop_after_an_epoch(folder):
    """Ctrl-C in a training."""
    words = ["train", "data.npz", "--output", "run", "--cell", "own.py:CELL", "--device", "cpu"]
    words += ["--no-bidirectional", "--pooling", "last", "--hidden-size", 6, "--num-layers", 1]
    process = start(folder, *words, "--epochs", 60, "--patience", 60, "--batch-size", 16)
    assert any(line.startswith("epoch 1:") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, errors


def probabilities(path):
    with path.open() as file:
        _, *rows = csv.reader(file)
    return np.array([row[2:] for row in rows], np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a smaller part", "functions of torch"])
def test_a_cell_goes_from_its_file_to_onnx(tmp_path, kind):
    (tmp_path / "own.py").write_text(FILES[kind])
    assert len(FILES[kind].splitlines()) <= 15 or kind == "functions of torch"
    write_npz(tmp_path / "data.npz", features=3)
    stop_after_an_epoch(tmp_path)
    assert "epoch 60:" in run(tmp_path, "train", "--resume", "run")
    assert "accuracy" in run(tmp_path, "evaluate", "run", "data.npz")
    run(tmp_path, "predict", "run", "data.npz", "--output", "answers.csv")
    run(tmp_path, "export", "run", "--onnx")
    compared = run(tmp_path, "verify", "run", "--runtimes", codes=(0, 1))
    lines = [line.split() for line in compared.splitlines() if line.startswith("[")]
    results = {words[1]: words[0] for words in lines if words[0] != "[x]"}
    assert {words[1] for words in lines} - set(results) <= WITHOUT_SCAN, compared
    assert "[✓]" in results["onnxruntime"]
    for cells in ("node", "plain"):
        output = f"run/{cells}.onnx"
        flags = ["--onnx", "--streaming", "--cells", cells, "--output", output]
        run(tmp_path, "export", "run", *flags)
        check_streams(tmp_path, tmp_path / output)


def check_streams(folder, path):
    """Each sequence, in two pieces, ends with the answer that `predict` wrote."""
    data, expected = np.load(folder / "data.npz"), probabilities(folder / "answers.csv")
    pieces = np.split(data["x"], np.cumsum(data["lengths"])[:-1])
    streams = open_streams(path)
    for name, piece in enumerate(pieces[:12]):
        for part in np.split(piece, [len(piece) // 2]):
            if len(part):
                (found,) = streams.push([name], [part])
        np.testing.assert_allclose(np.atleast_2d(found)[-1], expected[name], atol=1e-5)
