"""Training on Parquet files that are streamed, against the same data in memory.

Makes a folder of Parquet files of random walks of 50 to 150 steps and 16 features, trains on it by
`train` with and without `--stream`, by turns, each in a process of its own, and deletes it. The
throughput is that of the epochs, in training sequences a second, validation counted; the peak is
the largest resident memory of the process from start to end.

python benchmarks/larger_than_memory.py [--gigabytes N] [--stream MB] [--rounds N] [--epochs N]
    [--folder DIR] [--output FILE]
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lstm_compile.bench.machine import machine

FEATURES, CLASSES, FILES, GROUP = 16, 4, 8, 1 << 17
SETTINGS = [
    "--hidden-size", "64", "--num-layers", "1", "--no-bidirectional", "--batch-size", "128",
    "--validation", "0.02", "--device", "cpu",
]  # fmt: skip


def make(folder: Path, size: float) -> None:
    """Write files of `size` bytes of features in all."""
    generator, first = np.random.default_rng(0), 0
    for number in range(FILES):
        count = round(size / FILES / (100 * FEATURES * 4))
        lengths = generator.integers(50, 151, count)
        labels = generator.integers(0, CLASSES, count)
        x = generator.standard_normal((lengths.sum(), FEATURES), np.float32)
        x[:, 0] += 0.1 * np.repeat(labels, lengths)
        columns = {f"f{index}": x[:, index] for index in range(FEATURES)}
        columns["id"] = np.repeat(np.arange(first, first + count), lengths)
        columns["label"] = np.repeat(labels, lengths)
        path = folder / f"part-{number}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=GROUP, use_dictionary=["label"])
        first += count


def train(data: Path, run: Path, *options: str) -> dict[str, float]:
    """One training in a process of its own."""
    words = [sys.executable, "-m", "lstm_compile", "train", data, "--output", run, *SETTINGS]
    began = time.perf_counter()
    pid = os.posix_spawn(sys.executable, list(map(str, [*words, *options])), os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"train ended with {os.waitstatus_to_exitcode(status)}")
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": time.perf_counter() - began,
        "epoch_seconds": statistics.median(epoch["seconds"] for epoch in epochs),
        "peak_mib": usage.ru_maxrss / 1024,
        "train_loss": epochs[-1]["train_loss"],
    }


def main() -> None:
    """Make, train by turns, print and delete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--stream", type=int, default=512, help="megabytes")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", help="where there is room for the files")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"streamed": [], "in memory": []}
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        make(data, asked.gigabytes * 1e9)
        written = sum(file.stat().st_size for file in data.iterdir())
        for number in range(asked.rounds):
            for name, runs in found.items():
                options = ["--epochs", str(asked.epochs)]
                if name == "streamed":
                    options += ["--stream", str(asked.stream)]
                runs.append(train(data, Path(scratch) / f"{name}-{number}", *options))
    ratios = [
        kept["epoch_seconds"] / streamed["epoch_seconds"]
        for streamed, kept in zip(*found.values(), strict=True)
    ]
    result = {
        "bytes": written,
        "stream_megabytes": asked.stream,
        "throughput_of_in_memory": statistics.median(ratios),
        **found,
        "machine": machine(torch.device("cpu")),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
