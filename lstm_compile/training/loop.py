"""The training loop: passes over the data, validation, early stopping, the best weights kept."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.calibration import fastest_threads
from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.devices import cpu_threads, fitting_threads, keep_freed_memory
from lstm_compile.model import Params
from lstm_compile.tasks import Metrics, metrics, training_loss
from lstm_compile.training.config import TrainingConfig
from lstm_compile.training.passes import Passed, class_weights_of, passes, seeded
from lstm_compile.training.prediction import predict_all as predict_all
from lstm_compile.training.text import score_text, text_metrics, text_passes, window_of


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
    train: Examples | Corpus,
    validation: Examples | Corpus | None = None,
    on_epoch: Callable[[Epoch, Params], None] = lambda epoch, params: None,
    rows: Tensor | None = None,
) -> Fit:
    """Train until the epochs are used up, validation stops getting better, or Ctrl-C.

    Args:
        params: where to start; their device is where the work is done.
        config: the architecture.
        training: everything else, the number of CPU threads while it lasts among it.
        train: what the weights are fitted on; on the device of `params` or on the CPU, from where
            batches are copied as they are needed.
        validation: what stops training and picks the weights, likewise; without it all epochs are
            run and the last weights kept.
        on_epoch: called after each epoch with its figures and the weights it ended with.
        rows: int64 (len(train),), what errors call the sequences of `train`; 0, 1, ... if None.

    Raises:
        RunError: a loss was not finite; the message names the batch.
    """
    best, stopped, lowest = params, "epochs", math.inf
    epochs, losses = list[Epoch](), list[float]()
    weights = None
    if not isinstance(train, Corpus):
        weights = class_weights_of(params, config, training, train)
    with _surroundings(params, config, training):
        try:
            began = time.perf_counter()
            for passed in _passes(params, config, training, train, losses, rows):
                loss, scores = _validate(passed.params, config, training, validation, weights)
                seconds, is_best = time.perf_counter() - began, not validation or loss < lowest
                epochs.append(
                    Epoch(len(epochs) + 1, passed.loss, loss, scores, passed.rate, seconds, is_best)
                )
                best, lowest = passed.params if is_best else best, min(lowest, loss)
                losses.append(loss)
                on_epoch(epochs[-1], passed.params)
                if _without_improvement(epochs) >= training.patience:
                    stopped = "patience"
                    break
                began = time.perf_counter()
        except KeyboardInterrupt:
            stopped = "interrupt"
    return Fit(best, epochs, stopped)


def refit(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Corpus,
    found: Fit,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Params:
    """Train again, on more data, for as many epochs as `found` took to its best; no validation.

    The learning rate falls over `training.epochs` as it did there, and its plateaus are those of
    that validation.

    Args:
        params: where to start, with scalers of `train`; see `fit`.
        config: the architecture.
        training: what `found` was trained with.
        train: all training data.
        found: gives the epochs; its best must be there.
        on_epoch: called after each epoch.

    Raises:
        RunError: a loss was not finite; the message names the batch.
    """
    wanted = found.best.epoch if found.best else 0
    with _surroundings(params, config, training):
        began = time.perf_counter()
        losses = [epoch.validation_loss for epoch in found.epochs]
        again = _passes(params, config, training, train, losses, None)
        for number, passed in enumerate(islice(again, wanted), 1):
            params, seconds = passed.params, time.perf_counter() - began
            on_epoch(Epoch(number, passed.loss, math.nan, {}, passed.rate, seconds, False))
            began = time.perf_counter()
    return params


def threads_of(config: ModelConfig, training: TrainingConfig) -> int:
    """How many CPU threads a training takes: those asked for, or what suits its size.

    Large steps take all. Of small ones, by the rule, one thread would do; on a CPU with nothing
    else to do several may still be faster, which is measured once in a process.
    """
    most, batch = torch.get_num_threads(), training.batch_size
    if training.threads or fitting_threads(batch, config.hidden_size) == most:
        return training.threads or most
    return fastest_threads(config.hidden_size, config.input_size, batch, most)


@contextmanager
def _surroundings(params: Params, config: ModelConfig, training: TrainingConfig) -> Iterator[None]:
    """The threads and random numbers of a training, and after it as they were."""
    keep_freed_memory()
    device = params["head.bias"].device
    with cpu_threads(threads_of(config, training)), seeded(device, training.seed):
        yield


def _passes(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Corpus,
    losses: Sequence[float],
    rows: Tensor | None,
) -> Iterator[Passed]:
    if isinstance(train, Corpus):
        return text_passes(params, config, training, train, losses)
    return passes(params, config, training, train, losses, rows)


def _validate(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    validation: Examples | Corpus | None,
    class_weights: Tensor | None,
) -> tuple[float, Metrics]:
    """The training loss without label smoothing, and the metrics."""
    if validation is None:
        return math.nan, {}
    if isinstance(validation, Corpus):
        options = training.backend, training.chunk, window_of(config, training.unroll)
        scores = score_text(params, config, validation, *options)
        found = text_metrics(scores)
        return found["loss"], found
    prediction = predict_all(params, config, validation, training.backend, training.chunk)
    y, unit = validation.y.to(prediction.device), validation.unit
    unit = None if unit is None else unit.to(prediction.device)
    plain = replace(training, label_smoothing=0.0)
    loss = training_loss(params, config, plain, prediction, y, class_weights, unit)
    return float(loss), metrics(config, prediction, y)


def _without_improvement(epochs: list[Epoch]) -> int:
    best = max((epoch.epoch for epoch in epochs if epoch.best), default=0)
    return epochs[-1].epoch - best
