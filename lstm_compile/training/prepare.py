"""Prepare a training run: read and split the data, check the settings, make the run folder."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import stratified_split
from lstm_compile.data.bundled import BUNDLED, SERIES
from lstm_compile.data.corpus import Corpus, read_corpus, split_corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.readers import load_dataset
from lstm_compile.data.sequences import Sequences, fingerprint
from lstm_compile.data.series.windows import Windows
from lstm_compile.data.stream import Stream
from lstm_compile.data.tables.folders import is_table, plain_name
from lstm_compile.data.text_files import refuse_columns
from lstm_compile.devices import find_device
from lstm_compile.errors import InputError
from lstm_compile.model.checkpoint import load_model
from lstm_compile.model.run_folder import (
    CONFIG_FILE,
    LAST_FILE,
    last_run_folder,
    new_run_folder,
    own_file,
)
from lstm_compile.tasks import find_task, fitting_task
from lstm_compile.tasks.losses import check_class_weight, loss_name
from lstm_compile.training.job import Job as Job
from lstm_compile.training.job import JobRequest as JobRequest
from lstm_compile.training.job import Parts, in_place_of_test, stamp_of
from lstm_compile.training.prepare_series import forecast_parts
from lstm_compile.training.prepare_stream import streamed_parts
from lstm_compile.training.processes import current_processes, is_restarted
from lstm_compile.training.resume import CHOSEN_BY_RUN, SavedRun, load_progress
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.warm_start import WarmStart, warm_start

Found = TypeVar("Found")


class RunFinishedError(InputError):
    """A finished run cannot be resumed; `training` is what its model file says of training."""

    def __init__(self, message: str, training: dict[str, Any]) -> None:
        super().__init__(message)
        self.training = training


def prepare(request: JobRequest, *, output: Path | None = None, resume: bool = False) -> Job:
    """Read and check everything, then make the run folder.

    Args:
        request: what to train, and on which data.
        output: the run folder; runs/DATA-N if None.
        resume: continue the run in `output` from its saved state, or from the start if nothing was
            saved. A process that `torchrun` started in place of a failed one always does so.

    Raises:
        RunFinishedError: the run to resume is finished.
        InputError: anything wrong with the data, the settings or the folder; nothing is written.
    """
    data = request.data
    output, resume = _of_first(lambda: _run_to_resume(data, output, resume=resume))
    job, training, saved = plan_job(request), request.training, None
    if resume and output:
        saved = _of_first(partial(saved_in, output, job))
    if saved:
        before = saved.run_info["training"]
        training = replace(training, **{name: before[name] for name in CHOSEN_BY_RUN})
    folder = output if resume and output else None
    folder = folder or _of_first(lambda: new_run_folder(plain_name(data), output))
    return job._replace(folder=folder, training=training, saved=saved, stamp=stamp_of(folder))


def plan_job(request: JobRequest) -> Job:
    """What `prepare` reads and checks, without a run folder.

    Raises:
        InputError: anything wrong with the data or the settings.
    """
    data, training, task = request.data, request.training, request.task
    find_device(training.device)
    kind = find_task(task).data if task else "series" if data in SERIES else "sequences"
    if kind == "series":
        config, parts = forecast_parts(request)
    elif kind == "text":
        refuse_columns(data, request.table)
        config, parts = _text_parts(request)
    elif training.stream:
        config, parts = streamed_parts(request)
    else:
        config, parts = _sequence_parts(request)
    if task not in (None, config.task):
        raise InputError(f"{data}: good for task {config.task}, not {task}; leave --task out")
    _check_training(config, training)
    warm = _warm_start(config, training, parts.train)
    is_whole = training.refit or training.stream
    digest = digest_of(parts.everything if is_whole else parts.known)
    return Job(data, request.test, Path(), config, training, parts, digest, warm)


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


def _run_to_resume(data: str, output: Path | None, *, resume: bool) -> tuple[Path | None, bool]:
    """The run folder, if it is known yet, and whether to resume the run in it."""
    if is_restarted() and not resume:
        output = output or last_run_folder(plain_name(data))
        resume = output is not None and (output / CONFIG_FILE).is_file()
    if resume and output is not None:
        check_unfinished(output)
    return output, resume


def check_unfinished(folder: Path) -> None:
    """Refuse a finished run, and a folder without a run.

    Raises:
        RunFinishedError: the run is finished.
        InputError: the folder holds no run.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: no {CONFIG_FILE} there: not a run that can be resumed")
    try:
        training = load_model(folder).training
    except InputError:  # none yet, or damaged: it is written again
        return
    if training.get("stopped") in ("epochs", "patience"):
        raise RunFinishedError(
            f"{folder}: this run is finished (best epoch {training.get('epochs')}, stopped by "
            f"{training['stopped']}), nothing is left to resume; start another from its weights "
            f"with --init {folder}",
            training,
        )


