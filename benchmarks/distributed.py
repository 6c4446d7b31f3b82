"""One training step of 128 rows by one process, by two, and by two under DistributedDataParallel.

Each process has one thread. One process alone takes all rows; two take half each and sum gradients
in one flat tensor, as `train` under torchrun does, or through DistributedDataParallel's buckets.
The three take turns round by round in the same two processes, so that ratios hold where others use
the machine.

python benchmarks/distributed.py [--rounds N] [--steps N] [--output FILE]
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.distributed.run import get_args_parser, run
from torch.nn.parallel import DistributedDataParallel

from lstm_compile.bench.machine import machine
from lstm_compile.config import ModelConfig
from lstm_compile.model.batch import Batch
from lstm_compile.model.model import forward, init_params, trainable
from lstm_compile.training.processes import ALONE, ProcessGroup, joined_processes
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.step import adam_update, clip_by_norm, init_adam, train_step

ROWS, TIME, FEATURES, HIDDEN, CLASSES = 128, 512, 64, 128, 10
CONFIG = ModelConfig(
    task="classify", input_size=FEATURES, output_size=CLASSES, hidden_size=HIDDEN,
    num_layers=1, bidirectional=False, dropout=0.0, head_dropout=0.0,
)  # fmt: skip
TRAINING = TrainingConfig(batch_size=ROWS, backend="vendor", threads=1, device="cpu")
ONE, FLAT, DDP = "one process", "two, one flat sum", "two, DistributedDataParallel"


class Wrapped(nn.Module):
    """The functional model as DistributedDataParallel wants it."""

    def __init__(self) -> None:
        super().__init__()
        whole = init_params(CONFIG, 0)
        self.fixed = {name: value for name, value in whole.items() if name not in trainable(whole)}
        self.names = list(trainable(whole))
        self.weights = nn.ParameterList([nn.Parameter(whole[name]) for name in self.names])

    def forward(self, batch: Batch) -> Tensor:
        """The mean cross-entropy of the batch."""
        params = {**self.fixed, **dict(zip(self.names, self.weights, strict=True))}
        logits, _ = forward(params, CONFIG, batch.x, batch.lengths, training=True, backend="vendor")
        return nn.functional.cross_entropy(logits, batch.y, label_smoothing=0.1)


def batch_of(kind: str, processes: ProcessGroup) -> Batch:
    """The rows of one process; the same batch for every number of them."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, TIME + 1, (ROWS,), generator=generator)
    lengths = torch.full((ROWS,), TIME) if kind == "full" else lengths
    x = torch.randn(ROWS, TIME, FEATURES, generator=generator)
    x = x.masked_fill((torch.arange(TIME) >= lengths[:, None])[..., None], 0.0)
    own = processes.share(torch.arange(ROWS), lengths)
    longest = int(lengths[own].max())
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    return Batch(x[own, :longest], lengths[own], y[own])


def functional(batch: Batch, processes: ProcessGroup) -> Callable[[], None]:
    """A step of the package, repeated."""
    params = init_params(CONFIG, 0)
    optimizer = init_adam(params)

    def step() -> None:
        nonlocal params, optimizer
        args = (batch, 1e-3, CONFIG, TRAINING, None, (), None, processes)
        params, optimizer, *_ = train_step(params, optimizer, *args)

    return step


def wrapped(batch: Batch) -> Callable[[], None]:
    """The same step with DistributedDataParallel's gradients."""
    module = DistributedDataParallel(model := Wrapped())
    optimizer = init_adam(init_params(CONFIG, 0))

    def step() -> None:
        nonlocal optimizer
        module.zero_grad()
        module(batch).backward()
        params = dict(zip(model.names, (w.detach() for w in model.weights), strict=True))
        gradients = {n: w.grad for n, w in zip(model.names, model.weights, strict=True)}
        clipped = clip_by_norm(gradients, TRAINING.clip_norm)  # type: ignore[arg-type]
        updated, optimizer = adam_update(params, clipped, optimizer, 1e-3, TRAINING)
        with torch.no_grad():
            for name, weight in zip(model.names, model.weights, strict=True):
                weight.copy_(updated[name])

    return step


def measure(kind: str, processes: ProcessGroup, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step, round by round, of who takes turns."""
    own = batch_of(kind, processes)
    turns = {
        ONE: functional(batch_of(kind, ALONE), ALONE), FLAT: functional(own, processes),
        DDP: wrapped(own),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):  # the first warms up
        for name, step in turns.items():
            distributed.barrier()
            began = time.perf_counter()
            if name != ONE or processes.is_first:
                for _ in range(steps):
                    step()
            distributed.barrier()
            if number:
                found[name].append((time.perf_counter() - began) / steps)
    return found


def main() -> None:
    """Start the two processes; the first prints one JSON object, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    if "RANK" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        words = ["--standalone", "--nproc-per-node", "2", __file__, "--rounds", str(args.rounds)]
        words += ["--steps", str(args.steps), "--output", str(args.output)]
        run(get_args_parser().parse_args(words))
        return
    torch.set_num_threads(1)
    report = {}
    with joined_processes("cpu") as processes:
        for kind in ("full", "uniform"):
            found = measure(kind, processes, args.rounds, args.steps)
            ratios = {
                name: statistics.median(
                    one / other for one, other in zip(found[ONE], found[name], strict=True)
                )
                for name in (FLAT, DDP)
            }
            seconds = {name: statistics.median(times) for name, times in found.items()}
            report[kind] = {"seconds a step": seconds, "throughput over one process": ratios}
    if processes.is_first:
        case = {"rows": ROWS, "steps": TIME, "input": FEATURES, "hidden": HIDDEN}
        text = json.dumps({"case": case, **report, **machine(torch.device("cpu"))}, indent=1)
        args.output.write_text(text + "\n")
        print(text)


if __name__ == "__main__":
    main()
