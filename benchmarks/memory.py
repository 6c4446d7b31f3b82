"""Peak memory of one training step, each backend in a process of its own, beside nn.LSTM padded.

python benchmarks/memory.py [DEVICE]
"""

import json
import sys

import torch

from lstm_compile.bench.cases import Case
from lstm_compile.bench.machine import machine
from lstm_compile.bench.memory import peak
from lstm_compile.bench.problem import CONTESTANTS
from lstm_compile.devices import find_device

CASE = Case(batch=128, time=512, input=64, hidden=128, lengths="full")
NAMES = ("padded", "vendor", "compiled", "auto")


def main(where: str) -> None:
    """Print one JSON object: MiB above the idle process, and over nn.LSTM padded's."""
    device, threads = find_device(where), torch.get_num_threads()
    peaks = {
        name: peak(CONTESTANTS[name], name, CASE, "training", str(device), threads, seed=0)
        for name in NAMES
    }
    ratios = {name: found.step / peaks["padded"].step for name, found in peaks.items()}
    mib = {name: found._asdict() for name, found in peaks.items()}
    print(json.dumps({"case": CASE.name, "mib": mib, "ratios": ratios, **machine(device)}))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["cpu"]))
