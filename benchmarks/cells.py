"""Test accuracy of each cell over seeds, with the defaults of `train` and one CPU thread.

python benchmarks/cells.py [--data NAME ...] [--cells NAME ...] [--seeds N]

Writes benchmarks/cells.json after each run, and goes on where that file ends.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from accuracy import train

from lstm_compile.config import CELLS

RESULTS = Path(__file__).with_name("cells.json")
DATA = ("japanese-vowels", "spoken-digits")


def main(names: list[str], cells: list[str], seeds: int) -> None:
    """Train what is missing, and print one line a data set and cell."""
    for data in names:
        for cell in cells:
            for seed in range(seeds):
                runs = _read().get(data, {}).get(cell, [])
                if len(runs) > seed:
                    continue
                found = train(data, seed, "--cell", cell, "--threads", "1")
                row = {"accuracy": found["metrics"]["accuracy"], "seconds": found["seconds"]}
                results = _read()  # another process may have written
                results.setdefault(data, {}).setdefault(cell, []).append(row)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    for line in table(_read()):
        print(line)


def _read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # type: ignore[no-any-return]


def table(results: dict[str, Any]) -> list[str]:
    """The table of docs/cells.md: accuracy in percent, and seconds of a training."""
    rows = ["| data | cell | accuracy | seconds | runs |", "|---|---|---|---|---|"]
    for data, cells in results.items():
        for cell, runs in cells.items():
            scores = [100 * run["accuracy"] for run in runs]
            spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            seconds = statistics.median(run["seconds"] for run in runs)
            mean = f"{statistics.mean(scores):.2f}{spread} %"
            rows.append(f"| {data} | {cell} | {mean} | {seconds:.0f} | {len(runs)} |")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", default=[*DATA])
    parser.add_argument("--cells", nargs="+", default=[*CELLS])
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    main(asked.data, asked.cells, asked.seeds)
