"""The LSTM with a Transformer block beside the plain one of as many parameters.

python benchmarks/hybrid.py [DATA ...]

Both have the defaults of `train`; the hybrid has one LSTM layer, a block of 4 heads behind it, and
the width at which it has as many parameters. Each is trained with every seed, and with the first
exported and verified. DATA is japanese-vowels and airline, or a text file for task `lm`, such as
tinyshakespeare, trained with one seed and the settings of `TEXT`. Writes benchmarks/hybrid.json.
"""

import json
import math
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lstm_compile.config import ModelConfig
from lstm_compile.model.checkpoint import load_model
from lstm_compile.model.header import count_parameters
from lstm_compile.model.model import param_shapes

HERE = Path(__file__).parent
BUNDLED = ["japanese-vowels", "airline"]
SEEDS = range(5)
TEXT = [
    *("--epochs", "6", "--batch-size", "32", "--unroll", "128"),
    *("--learning-rate", "4e-3", "--head-dropout", "0.1"),
]
MEASURES = {"classify": "accuracy", "forecast": "mae", "lm": "loss"}
BLOCK = {"num_layers": 1, "transformer_layers": 1, "heads": 4}


def command(*arguments: object) -> dict[str, Any]:
    """What a command prints with --json; one that fails, parity included, ends all."""
    words = [sys.executable, "-m", "lstm_compile", *map(str, arguments), "--json"]
    found: dict[str, Any] = json.loads(
        subprocess.run(words, check=True, capture_output=True).stdout
    )
    return found


def parameters(config: ModelConfig) -> int:
    """How many numbers are learned."""
    return count_parameters({name: list(shape) for name, shape in param_shapes(config).items()})


def as_large(plain: ModelConfig) -> ModelConfig:
    """The hybrid whose number of parameters is nearest to that of `plain`."""
    widths = range(4, plain.hidden_size + 1, 4)
    hybrids = [replace(plain, hidden_size=width, **BLOCK) for width in widths]
    return min(hybrids, key=lambda hybrid: abs(parameters(hybrid) - parameters(plain)))


def flags(config: ModelConfig) -> list[str]:
    """What asks `train` for a hybrid."""
    names = ("hidden_size", *BLOCK)
    return [f"--{name.replace('_', '-')}={getattr(config, name)}" for name in names]


def measure(data: str, seeds: range, options: list[str], run: Path) -> dict[str, Any]:
    """Train with every seed; export and verify the first."""
    runs = []
    for seed in seeds:
        folder = run / str(seed)
        runs.append(command("train", data, "--seed", seed, "--output", folder, *options))
    first = run / str(seeds[0])
    parity = command("export", first, "--onnx")["rows"] + command("verify", first)["rows"]
    config = load_model(first).config
    scores = [found["metrics"][MEASURES[config.task]] for found in runs]
    return {
        "hidden_size": config.hidden_size,
        "parameters": parameters(config),
        MEASURES[config.task]: scores,
        "mean": mean(scores),
        "standard_deviation": stdev(scores) if len(scores) > 1 else None,
        "validation_loss": [lowest_loss(run / str(seed)) for seed in seeds],
        "epochs": [found["epochs"] for found in runs],
        "seconds": [found["seconds"] for found in runs],
        "largest_difference": max(row["difference"] for row in parity),
    }


def lowest_loss(run: Path) -> float:
    """The validation loss of the epoch that was kept."""
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return min(epoch["validation_loss"] or math.inf for epoch in epochs)


def compare(data: str, seeds: range, *options: str) -> dict[str, Any]:
    """Both kinds on one data set."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        plain = measure(data, seeds, list(options), runs / "plain")
        hybrid = as_large(load_model(runs / "plain" / str(seeds[0])).config)
        found = measure(data, seeds, [*options, *flags(hybrid)], runs / "hybrid")
    return {"plain": plain, "hybrid": found}


def main(names: list[str]) -> None:
    """Measure, print and write down; data that are not measured keep what is written."""
    target = HERE / "hybrid.json"
    for data in names:
        name = Path(data).stem
        found = compare(data, SEEDS) if data in BUNDLED else compare(data, range(1), *TEXT)
        print(name, json.dumps(found), flush=True)
        results = {**(json.loads(target.read_text()) if target.exists() else {}), name: found}
        target.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or BUNDLED)
