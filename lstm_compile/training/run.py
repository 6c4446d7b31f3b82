"""A training run: from a prepared job to a run folder with model, config, metrics, baselines."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, overload

import torch
from safetensors.torch import save

from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.feed import within_reach
from lstm_compile.data.stream import Stream
from lstm_compile.devices import cpu_threads, find_device
from lstm_compile.errors import InputError, RunError
from lstm_compile.evaluation.baselines import fit_baselines, to_tensors
from lstm_compile.evaluation.evaluate import Evaluation, evaluate_model
from lstm_compile.evaluation.linear import Baseline
from lstm_compile.evaluation.predict import answer_all
from lstm_compile.files import remove_unfinished, write_atomically
from lstm_compile.model.checkpoint import Model, save_model, to_device
from lstm_compile.model.model import Params
from lstm_compile.model.run_folder import (
    BASELINES_FILE,
    CONFIG_FILE,
    LAST_FILE,
    METRICS_FILE,
    MODEL_FILE,
    REPORT_FILE,
)
from lstm_compile.recurrence.cache import compile_seconds
from lstm_compile.training.backend import settle_backend
from lstm_compile.training.locking import locked
from lstm_compile.training.loop import Epoch, Fit, fit, refit, threads_of
from lstm_compile.training.prepare import Job
from lstm_compile.training.processes import PeerLostError, team
from lstm_compile.training.report import write_report
from lstm_compile.training.resume import Keeper, save_progress
from lstm_compile.training.run_files import (
    about_run,
    about_series,
    catch_up,
    model_of,
    provenance_of,
    save_best,
    tell_changes,
    write_metrics,
    write_settings,
)
from lstm_compile.training.state import on_device
from lstm_compile.training.warm_start import initial_params

FILES = (  # that a run writes
    MODEL_FILE,
    LAST_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    BASELINES_FILE,
    REPORT_FILE,
)


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    model: Model
    fit: Fit
    evaluation: Evaluation
    tested_on: str
    seconds: float
    compile_seconds: float  # of `seconds`
    backend: str = ""  # which one computed the recurrence, and why
    refitted: bool = False  # whether the model learned from the validation data as well


def run(
    job: Job,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    note: Callable[[str], None] = warnings.warn,
) -> Outcome:
    """Train, keep the best weights and the last state in the run folder, evaluate.

    A job that was saved goes on where it was. KeyboardInterrupt saves the state and ends the run
    cleanly, with the best weights; before the first epoch had ended it is passed on.

    Args:
        job: what `prepare` gave.
        on_epoch: called after each epoch, its files written.
        note: called with lines that a person should see.

    Raises:
        InputError: another process writes to the folder, or a file cannot be written.
        RunError: the loss was not finite, or memory did not suffice; the best weights so far and
            the last state stay in the folder.
    """
    with _folder_of(job):
        start = time.perf_counter() - (job.saved.progress.seconds if job.saved else 0.0)
        compiled = compile_seconds()
        job, backend = _settled(job)
        team().agree(job.training)
        fitted, final = _train(job, backend, on_epoch, note)
        is_refitted = final is not fitted.params
        baselines = _baselines(job)
        write_atomically(job.folder / BASELINES_FILE, save(to_tensors(baselines)))
        # without a test part the figures are of validation data, which refitted weights have seen
        shown = final if job.parts.tested_on == "test" else fitted.params
        with cpu_threads(job.training.threads):
            evaluation = _evaluation(job, shown, baselines)
        times = time.perf_counter() - start, compile_seconds() - compiled
        model = model_of(
            job, final, provenance_of(fitted, evaluation, job, times, is_refitted, backend)
        )
        about = job.parts.tested_on, *times, backend, is_refitted
        outcome = Outcome(model, fitted, evaluation, *about)
        write_report(job, outcome, note)
        save_model(job.folder / MODEL_FILE, *model)  # says that the run is finished: the last
    return outcome


def help_run(job: Job) -> None:
    """Train beside the first process of a team, which does all the rest.

    Raises:
        RunError: as for `run`, or the first process has ended.
    """
    job = job._replace(training=team().agree(None))
    _train(job, "", lambda epoch: None, lambda text: None)


@contextmanager
def _folder_of(job: Job) -> Iterator[None]:
    """The folder locked, with the settings in it; left empty where the run failed at once.

    Raises:
        InputError: another process writes there, or wrote there since the job was prepared.
    """
    with locked(job.folder):
        if job.is_stale():
            raise InputError(f"{job.folder}: another run wrote there meanwhile; try again")
        remove_unfinished(job.folder, *FILES)
        write_settings(job)
        try:
            yield
        except Exception:
            if not any((job.folder / name).exists() for name in (MODEL_FILE, LAST_FILE)):
                (job.folder / CONFIG_FILE).unlink(missing_ok=True)
            raise


def fit_job(job: Job, after_epoch: Callable[[Epoch, Params], None]) -> Fit:
    """Train, and write nothing.

    Raises:
        InputError: there is no validation part to judge by.
        RunError: the loss was not finite.
        KeyboardInterrupt: Ctrl-C before the first epoch had ended; later `stopped` says so.
    """
    job, _ = _with_backend(job)
    where, parts = find_device(job.training.device), job.parts
    if parts.validation is None:
        raise InputError("validation must be above 0: without it nothing tells what is best")
    fitted = fit(
        _start(job, parts.train),
        job.config,
        job.training,
        _near(parts.train, where),
        _near(parts.validation, where),
        after_epoch,
        parts.train_rows,
        note=lambda line: None,
    )
    _require_an_epoch(fitted)
    return fitted


def _settled(job: Job) -> tuple[Job, str]:
    """The job with the threads and the backend it keeps from here on, and why that backend."""
    if job.saved:
        return job, str(job.saved.about["backend"])
    job, why = _with_backend(job)
    write_settings(job)
    return job, f"{job.training.backend}, {why}"


def _with_backend(job: Job) -> tuple[Job, str]:
    threads = threads_of(job.config, job.training)
    training, why, train = replace(job.training, threads=threads), "as asked for", job.parts.train
    if training.backend == "auto" and isinstance(train, Corpus):
        training, why = replace(training, backend="vendor"), "as rows of text are equally long"
    elif not isinstance(train, Corpus):
        with cpu_threads(threads):
            device = find_device(training.device)
            training, why = settle_backend(job.config, training, train, device)
    return job._replace(training=training), why


def _baselines(job: Job) -> dict[str, Baseline]:
    parts = job.parts
    return fit_baselines(parts.known, job.config.task, parts.train, parts.validation)


def _evaluation(job: Job, params: Params, baselines: dict[str, Baseline]) -> Evaluation:
    training = job.training
    answer = partial(
        answer_all, params, job.config,
        unroll=training.unroll, backend=training.backend, chunk=training.chunk,
    )  # fmt: skip
    return evaluate_model(answer, job.config, job.parts.test, baselines, about_series(job))


def _train(
    job: Job,
    backend: str,
    on_epoch: Callable[[Epoch], None],
    note: Callable[[str], None],
) -> tuple[Fit, Params]:
    """The fit, and the weights to keep: its best, or those of the refit after it."""
    keeper = _keeper(job, about_run(job, backend), note)

    def record(epoch: Epoch) -> None:
        if team().is_first and keeper.progress:
            write_metrics(job, keeper.progress)
        on_epoch(epoch)

    def after_epoch(epoch: Epoch, params: Params) -> None:
        if epoch.best and team().is_first:
            save_best(job, params, epoch)
        record(epoch)

    # before the threads are cut: the rounding of orthogonal weights depends on their number
    start, restart = (_start(job, data) for data in (job.parts.train, job.parts.everything))
    with _saved_if_peers_are_lost(keeper):
        fitted = _fit(job, start, after_epoch, keeper, note)
        if not job.training.refit or fitted.stopped == "interrupt":
            return fitted, fitted.params
        try:
            return fitted, _refit(job, restart, fitted, record, keeper, note)
        except KeyboardInterrupt:
            return fitted._replace(stopped="interrupt"), fitted.params
        finally:
            keeper.write()


@contextmanager
def _saved_if_peers_are_lost(keeper: Keeper) -> Iterator[None]:
    try:
        yield
    except PeerLostError:
        keeper.write()
        raise


def _keeper(job: Job, about: dict[str, Any], note: Callable[[str], None]) -> Keeper:
    """What holds the progress of the run, and all its files where that was saved."""
    every, last = job.training.save_every, None
    if job.saved is not None:
        last = on_device(job.saved.progress, find_device(job.training.device))
    if not team().is_first:
        return Keeper(lambda progress: None, every, last)
    if job.saved is not None and last is not None:
        tell_changes(job.saved.about, about, note)
        catch_up(job, last)
    path = job.folder / LAST_FILE
    return Keeper(lambda progress: save_progress(path, progress, about), every, last)


def _start(job: Job, data: Examples | Stream | Corpus) -> Params:
    params = initial_params(job.config, job.training.seed, data, job.warm)
    moved = to_device(params, find_device(job.training.device))
    return {name: team().first(value) for name, value in moved.items()}


def _fit(
    job: Job,
    start: Params,
    after_epoch: Callable[[Epoch, Params], None],
    keeper: Keeper,
    note: Callable[[str], None],
) -> Fit:
    where, parts = find_device(job.training.device), job.parts
    fitted = fit(
        start,
        job.config,
        job.training,
        _near(parts.train, where),
        None if parts.validation is None else _near(parts.validation, where),
        after_epoch,
        parts.train_rows,
        resume=keeper.progress,
        on_progress=keeper.see,
        note=note,
    )
    keeper.write()
    _require_an_epoch(fitted)
    return fitted


Kept = TypeVar("Kept", Corpus, Stream)


@overload
def _near(data: Kept, device: torch.device) -> Kept: ...
@overload
def _near(data: Examples, device: torch.device) -> Examples: ...
def _near(data: Any, device: torch.device) -> Any:
    """Where batches are cut: what is not in memory stays in its files."""
    return data if isinstance(data, Corpus | Stream) else within_reach(data, device)


def _refit(
    job: Job,
    start: Params,
    fitted: Fit,
    on_epoch: Callable[[Epoch], None],
    keeper: Keeper,
    note: Callable[[str], None],
) -> Params:
    return refit(
        start,
        job.config,
        job.training,
        _near(job.parts.everything, find_device(job.training.device)),
        fitted,
        on_epoch,
        on_progress=keeper.see,
        note=note,
    )


def _require_an_epoch(fitted: Fit) -> None:
    if fitted.best is None and fitted.stopped == "interrupt":
        raise KeyboardInterrupt
    if fitted.best is None:
        raise RunError("no epoch gave a finite validation loss; lower --learning-rate")
