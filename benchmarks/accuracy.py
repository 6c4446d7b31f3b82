"""Mean and standard deviation of test accuracy over seeds 0 to 4, with the defaults of `train`.

python benchmarks/accuracy.py [DATA ...]
"""

import json
import statistics
import subprocess
import sys
import tempfile
from typing import Any

SEEDS = range(5)


def train(data: str, seed: int, *flags: str) -> dict[str, Any]:
    """One run of the command line in a folder of its own; what its --json prints."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lstm_compile", "train", data]
        options = ["--seed", str(seed), "--output", f"{folder}/run", "--json", *flags]
        result = subprocess.run([*command, *options], check=True, capture_output=True)
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def main(names: list[str]) -> None:
    """Print one line a data set and write benchmarks/accuracy.json."""
    results = {}
    for data in names:
        runs = [train(data, seed) for seed in SEEDS]
        scores = [run["metrics"]["accuracy"] for run in runs]
        baselines = {name: values["accuracy"] for name, values in runs[0]["baselines"].items()}
        results[data] = {
            "accuracy": scores,
            "mean": statistics.mean(scores),
            "standard_deviation": statistics.stdev(scores),
            "seconds": [run["seconds"] for run in runs],
            "baselines": baselines,
        }
        print(data, json.dumps(results[data]), flush=True)
    with open("benchmarks/accuracy.json", "w") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:] or ["spoken-digits", "japanese-vowels"])
