"""A training run: from a prepared job to a folder with model, settings, figures and report."""

import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

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
from lstm_compile.files import write_atomically
from lstm_compile.model.checkpoint import save_model, to_device
from lstm_compile.model.model import Params
from lstm_compile.model.run_folder import BASELINES_FILE, LAST_FILE, MODEL_FILE
from lstm_compile.recurrence.cache import compile_seconds
from lstm_compile.training import run_files
from lstm_compile.training.backend import settle
from lstm_compile.training.job import Job, Outcome
from lstm_compile.training.loop import OnProgress, fit, refit
from lstm_compile.training.processes import PeerLostError, current_processes
from lstm_compile.training.report import write_report
from lstm_compile.training.resume import ProgressSaver, is_extended, save_progress
from lstm_compile.training.state import Epoch, Fit, Progress, move_progress
from lstm_compile.training.warm_start import initial_params

OnEpoch = Callable[[Epoch, Params], None]


def run(
    job: Job,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    note: Callable[[str], None] = warnings.warn,
    on_progress: Callable[[Progress | None], None] = lambda progress: None,
) -> Outcome:
    """Train, keep the best weights and the last state in the run folder, evaluate.

    A saved job is continued. KeyboardInterrupt saves the state and ends the run cleanly,
    with the best weights; before the end of the first epoch it is passed on.

    `on_epoch` is called once the files of an epoch are written, and `note` with lines that a person
    should see. `on_progress` is called after each step, and with None once the weights are settled.

    Raises:
        InputError: another process writes to the folder, or a file cannot be written.
        RunError: the loss was not finite, or memory did not suffice; the best weights so far and
            the last state stay in the folder.
    """
    with run_files.own_folder(job):
        start = time.perf_counter() - (job.saved.progress.seconds if job.saved else 0.0)
        compiled = compile_seconds()
        job, backend = _settled(job)
        current_processes().broadcast_object(job.training)
        fitted, final = _train(job, backend, on_epoch, note, on_progress)
        on_progress(None)
        parts = job.parts
        baselines = fit_baselines(parts.known, job.config.task, parts.train, parts.validation)
        write_atomically(job.folder / BASELINES_FILE, save(to_tensors(baselines)))
        # without a test part, the figures are of validation data, which refitted weights have seen
        shown = final if job.parts.tested_on == "test" else fitted.params
        with cpu_threads(job.training.threads):
            evaluation = _evaluation(job, shown, baselines)
        model = run_files.model_of(job, final, {})
        outcome = Outcome(
            model, fitted, evaluation, parts.tested_on, time.perf_counter() - start,
            compile_seconds() - compiled, backend, refitted=final is not fitted.params,
        )  # fmt: skip
        model.training.update(run_files.provenance_of(job, outcome))
        write_report(job, outcome, note)
        save_model(job.folder / MODEL_FILE, *model)  # last, as it says that the run is finished
    return outcome


def help_run(job: Job) -> None:
    """Train beside the first process, which does everything else.

    Raises:
        RunError: as for `run`, or the first process has ended.
    """
    job = job._replace(training=current_processes().broadcast_object(None))
    _train(job, "", lambda epoch: None, lambda text: None, lambda progress: None)


def fit_job(job: Job, after_epoch: OnEpoch) -> Fit:
    """Train, and write nothing.

    Raises:
        InputError: there is no validation part to judge by.
        RunError: the loss was not finite.
        KeyboardInterrupt: Ctrl-C before the end of the first epoch; later `stopped` says so.
    """
    device = find_device(job.training.device)
    training, _ = settle(job.config, job.training, job.parts.train, device)
    job = job._replace(training=training)
    if job.parts.validation is None:
        raise InputError(
            "validation must be above 0: the best epoch is chosen on the validation part"
        )
    fitted = _fit(job, _start(job, job.parts.train), after_epoch)
    _require_an_epoch(fitted)
    return fitted


def _settled(job: Job) -> tuple[Job, str]:
    """The job with its final number of threads and backend, and why it has that backend."""
    if job.saved:
        return job, str(job.saved.run_info["backend"])
    device = find_device(job.training.device)
    training, backend = settle(job.config, job.training, job.parts.train, device)
    job = job._replace(training=training)
    run_files.write_settings(job)
    return job, backend


