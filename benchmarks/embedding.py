"""What the forms of the exported file cost in ONNX Runtime: `python benchmarks/embedding.py [OUT]`.

Processor time of one thread, which other programs disturb little: rounds of all forms in turn,
medians. Writes JSON, by default `embedding.json` here.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import thread_time

import numpy as np
import onnxruntime
import torch

from lstm_compile.bench.machine import machine
from lstm_compile.config import ModelConfig
from lstm_compile.export.runtime import Inputs, ask, open_session
from lstm_compile.export.write.int8 import quantize
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import Model, numbered_schema
from lstm_compile.model.model import init_params

ROUNDS = 41
FEATURES, CLASSES = 13, 10
CASES = [  # batch, time, hidden size
    (32, 64, 64),
    (1, 64, 64),
    (1, 64, 256),
    (32, 64, 256),
]


def main(path: Path) -> None:
    """Measure every case, print a line each, and write them."""
    rows = [measure(*case) for case in CASES]
    for row in rows:
        print(json.dumps(row))
    found = {
        "machine": machine(torch.device("cpu")),
        "onnxruntime": onnxruntime.__version__,
        "cases": rows,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def measure(batch: int, time: int, hidden_size: int) -> dict[str, float]:
    """Milliseconds of each form on rows of uniform lengths, and their ratios."""
    forms = {name: open_session(data, threads=1) for name, data in files(hidden_size).items()}
    inputs = draw(batch, time)
    spent = in_turn({n: lambda s=s: ask(s, **inputs) for n, s in forms.items()})
    milliseconds = {name: round(1000 * median(each), 4) for name, each in spent.items()}
    portable, ort, int8 = milliseconds.values()
    return {
        "batch": batch, "time": time, "hidden_size": hidden_size, **milliseconds,
        "portable / ort": round(portable / ort, 3), "ort / int8": round(ort / int8, 3),
    }  # fmt: skip


def files(hidden_size: int) -> dict[str, bytes]:
    """A bidirectional two-layer attention model in each form."""
    config = ModelConfig(
        task="classify", input_size=FEATURES, output_size=CLASSES, hidden_size=hidden_size
    )
    model = Model(init_params(config, 0), config, numbered_schema(config), {})
    quantized, _ = quantize(model, to_onnx(model, "ort", finite=True))
    return {
        "portable": to_onnx(model).SerializeToString(),
        "ort": to_onnx(model, "ort").SerializeToString(),
        "int8": quantized.SerializeToString(),
    }


def draw(batch: int, time: int) -> Inputs:
    """Rows of lengths 1 to `time`, one of them `time`."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, time + 1, batch)
    lengths[0] = time
    x = random.standard_normal((batch, time, FEATURES)).astype(np.float32)
    return {"x": x, "lengths": lengths}


def in_turn(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Processor seconds of each call, all called once a round."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 3):
        for name, call in calls.items():
            began = thread_time()
            call()
            if turn >= 3:  # the first rounds warm up
                spent[name].append(thread_time() - began)
    return spent


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or [Path(__file__).with_name("embedding.json")]))
