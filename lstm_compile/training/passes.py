"""Passes over the training data: batches drawn, augmented, stepped on, the weights averaged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import bucketed_batches
from lstm_compile.data.examples import Examples
from lstm_compile.errors import RunError
from lstm_compile.model import Params, scaler_of, trainable
from lstm_compile.tasks import balanced_weights
from lstm_compile.training.augment import augment
from lstm_compile.training.config import TrainingConfig
from lstm_compile.training.feeding import feed
from lstm_compile.training.step import (
    average_update,
    init_adam,
    learning_rate_at,
    plateau_factor,
    train_step,
)

SHOWN_ROWS = 8


class Passed(NamedTuple):
    """One pass over the training data."""

    params: Params  # at its end; with `ema` their average over all steps so far
    loss: float
    rate: float  # of the last step


def passes(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples,
    losses: Sequence[float],
    rows: Tensor | None,
) -> Iterator[Passed]:
    """Train, pass by pass; the caller validates, and stops when it has enough.

    Args:
        params: where to start.
        config: the architecture.
        training: everything else.
        train: on the device of `params` or on the CPU.
        losses: validation losses; before pass k it must hold those of the k - 1 before.
        rows: int64 (len(train),), what errors call the sequences; 0, 1, ... if None.

    Raises:
        RunError: a loss was not finite; the message names the batch.
    """
    generator = torch.Generator().manual_seed(training.seed)
    optimizer, lengths = init_adam(params, training.freeze), train.lengths.cpu()
    average, scaler = trainable(params, training.freeze), scaler_of(params, "scaler")
    weights = class_weights_of(params, config, training, train)
    steps = training.epochs * _steps_of(len(train), training)
    for number in range(1, training.epochs + 1):
        found, rate = [], 0.0
        factor = plateau_factor(losses[: number - 1], training)
        groups = _groups(_batches(lengths, training, generator), training)
        for gathered in feed(train, lengths, groups, scaler.shift.device):
            rate = factor * learning_rate_at(optimizer.step, steps, training)
            batch, *more = (augment(each, scaler, training, generator) for each in gathered)
            params, optimizer, loss, _ = train_step(
                params, optimizer, batch, rate, config, training, weights, more
            )
            if training.ema:
                average = average_update(average, params, optimizer.step, training.ema)
            found.append(loss)
        batches = [torch.cat(group) for group in groups]
        mean_loss = float(_finite(torch.stack(found), batches, number, rows).mean())
        yield Passed({**params, **average} if training.ema else params, mean_loss, rate)


def _batches(lengths: Tensor, training: TrainingConfig, generator: torch.Generator) -> list[Tensor]:
    """The batches of an epoch: of all rows, or of `epoch_size` drawn at random."""
    if not 0 < training.epoch_size < len(lengths):
        return bucketed_batches(lengths, training.batch_size, generator)
    drawn = torch.randperm(len(lengths), generator=generator)[: training.epoch_size]
    batches = bucketed_batches(lengths[drawn], training.batch_size, generator)
    return [drawn[batch] for batch in batches]


def _steps_of(count: int, training: TrainingConfig) -> int:
    count = min(count, training.epoch_size or count)
    return ceil(ceil(count / training.batch_size) / training.accumulate)


def _groups(batches: list[Tensor], training: TrainingConfig) -> list[list[Tensor]]:
    """The batches of each step."""
    size = training.accumulate
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def class_weights_of(
    params: Params, config: ModelConfig, training: TrainingConfig, train: Examples
) -> Tensor | None:
    """Weights of the classes in the loss, from the data that are trained on; None: all alike."""
    if training.class_weight == "none":
        return None
    return balanced_weights(train.y, config.output_size).to(params["head.weight"].device)


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


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The global generators seeded, and after it as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # torch.manual_seed would seed every CUDA device, those that fork_rng leaves alone as well
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
