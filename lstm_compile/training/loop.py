"""The training loop: passes over the data, validation, early stopping, the best weights kept."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.stream import Stream
from lstm_compile.devices import cpu_threads, fitting_threads, keep_freed_memory
from lstm_compile.evaluation.perplexity import score_text, window_of
from lstm_compile.evaluation.predict import predict_all as predict_all
from lstm_compile.model.model import Params
from lstm_compile.recurrence.calibrate import fastest_threads
from lstm_compile.tasks.losses import training_loss
from lstm_compile.tasks.metrics import Metrics, metrics, text_metrics
from lstm_compile.training.epoch import Course, class_weights_of, seeded, steps
from lstm_compile.training.processes import team
from lstm_compile.training.settings import LARGEST_SEED, TrainingConfig
from lstm_compile.training.state import Epoch as Epoch
from lstm_compile.training.state import Progress, begin, set_global_random
from lstm_compile.training.step import plateau_factor

OnProgress = Callable[[Progress], None]


class Fit(NamedTuple):
    """What training gave: how far it came, and why no further."""

    progress: Progress
    stopped: str  # "epochs", "patience" or "interrupt"

    @property
    def params(self) -> Params:
        """The best weights."""
        return self.progress.best

    @property
    def epochs(self) -> list[Epoch]:
        """All that were finished."""
        return list(self.progress.epochs)

    @property
    def best(self) -> Epoch | None:
        """The epoch whose weights were kept; None if not one was finished."""
        return self.progress.best_epoch


def fit(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Stream | Corpus,
    validation: Examples | Corpus | None = None,
    on_epoch: Callable[[Epoch, Params], None] = lambda epoch, params: None,
    rows: Tensor | None = None,
    *,
    resume: Progress | None = None,
    on_progress: OnProgress = lambda progress: None,
    note: Callable[[str], None] = warnings.warn,
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
        resume: where an earlier call came; what follows is bit for bit what would have followed
            there, on the CPU with as many threads.
        on_progress: called after each step and each epoch with what `resume` takes.
        note: called with a line for each batch that was skipped.

    Raises:
        RunError: too many losses were not finite, or memory did not suffice; the message names the
            batch.
    """
    with _surroundings(params, config, training, resume):
        course = _course(params, config, training, train, rows, note)
        progress = resume or Progress(begin(params, training), params)
        try:
            while (stopped := _ended(progress.epochs, training)) is None:
                for after in _epoch(course, progress, progress.losses):
                    on_progress(progress := after)
                progress = _judged(course, progress, validation)
                on_progress(progress)
                on_epoch(progress.epochs[-1], progress.state.weights)
        except KeyboardInterrupt:
            stopped = "interrupt"
    return Fit(progress, stopped)


def refit(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Stream | Corpus,
    found: Fit,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    *,
    on_progress: OnProgress = lambda progress: None,
    note: Callable[[str], None] = warnings.warn,
) -> Params:
    """Train again, on more data, for as many epochs as `found` took to its best; no validation.

    The learning rate falls over `training.epochs` as it did there, and its plateaus are those of
    that validation.

    Args:
        params: where to start, with scalers of `train`; see `fit`.
        config: the architecture.
        training: what `found` was trained with.
        train: all training data.
        found: gives the epochs; its best must be there. Where its progress is that of a refit, that
            goes on.
        on_epoch: called after each epoch.
        on_progress: called after each step and each epoch with what `resume` takes.
        note: called with a line for each batch that was skipped.

    Raises:
        RunError: see `fit`.
    """
    wanted = found.best.epoch if found.best else 0
    resume = None if found.progress.again is None else found.progress
    with _surroundings(params, config, training, resume):
        course = _course(params, config, training, train, None, note)
        progress = resume or found.progress._replace(state=begin(params, training), again=())
        while len(again := progress.again or ()) < wanted:
            for after in _epoch(course, progress, progress.losses[: len(again)]):
                on_progress(progress := after)
            epoch = _figures(course, progress, progress.losses[: len(again)])
            progress = progress._replace(again=(*again, epoch))
            on_progress(progress)
            on_epoch(epoch)
    return progress.state.weights


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
def _surroundings(
    params: Params, config: ModelConfig, training: TrainingConfig, resume: Progress | None
) -> Iterator[None]:
    """The threads and random numbers of a training, and after it as they were."""
    keep_freed_memory()
    device = params["head.bias"].device
    with cpu_threads(threads_of(config, training)), seeded(device, training.seed):
        if resume is not None:
            set_global_random(resume.state.random, device)
        if not team().is_first:  # its own dropout; steps tell a resumed run from its start
            steps_done = resume.state.optimizer.step if resume else 0
            torch.manual_seed(hash((training.seed, team().rank, steps_done)) & LARGEST_SEED)
        yield