def saved_in(folder: Path, job: Job) -> SavedRun | None:
    """The saved state of the run in `folder`; None if nothing was saved yet.

    Raises:
        InputError: the file is damaged, or from other settings or data than those of `job`.
    """
    path = own_file(folder, LAST_FILE)
    if path is None:
        return None
    saved = load_progress(path, job.config, job.training)
    before = saved.run_info.get("data_fingerprint")
    if before != job.fingerprint:
        raise InputError(
            f"{path}: written with other data (fingerprint {before}, found {job.fingerprint}); put "
            "them back, or start a new run"
        )
    return saved


def _sequence_parts(request: JobRequest) -> tuple[ModelConfig, Parts]:
    data, training, task = request.data, request.training, request.task
    per_step = find_task(task).per_step if task else None
    everything = load_dataset(
        data, "train", table=request.table, progress=request.progress, per_step=per_step,
        tokens=training.tokens,
    )  # fmt: skip
    _check_text(data, everything, training)
    config = ModelConfig(
        task=everything.task_like(task),
        input_size=len(everything.features),
        output_size=len(everything.classes or everything.targets),
        vocabulary_size=len(everything.vocabulary or ()),
        **request.hyper_parameters,
    )
    return config, _split(data, everything, request.test, training)


def _check_text(data: str, rows: Sequences, training: TrainingConfig) -> None:
    """Refuse settings of numbers for text, and of text for numbers."""
    if rows.vocabulary is None and training.tokens != "char":
        raise InputError(f"{data}: tokens is for text, and this is none; name a column with --text")
    for name in ("noise", "feature_dropout"):
        if rows.vocabulary is not None and getattr(training, name):
            raise InputError(f"{name} is for features, which text has none of; set it to 0")


def _text_parts(request: JobRequest) -> tuple[ModelConfig, Parts]:
    data, training, test = request.data, request.training, request.test
    everything = read_corpus(data, training.tokens)
    size = len(everything.vocabulary)
    config = ModelConfig(
        task=fitting_task(request.task, is_text=True),
        input_size=1,
        output_size=size,
        vocabulary_size=size,
        **request.hyper_parameters,
    )
    train, validation, rows = everything, None, torch.arange(0)
    if training.validation:
        train, validation = split_corpus(everything, training.validation)
    if test is None:
        tested = in_place_of_test(data, validation)
        return config, Parts(train, validation, tested, train, "validation", rows, everything)
    tested = read_corpus(test, vocabulary=everything.vocabulary)
    return config, Parts(train, validation, tested, everything, "test", rows, everything)


def digest_of(data: Sequences | Windows | Stream | Corpus) -> str:
    """The sha256 of the data, 64 hexadecimal digits."""
    return fingerprint(data) if isinstance(data, Sequences) else data.digest()


def _warm_start(
    config: ModelConfig, training: TrainingConfig, data: Examples | Stream | Corpus
) -> WarmStart | None:
    if training.init:
        return warm_start(training.init, config, data.schema, training.freeze)
    if training.freeze != "none":
        raise InputError(
            f"freeze {training.freeze} keeps the weights of another model, and none is named; "
            "add --init RUN, or leave --freeze out"
        )
    return None


def _split(data: str, everything: Sequences, test: str | None, training: TrainingConfig) -> Parts:
    train, validation, kept = everything, None, torch.arange(len(everything))
    if training.validation:
        train, validation, kept = _held_out(data, everything, training)
    if test is None and data not in BUNDLED:
        tested = in_place_of_test(data, validation)
        return Parts(train, validation, tested, train, "validation", kept, everything)
    # the test data have the columns that were found in the training data
    table = everything.roles.options if test and is_table(test) and everything.roles else None
    tested = load_dataset(
        test or data, "test", schema=everything.schema, table=table, per_step=everything.per_step
    )
    return Parts(train, validation, tested, everything, "test", kept, everything)


def _held_out(
    data: str, everything: Sequences, training: TrainingConfig
) -> tuple[Sequences, Sequences, Tensor]:
    """The training part, the validation part, and the rows of the training part in the data."""
    generator = torch.Generator().manual_seed(training.seed)
    try:
        kept, held_out = stratified_split(everything.strata, training.validation, generator)
    except InputError as error:
        raise InputError(f"{data}: {error}") from error
    return everything.select(kept), everything.select(held_out), kept
