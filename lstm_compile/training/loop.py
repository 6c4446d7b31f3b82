"""The training loop: epochs of steps, validation, early stopping, and the best weights kept."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.stream import Stream
from lstm_compile.devices import cpu_threads, keep_freed_memory
from lstm_compile.evaluation.perplexity import score_text, window_of
from lstm_compile.evaluation.predict import predict_all as predict_all
from lstm_compile.model.model import Params
from lstm_compile.tasks.losses import balanced_weights, training_loss
from lstm_compile.tasks.metrics import Metrics, metrics, text_metrics
from lstm_compile.training.backend import settle, threads_of
from lstm_compile.training.epoch import TrainingContext, steps
from lstm_compile.training.fit_checks import check_fit
from lstm_compile.training.processes import current_processes
from lstm_compile.training.settings import LARGEST_SEED, TrainingConfig
from lstm_compile.training.state import Epoch as Epoch
from lstm_compile.training.state import Fit as Fit
from lstm_compile.training.state import Progress, initial_state, set_random_states
from lstm_compile.training.step import plateau_factor

OnProgress = Callable[[Progress], None]


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
    """Train until all epochs are done, validation stops getting better, or Ctrl-C.

    Args:
        params: where to start; the work is done on their device.
        config: the architecture.
        training: everything else, such as the number of CPU threads during training.
        train: the training data; on the device of `params`, or on the CPU, from where batches are
            copied as they are needed.
        validation: the data that stop training and choose the weights, placed like `train`. Without
            them all epochs are run and the last weights kept.
        on_epoch: called after each epoch with its figures and its last weights.
        rows: int64 (len(train),), the numbers of its sequences in messages; None: 0, 1, ...
        resume: the progress of an earlier call, which is continued: bit for bit as that call would
            have done, on the CPU with the same backend and number of threads.
        on_progress: called after each step and each epoch with what `resume` takes.
        note: called with a line for each skipped batch.

    The seed of `training` gives the same weights again with one backend, device and number of
    threads; other backends draw other dropout. The `backend` of the result says what `auto` took.

    Raises:
        InputError: gradients are off, or data or weights that do not fit the config.
        RunError: too many losses were not finite, or memory does not suffice; the message names the
            batch.
    """
    check_fit(params, config, {"train": train, "validation": validation})
    training, backend = settle(config, training, train, params["head.bias"].device)
    context = _context(params, config, training, train, rows, note)
    context = context._replace(validation=validation)
    with _threads_and_generators(context, params, resume):
        progress = resume or Progress(initial_state(params, training), params)
        try:
            is_over = partial(_ended, training=training)
            for after in _epochs(context, progress, on_epoch, is_over):
                on_progress(progress := after)
            stopped = _ended(progress, training)
        except KeyboardInterrupt:
            stopped = "interrupt"
    return Fit(progress, stopped, backend)


def refit(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Stream | Corpus,
    found: Fit,
    on_epoch: Callable[[Epoch, Params], None] = lambda epoch, params: None,
    *,
    on_progress: OnProgress = lambda progress: None,
    note: Callable[[str], None] = warnings.warn,
) -> Params:
    """Train again, on more data, for as many epochs as `found` took to its best; no validation.

    The learning rate falls over `training.epochs` as it did in `found`, with the plateaus of that
    validation. `params` have the scalers of `train`, which is all training data, and `found` must
    have a best epoch. If its progress has begun a refit, that is continued. The other arguments are
    those of `fit`.

    Raises:
        RunError: see `fit`.
    """
    progress = found.progress
    check_fit(params, config, {"train": train})
    resume = None if progress.refit_epochs is None else progress
    context = _context(params, config, training, train, None, note)
    with _threads_and_generators(context, params, resume):
        if resume is None:
            state = initial_state(params, training)
            progress = progress._replace(state=state, refit_epochs=())
        for after in _epochs(context, progress, on_epoch, lambda now: now.is_refitted):
            on_progress(progress := after)
    return progress.state.weights


def _context(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Stream | Corpus,
    rows: Tensor | None,
    note: Callable[[str], None],
) -> TrainingContext:
    weights = None
    if training.class_weight == "balanced" and not isinstance(train, Corpus):
        weights = balanced_weights(train.y, config.output_size).to(params["head.bias"].device)
    processes = current_processes()
    return TrainingContext(config, training, train, None, weights, rows, note, processes)


@contextmanager
def _threads_and_generators(
    context: TrainingContext, params: Params, resume: Progress | None
) -> Iterator[None]:
    """Set the number of threads and the random numbers of a training, and restore both after it."""
    keep_freed_memory()
    device, seed = params["head.bias"].device, context.training.seed
    devices = [device] if device.type == "cuda" else []
    threads = threads_of(context.config, context.training)
    with cpu_threads(threads), torch.random.fork_rng(devices=devices):
        # torch.manual_seed would seed every CUDA device, those that fork_rng leaves alone as well
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        if resume is not None:
            set_random_states(resume.state.random, device)
        if not context.processes.is_first:  # own dropout, and another one after a resumption
            steps_done = resume.state.optimizer.step if resume else 0
            torch.manual_seed(hash((seed, context.processes.rank, steps_done)) & LARGEST_SEED)
        yield


def _epochs(
    context: TrainingContext,
    progress: Progress,
    on_epoch: Callable[[Epoch, Params], None],
    is_over: Callable[[Progress], object],
) -> Iterator[Progress]:
    """The progress after each step and each epoch, until `is_over` says so after an epoch."""
    while not is_over(progress):
        for after in _steps(context, progress):
            yield (progress := after)
        progress, epoch = _finish_epoch(context, progress)
        yield progress
        on_epoch(epoch, progress.state.weights)


def _steps(context: TrainingContext, progress: Progress) -> Iterator[Progress]:
    """The progress after each step that is left of an epoch."""
    began, losses = time.perf_counter() - progress.seconds, progress.losses
    if progress.state.epoch > len(losses) + 1:
        return  # all its steps are done, and its validation is not
    for state in steps(context, progress.state, plateau_factor(losses, context.training)):
        yield progress._replace(state=state, seconds=time.perf_counter() - began)


def _finish_epoch(context: TrainingContext, progress: Progress) -> tuple[Progress, Epoch]:
    """Add the figures of the epoch whose steps are done, and keep its weights if they are best."""
    if progress.refit_epochs is not None:
        epoch = _figures(context, progress)
        return progress._replace(refit_epochs=(*progress.refit_epochs, epoch)), epoch
    began, weights = time.perf_counter(), progress.state.weights
    loss, scores = context.processes.broadcast_object(_validate(weights, context))
    progress = progress._replace(seconds=progress.seconds + time.perf_counter() - began)
    best = progress.best_epoch
    is_best = context.validation is None or loss < (best.validation_loss if best else math.inf)
    epoch = _figures(context, progress)._replace(
        validation_loss=loss, validation=scores, best=is_best
    )
    best_weights = weights if is_best else progress.best
    return progress._replace(epochs=(*progress.epochs, epoch), best=best_weights), epoch


def _figures(context: TrainingContext, progress: Progress) -> Epoch:
    """The figures of the epoch whose steps are done, without those of validation."""
    state, before = progress.state, (*progress.epochs, *(progress.refit_epochs or ()))
    factor = plateau_factor(progress.losses, context.training)
    rate = context.learning_rate(state.optimizer.step - 1, factor)
    seconds = progress.seconds - sum(epoch.seconds for epoch in before)
    return Epoch(state.epoch - 1, state.mean_loss, math.nan, {}, rate, seconds, False)


def _validate(params: Params, context: TrainingContext) -> tuple[float, Metrics]:
    """The training loss without label smoothing, and the metrics."""
    config, training, validation = context.config, context.training, context.validation
    if validation is None:
        return math.nan, {}
    if isinstance(validation, Corpus):
        options = training.backend, training.chunk, window_of(config, training.unroll)
        found = text_metrics(score_text(params, config, validation, *options))
        return found["loss"], found
    prediction = _predict_together(params, context, validation)
    y, unit = validation.y.to(prediction.device), validation.unit
    unit = None if unit is None else unit.to(prediction.device)
    plain = replace(training, label_smoothing=0.0)
    loss = training_loss(params, config, plain, prediction, y, context.class_weights, unit)
    return float(loss), metrics(config, prediction, y)


def _predict_together(params: Params, context: TrainingContext, data: Examples) -> Tensor:
    """The answers for all rows; each process answers for its part of them."""
    options = context.training.backend, context.training.chunk
    if len(data) < context.processes.size:
        return predict_all(params, context.config, data, *options)
    own = context.processes.every_nth(len(data))
    with torch.inference_mode():
        answers = predict_all(params, context.config, data, *options, own=own)
        return context.processes.sum(answers)


def _ended(progress: Progress, training: TrainingConfig) -> str:
    """Why training is over after these epochs; empty if it is not."""
    epochs = progress.epochs
    best = max((epoch.epoch for epoch in epochs if epoch.best), default=0)
    if epochs and epochs[-1].epoch - best >= training.patience:
        return "patience"
    return "epochs" if len(epochs) == training.epochs else ""