def _course(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Stream | Corpus,
    rows: Tensor | None,
    note: Callable[[str], None],
) -> Course:
    weights = class_weights_of(params, config, training, train)
    return Course(config, training, train, weights, rows, note, team())


def _epoch(course: Course, progress: Progress, losses: Sequence[float]) -> Iterator[Progress]:
    """The steps that are left of an epoch; `losses` are those validated before it."""
    began = time.perf_counter() - progress.seconds
    if progress.state.epoch > len(losses) + 1:
        return  # its steps are done, its validation is not
    for state in steps(course, progress.state, plateau_factor(losses, course.training)):
        yield progress._replace(state=state, seconds=time.perf_counter() - began)


def _judged(course: Course, progress: Progress, validation: Examples | Corpus | None) -> Progress:
    """With the figures of the epoch whose steps are done, and its weights if they are the best."""
    began, weights = time.perf_counter(), progress.state.weights
    figures = _validate(weights, course.config, course.training, validation, course.weights)
    loss, scores = course.team.agree(figures)
    progress = progress._replace(seconds=progress.seconds + time.perf_counter() - began)
    best = progress.best_epoch
    is_best = validation is None or loss < (best.validation_loss if best else math.inf)
    epoch = _figures(course, progress, progress.losses)._replace(
        validation_loss=loss, validation=scores, best=is_best
    )
    best_weights = weights if is_best else progress.best
    return progress._replace(epochs=(*progress.epochs, epoch), best=best_weights)


def _figures(course: Course, progress: Progress, losses: Sequence[float]) -> Epoch:
    """Of the epoch whose steps are done, before anything is validated."""
    state, before = progress.state, (*progress.epochs, *(progress.again or ()))
    rate = course.rate_of(state.optimizer.step - 1, plateau_factor(losses, course.training))
    seconds = progress.seconds - sum(epoch.seconds for epoch in before)
    return Epoch(state.epoch - 1, state.mean_loss, math.nan, {}, rate, seconds, False)


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
    how = training.backend, training.chunk
    if len(validation) < team().size:
        prediction = predict_all(params, config, validation, *how)
    else:
        own = team().lanes(len(validation))
        with torch.inference_mode():
            prediction = predict_all(params, config, validation, *how, own=own)
            prediction = team().sum(prediction)
    y, unit = validation.y.to(prediction.device), validation.unit
    unit = None if unit is None else unit.to(prediction.device)
    plain = replace(training, label_smoothing=0.0)
    loss = training_loss(params, config, plain, prediction, y, class_weights, unit)
    return float(loss), metrics(config, prediction, y)


def _ended(epochs: Sequence[Epoch], training: TrainingConfig) -> str | None:
    """Why training is over after these epochs; None if it is not."""
    best = max((epoch.epoch for epoch in epochs if epoch.best), default=0)
    if epochs and epochs[-1].epoch - best >= training.patience:
        return "patience"
    return "epochs" if len(epochs) == training.epochs else None
