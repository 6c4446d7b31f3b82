"""The training loop: epochs of pure steps, validation, early stopping, the best weights kept."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import bucketed_batches, ordered_batches
from lstm_compile.data.sequences import Batch, Sequences, gather
from lstm_compile.errors import RunError
from lstm_compile.model import Params, forward
from lstm_compile.recurrence import DEFAULT_CHUNK, Backend
from lstm_compile.tasks import Metrics, metrics, training_loss
from lstm_compile.training.config import TrainingConfig
from lstm_compile.training.step import init_adam, learning_rate_at, train_step

SHOWN_ROWS = 8


class Epoch(NamedTuple):
    """What one epoch gave; a line of metrics.jsonl."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation: Metrics
    learning_rate: float
    seconds: float
    best: bool


class Fit(NamedTuple):
    """What training gave: the best weights and how they came about."""

    params: Params
    epochs: list[Epoch]
    stopped: str  # "epochs", "patience" or "interrupt"

    @property
    def best(self) -> Epoch | None:
        """The epoch whose weights were kept; None if not one was finished."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.best), None)


def fit(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Sequences,
    validation: Sequences,
    on_epoch: Callable[[Epoch, Params], None] = lambda epoch, params: None,
    rows: Tensor | None = None,
) -> Fit:
    """Train until the epochs are used up, validation stops getting better, or Ctrl-C.

    Args:
        params: where to start; data and params on one device.
        config: the architecture.
        training: everything else.
        train: what the weights are fitted on.
        validation: what stops training and picks the weights.
        on_epoch: called after each epoch with its figures and the weights it ended with.
        rows: int64 (len(train),), what errors call the sequences of `train`; 0, 1, ... if None.

    Raises:
        RunError: a loss was not finite; the message names the batch.
    """
    best, epochs, stopped = params, [], "epochs"
    with torch.random.fork_rng(devices=_cuda_devices(train.x)):
        _seed(train.x.device, training.seed)
        try:
            for epoch, reached in _epochs(params, config, training, train, validation, rows):
                epochs.append(epoch)
                best = reached if epoch.best else best
                on_epoch(epoch, reached)
                if _without_improvement(epochs) >= training.patience:
                    stopped = "patience"
                    break
        except KeyboardInterrupt:
            stopped = "interrupt"
    return Fit(best, epochs, stopped)


def _epochs(
    start: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Sequences,
    validation: Sequences,
    rows: Tensor | None,
) -> Iterator[tuple[Epoch, Params]]:
    generator = torch.Generator().manual_seed(training.seed)
    params, optimizer, lengths = start, init_adam(start), train.lengths.cpu()
    steps = training.epochs * -(-len(train) // training.batch_size)
    lowest = float("inf")
    for number in range(1, training.epochs + 1):
        began, losses, rate = time.perf_counter(), [], 0.0
        batches = bucketed_batches(lengths, training.batch_size, generator)
        for indices in batches:
            rate = learning_rate_at(optimizer.step, steps, training)
            batch = _gather(train, lengths, indices)
            params, optimizer, loss = train_step(params, optimizer, batch, rate, config, training)
            losses.append(loss)
        mean_loss = float(_finite(torch.stack(losses), batches, number, rows).mean())
        held_out, scores = _validate(params, config, training, validation)
        seconds = time.perf_counter() - began
        best = held_out < lowest
        yield Epoch(number, mean_loss, held_out, scores, rate, seconds, best), params
        lowest = min(lowest, held_out)


def _validate(
    params: Params, config: ModelConfig, training: TrainingConfig, validation: Sequences
) -> tuple[float, Metrics]:
    """The training loss without label smoothing, and the metrics."""
    prediction = predict_all(params, config, validation, training.backend, training.chunk)
    plain = replace(training, label_smoothing=0.0)
    loss = training_loss(params, config, plain, prediction, validation.y)
    return float(loss), metrics(config, prediction, validation.y)


def predict_all(
    params: Params,
    config: ModelConfig,
    data: Sequences,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
    batch_size: int = 256,
) -> Tensor:
    """`forward` over a whole data set, (rows, output_size), in the data's order."""
    lengths = data.lengths.cpu()
    batches = ordered_batches(lengths, batch_size)
    with torch.inference_mode():
        parts = []
        for indices in batches:
            batch = _gather(data, lengths, indices)
            parts.append(
                forward(params, config, batch.x, batch.lengths, backend=backend, chunk=chunk)[0]
            )
        return torch.cat(parts)[torch.argsort(torch.cat(batches)).to(parts[0].device)]


def _gather(data: Sequences, lengths: Tensor, indices: Tensor) -> Batch:
    return gather(data, indices.to(data.x.device), time=max(1, int(lengths[indices].max())))


def _finite(losses: Tensor, batches: list[Tensor], epoch: int, rows: Tensor | None) -> Tensor:
    values = losses.cpu()
    if not bool(values.isfinite().all()):
        position = int((~values.isfinite()).nonzero()[0])
        batch = batches[position]
        names = (batch if rows is None else rows[batch]).tolist()
        shown = ", ".join(map(str, names[:SHOWN_ROWS]))
        more = f" and {len(names) - SHOWN_ROWS} more" if len(names) > SHOWN_ROWS else ""
        raise RunError(
            f"the loss of epoch {epoch}, batch {position + 1} of {len(batches)} is "
            f"{float(values[position])} (sequences {shown}{more} of the training data, counted "
            "from 0); look at their values, or lower --learning-rate"
        )
    return values


def _without_improvement(epochs: list[Epoch]) -> int:
    best = max((epoch.epoch for epoch in epochs if epoch.best), default=0)
    return epochs[-1].epoch - best


def _seed(device: torch.device, seed: int) -> None:
    # torch.manual_seed would seed every CUDA device, those that fork_rng does not restore as well
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _cuda_devices(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.device.type == "cuda" else []
