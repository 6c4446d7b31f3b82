"""Prepare a training run: read and split the data, check the settings, make the run folder."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lstm_compile.config import ModelConfig
from lstm_compile.data.bundled import SERIES
from lstm_compile.data.sequences import Sequences, fingerprint
from lstm_compile.data.tables.folders import plain_name
from lstm_compile.data.text_files import refuse_columns
from lstm_compile.devices import find_device
from lstm_compile.errors import InputError
from lstm_compile.model import run_folder
from lstm_compile.model.checkpoint import load_model
from lstm_compile.tasks import find_task
from lstm_compile.tasks.losses import check_class_weight, loss_name
from lstm_compile.training.job import Job as Job
from lstm_compile.training.job import JobRequest as JobRequest
from lstm_compile.training.job import stamp_of
from lstm_compile.training.parts import forecast_parts, sequence_parts, streamed_parts, text_parts
from lstm_compile.training.processes import current_processes, is_restarted
from lstm_compile.training.resume import (
    CHOSEN_BY_RUN,
    SavedRun,
    check_extension,
    load_progress,
)
from lstm_compile.training.settings import EXTENDABLE, TrainingConfig
from lstm_compile.training.warm_start import warm_start

Found = TypeVar("Found")
PARTS = {
    "sequences": sequence_parts,
    "stream": streamed_parts,
    "series": forecast_parts,
    "text": text_parts,
}


class RunFinishedError(InputError):
    """A finished run cannot be resumed; `training` is what its model file says of training."""

    def __init__(self, message: str, training: dict[str, Any]) -> None:
        super().__init__(message)
        self.training = training


def prepare(
    request: JobRequest,
    *,
    output: Path | None = None,
    resume: bool = False,
    extend: bool = False,
) -> Job:
    """Read and check everything, then make the run folder.

    Args:
        request: what to train, and on which data.
        output: the run folder; runs/DATA-N if None.
        resume: continue the run in `output` from its saved state, or from the start if nothing was
            saved. A process that `torchrun` started in place of a failed one always does so.
        extend: with `resume`: the run may be finished, and goes on with the `epochs` and the
            `patience` of the request.

    Raises:
        RunFinishedError: the run to resume is finished.
        InputError: anything wrong with the data, the settings or the folder; nothing is written.
    """
    data = request.data
    output, resume = _of_first(lambda: _run_to_resume(data, output, resume=resume, extend=extend))
    job, training, saved = plan_job(request), request.training, None
    if _of_first(job.config.to_json) != job.config.to_json():
        raise InputError(
            f"{data}: this process has another model than the first, by its data or by the file "
            "of its cell; give all processes the same files"
        )
    if resume and output:
        saved = _of_first(partial(extended_in if extend else saved_in, output, job))
    if saved:
        before = saved.run_info["training"]
        training = replace(training, **{name: before[name] for name in CHOSEN_BY_RUN})
    folder = output if resume and output else None
    folder = folder or _of_first(lambda: run_folder.new_run_folder(plain_name(data), output))
    return job._replace(folder=folder, training=training, saved=saved, stamp=stamp_of(folder))


def plan_job(request: JobRequest) -> Job:
    """What `prepare` reads and checks, without a run folder.

    Raises:
        InputError: anything wrong with the data or the settings.
    """
    data, training, task = request.data, request.training, request.task
    find_device(training.device)
    kind = find_task(task).data if task else "series" if data in SERIES else "sequences"
    if kind == "text":
        refuse_columns(data, request.table)
    is_stream = kind == "sequences" and training.stream
    config, parts = PARTS["stream" if is_stream else kind](request)
    if task not in (None, config.task):
        raise InputError(f"{data}: good for task {config.task}, not {task}; leave --task out")
    _check_training(config, training)
    warm = None
    if training.init:
        warm = warm_start(training.init, config, parts.train.schema, training.freeze)
    is_whole = training.refit or training.stream
    seen = parts.everything if is_whole else parts.known
    digest = fingerprint(seen) if isinstance(seen, Sequences) else seen.digest()
    return Job(data, request.test, Path(), config, training, parts, digest, task, warm)


def _of_first(found: Callable[[], Found]) -> Found:
    """What the first process finds, for all processes: the others may not see its folder."""
    processes = current_processes()
    result: Found = processes.broadcast_object(found() if processes.is_first else None)
    return result


def _check_training(config: ModelConfig, training: TrainingConfig) -> None:
    training.check_task(config.task)
    loss_name(config.task, training.loss, config.quantiles)
    check_class_weight(config.task, training.class_weight)
    if training.batch_size < (count := current_processes().size):
        raise InputError(
            f"batch_size is that of all processes together: {training.batch_size} rows are too few "
            f"for {count} processes; raise --batch-size or start fewer"
        )
    if training.freeze != "none" and not training.init:
        raise InputError(
            f"freeze {training.freeze} keeps the weights of another model, and none is named; "
            "add --init RUN, or leave --freeze out"
        )


def _run_to_resume(
    data: str, output: Path | None, *, resume: bool, extend: bool
) -> tuple[Path | None, bool]:
    """The run folder, if it is known yet, and whether to resume the run in it."""
    if is_restarted() and not resume:
        output = output or run_folder.last_run_folder(plain_name(data))
        resume = output is not None and (output / run_folder.CONFIG_FILE).is_file()
    if resume and output is not None and not extend:
        check_unfinished(output)
    return output, resume


def check_unfinished(folder: Path) -> None:
    """Refuse a finished run, and a folder without a run.

    Raises:
        RunFinishedError: the run is finished.
        InputError: the folder holds no run.
    """
    if not (folder / run_folder.CONFIG_FILE).is_file():
        raise InputError(
            f"{folder}: no {run_folder.CONFIG_FILE} there: not a run that can be resumed"
        )
    try:
        training = load_model(folder).training
    except InputError:  # none yet, or damaged: it is written again
        return
    if training.get("stopped") in ("epochs", "patience"):
        raise RunFinishedError(
            f"{folder}: this run is finished (best epoch {training.get('epochs')}, stopped by "
            f"{training['stopped']}), nothing is left to resume; give it more with --epochs, or "
            f"start another from its weights with --init {folder}",
            training,
        )


def extended_in(folder: Path, job: Job) -> SavedRun:
    """The saved state of the run in `folder`, finished or not, that goes on to another end.

    Raises:
        InputError: nothing was saved, the end has passed already, or as for `saved_in`.
    """
    saved = saved_in(folder, job, EXTENDABLE)
    if saved is None:
        raise InputError(
            f"{folder}: no {run_folder.LAST_FILE} there to go on from; resume it without --epochs, "
            "or start a new run"
        )
    try:
        check_extension(saved, job.training)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return saved


def saved_in(folder: Path, job: Job, free: Collection[str] = ()) -> SavedRun | None:
    """The saved state of the run in `folder`; None if nothing was saved yet.

    Settings in `free` may differ.

    Raises:
        InputError: the file is damaged, or from other settings or data than those of `job`.
    """
    path = run_folder.own_file(folder, run_folder.LAST_FILE)
    if path is None:
        return None
    saved = load_progress(path, job.config, job.training, free)
    before = saved.run_info.get("data_fingerprint")
    if before != job.fingerprint:
        raise InputError(
            f"{path}: written with other data (fingerprint {before}, found {job.fingerprint}); put "
            "them back, or start a new run"
        )
    return saved
