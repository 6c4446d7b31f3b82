"""Where a training stands: all that is needed to continue it, as plain values and tensors."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lstm_compile.model.model import Params, trainable
from lstm_compile.tasks.metrics import Metrics
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.step import AdamState, init_adam


class TrainState(NamedTuple):
    """Where a training stands between two steps; each step maps one state to the next."""

    params: Params  # what the next step starts from
    optimizer: AdamState
    average: Params  # of the learned parameters over all steps; empty without `ema`
    carried: tuple[Tensor, ...] | None  # of every lane, for task `lm`; None at the start of a text
    epoch: int  # that the next step belongs to, from 1
    position: int  # how many steps of that epoch are done
    order: Tensor  # uint8, the generator of batches before it drew those of `epoch`
    # uint8 each, the states of the global generators that dropout and augmentation draw from: the
    # CPU's and, where a CUDA device does the work, that device's
    random: tuple[Tensor, ...]
    sums: Tensor  # float64 (2,), of weighted losses and of weights over the last step's epoch
    skipped: Tensor  # int64 scalar, steps so far whose loss or gradients were not finite

    @property
    def weights(self) -> Params:
        """What is validated and kept: the averages with `ema`, else the parameters."""
        return {**self.params, **self.average}

    @property
    def mean_loss(self) -> float:
        """The mean training loss of the epoch that the last step belonged to."""
        total, weight = self.sums.tolist()
        return total / weight if weight else float("nan")


class Epoch(NamedTuple):
    """The figures of one epoch; a line of metrics.jsonl."""

    epoch: int
    train_loss: float
    validation_loss: float  # NaN without validation, as in a refit
    validation: Metrics  # empty without validation
    learning_rate: float
    seconds: float
    best: bool  # the best epoch so far; without validation the last one

    @property
    def is_refit(self) -> bool:
        """Whether the epoch belongs to a refit, which validates nothing and chooses nothing."""
        return not (self.validation or self.best)


class Progress(NamedTuple):
    """How far a training has come."""

    state: TrainState  # after the last step
    best: Params  # of the best epoch; before the first one, those that training began with
    epochs: tuple[Epoch, ...] = ()  # finished and validated
    refit_epochs: tuple[Epoch, ...] | None = None  # finished; None before the refit
    seconds: float = 0.0  # since the start

    @property
    def best_epoch(self) -> Epoch | None:
        """The epoch whose weights were kept; None if no epoch is finished."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.best), None)

    @property
    def is_refitted(self) -> bool:
        """Whether the refit has done as many epochs as the fit took to its best one."""
        return len(self.refit_epochs or ()) >= (self.best_epoch.epoch if self.best_epoch else 0)

    @property
    def losses(self) -> list[float]:
        """The validation losses before this epoch; a refit goes through those of the fit again."""
        count = len(self.epochs if self.refit_epochs is None else self.refit_epochs)
        return [epoch.validation_loss for epoch in self.epochs[:count]]


class Fit(NamedTuple):
    """What training gave: how far it came, and why it stopped."""

    progress: Progress
    stopped: str  # "epochs", "patience" or "interrupt"
    backend: str = ""  # which backend computed the recurrence, and why

    @property
    def params(self) -> Params:
        """The best weights."""
        return self.progress.best

    @property
    def epochs(self) -> list[Epoch]:
        """All finished epochs."""
        return list(self.progress.epochs)

    @property
    def best(self) -> Epoch | None:
        """The epoch whose weights were kept; None if no epoch is finished."""
        return self.progress.best_epoch


def initial_state(params: Params, training: TrainingConfig) -> TrainState:
    """The state before the first step; the global generators are taken as they are."""
    device = params["head.bias"].device
    learned = trainable(params, training.freeze)
    return TrainState(
        params,
        optimizer=init_adam(params, training.freeze),
        average=learned if training.ema else {},
        carried=None,
        epoch=1,
        position=0,
        order=torch.Generator().manual_seed(training.seed).get_state(),
        random=random_states(device),
        sums=torch.zeros(2, dtype=torch.float64, device=device),
        skipped=torch.zeros((), dtype=torch.int64, device=device),
    )


def move_progress(progress: Progress, device: torch.device) -> Progress:
    """The same progress on `device`; the states of generators stay on the CPU."""
    moved = tree_map(lambda part: part.to(device) if isinstance(part, Tensor) else part, progress)
    order, random = progress.state.order, progress.state.random
    state = moved.state._replace(order=order, random=random)
    return progress._replace(state=state, best=moved.best)


def random_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of the global generators that work on `device` draws from."""
    states = (torch.get_rng_state(),)
    return states if device.type == "cpu" else (*states, torch.cuda.get_rng_state(device))


def set_random_states(states: tuple[Tensor, ...], device: torch.device) -> None:
    """Set the global generators to what `random_states` gave."""
    torch.set_rng_state(states[0])
    for state in states[1:] if device.type == "cuda" else ():
        torch.cuda.set_rng_state(state, device)
