"""How the cost of a valid step grows with length: T = 4096 over T = 256, full lengths.

python benchmarks/linear.py [DEVICE]
"""

import json
import sys

import torch

from lstm_compile.bench.cases import MODES, Case, Mode
from lstm_compile.bench.machine import machine
from lstm_compile.bench.problem import CONTESTANTS, build, step_of
from lstm_compile.bench.timing import interleave
from lstm_compile.devices import find_device

NAMES = ("padded", "vendor", "compiled", "auto")
SHORT, LONG = 256, 4096
SECONDS = 60.0


def grown(device: torch.device, mode: Mode) -> dict[str, float]:
    """Time per step at LONG over that at SHORT; both take turns in the same rounds."""
    cases = [Case(batch=16, time=time, hidden=64, lengths="full") for time in (SHORT, LONG)]
    problems = {case.time: build(case, device, mode, seed=0) for case in cases}
    steps = {
        f"{name} {time}": step_of(CONTESTANTS[name], name, problem, mode)
        for name in NAMES
        for time, problem in problems.items()
    }
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found = interleave(steps, 30, SECONDS, 0, wait)
    return {
        name: found[f"{name} {LONG}"].ratio(found[f"{name} {SHORT}"]) * SHORT / LONG
        for name in NAMES
    }


def main(where: str) -> None:
    """Print one JSON object: the growth of each backend by mode, and over nn.LSTM padded's."""
    device = find_device(where)
    ratios = {mode: grown(device, mode) for mode in MODES}
    over = {
        mode: {name: ratio / ratios[mode]["padded"] for name, ratio in ratios[mode].items()}
        for mode in MODES
    }
    found = {"times": [SHORT, LONG], "grown": ratios, "over_padded": over}
    print(json.dumps({**found, **machine(device)}))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["cpu"]))
