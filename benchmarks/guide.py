"""The guide program, in plain PyTorch and through this package: 50 epochs of a small LSTM.

1000 random sequences of 20 steps and 10 features, two layers of 64, batches of 32, Adam, mean
squared error of a linear head on the last step. Cold: the time of a fresh process that does it all,
imports and compiling counted. Warm: its second half of epochs. The two take turns.

python benchmarks/guide.py [--rounds N] [--threads N] [--device NAME] [--output FILE]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SEQUENCES, TIME, FEATURES, HIDDEN, LAYERS = 1000, 20, 10, 64, 2
BATCH, EPOCHS, RATE = 32, 50, 1e-3
PLAIN, PACKAGE = "nn.LSTM", "lstm_compile"


def plain(epochs: int, threads: int, device: str) -> list[float]:
    """The program as tutorials write it; when each epoch ended."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(FEATURES, HIDDEN, LAYERS, batch_first=True)
            self.head = nn.Linear(HIDDEN, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            output, _ = self.lstm(x)
            return self.head(output[:, -1])

    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, y = (torch.randn(SEQUENCES, *size) for size in ((TIME, FEATURES), (1,)))
    x, y = x.to(device), y.to(device)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    model = Model().to(device)
    optimizer, measure = torch.optim.Adam(model.parameters(), lr=RATE), nn.MSELoss()
    ends = []
    for _ in range(epochs):
        total = 0.0
        for batch, target in loader:
            optimizer.zero_grad()
            loss = measure(model(batch), target)
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"loss {total / len(loader):.4f}", file=sys.stderr)
        ends.append(time.perf_counter())
    return ends


def package(epochs: int, threads: int, device: str) -> list[float]:
    """The same work through this package; when each epoch ended."""
    import torch

    from lstm_compile import ModelConfig, TrainingConfig, fit, from_padded, init_params

    torch.manual_seed(0)
    x, y = torch.randn(SEQUENCES, TIME, FEATURES), torch.randn(SEQUENCES, 1)
    config = ModelConfig(
        task="regress", input_size=FEATURES, output_size=1, hidden_size=HIDDEN, num_layers=LAYERS,
        bidirectional=False, dropout=0.0, head_dropout=0.0, pooling="last", scaling="none",
        target_scaling="none",
    )  # fmt: skip
    training = TrainingConfig(
        epochs=epochs, batch_size=BATCH, learning_rate=RATE, optimizer="adam", weight_decay=0.0,
        schedule="constant", warmup=0.0, clip_norm=0.0, threads=threads,
    )  # fmt: skip
    ends = list[float]()
    data = from_padded(x, y).to(device)
    params = {name: value.to(device) for name, value in init_params(config, seed=0).items()}
    fit(params, config, training, data, on_epoch=lambda *_: ends.append(time.perf_counter()))
    return ends


PROGRAMS = {PLAIN: plain, PACKAGE: package}


def run(name: str, threads: int, device: str) -> dict[str, float]:
    """One fresh process that does the whole work: its seconds, and those of an epoch once warm."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--one", name, "--threads", str(threads)]
    command += ["--device", device]
    done = subprocess.run(command, check=True, capture_output=True)
    return {"cold": time.perf_counter() - began, "warm": json.loads(done.stdout)}


def warm(program: Callable[[int, int, str], list[float]], threads: int, device: str) -> float:
    """Seconds of an epoch, over the second half of them."""
    ends = program(EPOCHS, threads, device)
    half = EPOCHS // 2
    return (ends[-1] - ends[half - 1]) / (EPOCHS - half)


def compare(runs: dict[str, list[dict[str, float]]], kind: str) -> dict[str, Any]:
    """Medians of both programs, and the median of how many times faster this package was."""
    seconds = {name: [each[kind] for each in of_one] for name, of_one in runs.items()}
    ratios = [a / b for a, b in zip(seconds[PLAIN], seconds[PACKAGE], strict=True)]
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "times_faster": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    """Measure, print and, with --output, write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: what each takes by itself")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output")
    parser.add_argument("--one", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(warm(PROGRAMS[options.one], options.threads, options.device))
        return
    runs: dict[str, list[dict[str, float]]] = {PLAIN: [], PACKAGE: []}
    for index in range(options.rounds):
        for name in (PLAIN, PACKAGE) if index % 2 else (PACKAGE, PLAIN):
            runs[name].append(run(name, options.threads, options.device))
    result: dict[str, Any] = {kind: compare(runs, kind) for kind in ("cold", "warm")}
    import torch

    result["machine"] = {
        "cores": os.cpu_count(), "threads": options.threads or "default",
        "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.output:
        with open(options.output, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
