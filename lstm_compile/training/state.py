"""Where a training stands: all that it goes on from, as plain values and tensors."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lstm_compile.model.model import Params, trainable
from lstm_compile.recurrence.cell import LSTMState
from lstm_compile.tasks.metrics import Metrics
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.step import AdamState, init_adam


class TrainState(NamedTuple):
    """Where a training stands between two steps; each step maps one to the next.

    Attributes:
        params: what the next step starts from.
        optimizer: likewise.
        average: of the learned parameters over all steps; empty without `ema`.
        carried: task `lm`: what the lanes have read so far; None at the start of a text.
        epoch: that the next step belongs to, from 1.
        position: steps of that epoch that are done.
        order: uint8, the generator of batches before it drew those of `epoch`.
        random: uint8 each, the global generators that dropout and augmentation draw from: the
            CPU's and, where the work is done there, a CUDA device's.
        sums: float64 (2,), of weighted losses and of their weights, of the epoch of the last step.
        skipped: int64 scalar, steps so far whose loss or gradients were not finite.
    """

    params: Params
    optimizer: AdamState
    average: Params
    carried: LSTMState | None
    epoch: int
    position: int
    order: Tensor
    random: tuple[Tensor, ...]
    sums: Tensor
    skipped: Tensor

    @property
    def weights(self) -> Params:
        """What is validated and kept: with `ema` the average, else the parameters."""
        return {**self.params, **self.average}

    @property
    def mean_loss(self) -> float:
        """Of the epoch of the last step."""
        total, weight = self.sums.tolist()
        return total / weight if weight else float("nan")


class Epoch(NamedTuple):
    """What one epoch gave; a line of metrics.jsonl."""

    epoch: int
    train_loss: float
    validation_loss: float  # NaN where nothing is validated, as in a refit
    validation: Metrics  # empty there
    learning_rate: float
    seconds: float
    best: bool  # of all so far; without validation the last

    @property
    def is_refit(self) -> bool:
        """Whether nothing was validated and nothing chosen: another epoch said how many."""
        return not (self.validation or self.best)


class Progress(NamedTuple):
    """How far a training came.

    Attributes:
        state: after the last step.
        best: the weights of the best epoch; before there is one, those that training started from.
        epochs: that are over and validated.
        again: epochs of the refit that are over; None before it began.
        seconds: since the start.
    """

    state: TrainState
    best: Params
    epochs: tuple[Epoch, ...] = ()
    again: tuple[Epoch, ...] | None = None
    seconds: float = 0.0

    @property
    def best_epoch(self) -> Epoch | None:
        """The epoch whose weights were kept; None if not one was finished."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.best), None)

    @property
    def losses(self) -> list[float]:
        """Validation losses, epoch by epoch."""
        return [epoch.validation_loss for epoch in self.epochs]


def begin(params: Params, training: TrainingConfig) -> TrainState:
    """Before the first step; the global generators are taken as they are."""
    device = params["head.bias"].device
    learned = trainable(params, training.freeze)
    return TrainState(
        params,
        init_adam(params, training.freeze),
        learned if training.ema else {},
        None,
        1,
        0,
        torch.Generator().manual_seed(training.seed).get_state(),
        global_random(device),
        torch.zeros(2, dtype=torch.float64, device=device),
        torch.zeros((), dtype=torch.int64, device=device),
    )


def on_device(progress: Progress, device: torch.device) -> Progress:
    """The same progress with what a step works on where it works; generators stay on the CPU."""
    moved = tree_map(lambda part: part.to(device) if isinstance(part, Tensor) else part, progress)
    state, before = moved.state, progress.state
    return progress._replace(
        state=state._replace(order=before.order, random=before.random), best=moved.best
    )


def global_random(device: torch.device) -> tuple[Tensor, ...]:
    """The states of the global generators that work on `device` draws from."""
    states = (torch.get_rng_state(),)
    return states if device.type == "cpu" else (*states, torch.cuda.get_rng_state(device))


def set_global_random(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Put the global generators where `global_random` found them."""
    torch.set_rng_state(states[0])
    for state in states[1:] if device.type == "cuda" else ():
        torch.cuda.set_rng_state(state, device)