def _evaluation(job: Job, params: Params, baselines: dict[str, Baseline]) -> Evaluation:
    training = job.training
    answer = partial(
        answer_all, params, job.config,
        unroll=training.unroll, backend=training.backend, chunk=training.chunk,
    )  # fmt: skip
    return evaluate_model(
        answer, job.config, job.parts.test, baselines, run_files.about_series(job)
    )


def _train(
    job: Job,
    backend: str,
    on_epoch: Callable[[Epoch], None],
    note: Callable[[str], None],
    on_progress: OnProgress,
) -> tuple[Fit, Params]:
    """The fit, and the weights to keep: its best ones, or those of the refit after it."""
    saver, is_first = _saver(job, backend, note), current_processes().is_first

    def after_epoch(epoch: Epoch, params: Params) -> None:
        if epoch.best and is_first:
            run_files.save_best(job, params, epoch)
        if saver.progress and is_first:
            run_files.write_metrics(job, saver.progress)
        on_epoch(epoch)

    def after_step(progress: Progress) -> None:
        saver.update(progress)
        on_progress(progress)

    # before the number of threads is set: it changes the rounding of orthogonal weights
    start, restart = (_start(job, data) for data in (job.parts.train, job.parts.everything))
    try:
        fitted = _fit(job, start, after_epoch, saver.progress, after_step, note)
    except PeerLostError:
        saver.save()
        raise
    saver.save()
    _require_an_epoch(fitted)
    if not job.training.refit or fitted.stopped == "interrupt":
        return fitted, fitted.params
    everything = _near(job.parts.everything, job)
    try:
        return fitted, refit(
            restart, job.config, job.training, everything, fitted, after_epoch,
            on_progress=after_step, note=note,
        )  # fmt: skip
    except KeyboardInterrupt:
        return fitted._replace(stopped="interrupt"), fitted.params
    finally:
        saver.save()


def _saver(job: Job, backend: str, note: Callable[[str], None]) -> ProgressSaver:
    """Holds the progress of the run; a resumed run's other files are brought to that progress."""
    every, last, info = job.training.save_every, None, run_files.run_info(job, backend)
    if job.saved is not None:
        last = move_progress(job.saved.progress, find_device(job.training.device))
    if not current_processes().is_first:
        return ProgressSaver(lambda progress: None, every, last)
    if job.saved is not None and last is not None:
        run_files.note_changes(job.saved.run_info, info, note)
        run_files.restore_files(job, last)
    path = job.folder / LAST_FILE
    if job.saved is not None and last is not None and is_extended(job.saved, job.training):
        run_files.reopen(job, last)
        save_progress(path, last, info)  # with the new end, for a resumption
    return ProgressSaver(lambda progress: save_progress(path, progress, info), every, last)


def _start(job: Job, data: Examples | Stream | Corpus) -> Params:
    params = initial_params(job.config, job.training.seed, data, job.warm)
    moved = to_device(params, find_device(job.training.device))
    return {name: current_processes().broadcast(value) for name, value in moved.items()}


def _fit(
    job: Job,
    start: Params,
    after_epoch: OnEpoch,
    resume: Progress | None = None,
    on_progress: OnProgress = lambda progress: None,
    note: Callable[[str], None] = lambda line: None,
) -> Fit:
    train, validation = job.parts.train, job.parts.validation
    return fit(
        start, job.config, job.training, _near(train, job),
        None if validation is None else _near(validation, job),
        after_epoch, job.parts.train_rows, resume=resume, on_progress=on_progress, note=note,
    )  # fmt: skip


def _near(data: Any, job: Job) -> Any:
    """The data where batches are cut from them: on the device, on the CPU, or in their files."""
    if isinstance(data, Corpus | Stream):
        return data
    return within_reach(data, find_device(job.training.device))


def _require_an_epoch(fitted: Fit) -> None:
    if fitted.best is None and fitted.stopped == "interrupt":
        raise KeyboardInterrupt
    if fitted.best is None:
        raise RunError("no epoch gave a finite validation loss; lower --learning-rate")
