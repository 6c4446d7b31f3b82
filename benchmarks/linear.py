"""How the cost of a valid step grows with length: T = 4096 over T = 256, full lengths.

python benchmarks/linear.py [DEVICE]
"""

import json
import sys

from lstm_compile.bench.cases import Case
from lstm_compile.bench.config import BenchConfig
from lstm_compile.bench.run import run_bench

NAMES = ("padded", "vendor", "compiled", "auto")
SHORT, LONG = 256, 4096


def main(device: str) -> None:
    """Print one JSON object: the ratio of each backend by mode, and over nn.LSTM padded's."""
    cases = [
        Case(batch=16, time=time, input=32, hidden=64, lengths="full") for time in (SHORT, LONG)
    ]
    report = run_bench(cases, BenchConfig(device=device, seconds=20.0), backends=NAMES)
    step = {
        (row.mode, row.backend, row.case.time): row.median_ms / row.case.time for row in report.rows
    }
    grown = {
        mode: {name: step[mode, name, LONG] / step[mode, name, SHORT] for name in NAMES}
        for mode in ("inference", "training")
    }
    over = {
        mode: {name: ratio / ratios["padded"] for name, ratio in ratios.items()}
        for mode, ratios in grown.items()
    }
    print(
        json.dumps({"times": [SHORT, LONG], "grown": grown, "over_padded": over, **report.machine})
    )


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["cpu"]))
