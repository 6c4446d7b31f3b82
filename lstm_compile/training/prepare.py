"""A training run before it begins: data read and parted, settings checked, a folder made."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import stratified_split
from lstm_compile.data.bundled import BUNDLED, load_dataset
from lstm_compile.data.corpus import Corpus, read_corpus, split_corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.sequences import Sequences, fingerprint
from lstm_compile.data.series.windows import Windows
from lstm_compile.data.stream import Stream
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import is_table, plain_name
from lstm_compile.data.tables.read import SERIES
from lstm_compile.data.text_files import refuse_columns
from lstm_compile.devices import find_device
from lstm_compile.errors import InputError
from lstm_compile.model.checkpoint import load_model
from lstm_compile.model.run_folder import (
    CONFIG_FILE,
    LAST_FILE,
    METRICS_FILE,
    MODEL_FILE,
    last_run_folder,
    new_run_folder,
    own_file,
)
from lstm_compile.tasks import find_task, fitting_task
from lstm_compile.tasks.losses import check_class_weight, loss_name
from lstm_compile.training.parts import Parts as Parts
from lstm_compile.training.parts import in_place_of_test
from lstm_compile.training.prepare_series import forecast_parts
from lstm_compile.training.prepare_stream import streamed_parts
from lstm_compile.training.processes import is_restarted, team
from lstm_compile.training.resume import SETTLED, Saved, load_progress
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.warm_start import WarmStart, warm_start

Found = TypeVar("Found")


class RunFinishedError(InputError):
    """There is nothing to resume; `training` says how the run ended, as its model file does."""

    def __init__(self, message: str, training: dict[str, Any]) -> None:
        super().__init__(message)
        self.training = training


class Job(NamedTuple):
    """A run about to begin: everything checked, nothing written but its empty folder."""

    data: str
    test: str | None
    folder: Path  # of the run; `Path()` where nothing is to be written
    config: ModelConfig
    training: TrainingConfig
    parts: Parts
    fingerprint: str  # of all the data that training saw, validation included
    warm: WarmStart | None = None  # what --init gives
    saved: Saved | None = None  # what it goes on from
    stamp: object = None  # of the folder's files

    def is_stale(self) -> bool:
        """Whether the folder is no longer as it was when the job was prepared."""
        return _stamp(self.folder) != self.stamp


def prepare(
    data: str,
    hyper_parameters: Mapping[str, Any],
    training: TrainingConfig,
    *,
    test: str | None = None,
    output: Path | None = None,
    table: TableOptions | None = None,
    task: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    resume: bool = False,
) -> Job:
    """Read and check everything, then make the run folder.

    Args:
        data: name of a bundled data set, or path of a `.ts` or `.npz` file, or of a long
            table: a file, a folder or a glob.
        hyper_parameters: fields of ModelConfig but task, input_size and output_size, which the
            data decide.
        training: how to train.
        test: a file of held-out sequences; a bundled data set brings its own.
        output: the run folder; runs/DATA-N if None.
        table: the columns of a long table; None infers them.
        task: `forecast`, or what the data must be good for; None takes what they are.
        progress: called with rows done and rows in all, while a long table is read.
        resume: go on where the run in `output` stopped; from the start, where nothing was saved.
            A process that `torchrun` has started in place of one that failed does so in any case.

    Raises:
        RunFinishedError: nothing is left to resume.
        InputError: anything wrong with the data, the settings or the folder; nothing is written.
    """
    output, resume = _of_first(lambda: _where_to_go_on(data, output, resume=resume))
    job = plan_job(
        data, hyper_parameters, training, test=test, table=table, task=task, progress=progress
    )
    saved = None
    if resume and output:
        saved = _of_first(partial(saved_in, output, job.config, training, job.fingerprint))
    if saved:
        training = replace(training, **{name: saved.about["training"][name] for name in SETTLED})
    folder = output if resume and output else None
    folder = folder or _of_first(lambda: new_run_folder(plain_name(data), output))
    return job._replace(folder=folder, training=training, saved=saved, stamp=_stamp(folder))


def plan_job(
    data: str,
    hyper_parameters: Mapping[str, Any],
    training: TrainingConfig,
    *,
    test: str | None = None,
    table: TableOptions | None = None,
    task: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Job:
    """What `prepare` reads and checks, without a run folder.

    Raises:
        InputError: anything wrong with the data or the settings.
    """
    find_device(training.device)
    kind = find_task(task).data if task else "series" if data in SERIES else "sequences"
    if kind == "series":
        config, parts = forecast_parts(
            data, hyper_parameters, training, test, table, task, progress
        )
    elif kind == "text":
        refuse_columns(data, table)
        config, parts = _text_parts(data, hyper_parameters, training, test, task)
    elif training.stream:
        config, parts = streamed_parts(
            data, hyper_parameters, training, test, table, task, progress
        )
    else:
        config, parts = _sequence_parts(
            data, hyper_parameters, training, test, table, task, progress
        )
    if task not in (None, config.task):
        raise InputError(f"{data}: good for task {config.task}, not {task}; leave --task out")
    _check_training(config, training)
    warm = _warm_start(config, training, parts.train)
    is_whole = training.refit or training.stream
    digest = digest_of(parts.everything if is_whole else parts.known)
    return Job(data, test, Path(), config, training, parts, digest, warm)


def _of_first(found: Callable[[], Found]) -> Found:
    """What the first process of a team finds, for all of them: others may not see its folder."""
    result: Found = team().agree(found() if team().is_first else None)
    return result


def _check_training(config: ModelConfig, training: TrainingConfig) -> None:
    training.check_task(config.task)
    loss_name(config.task, training.loss, config.quantiles)
    check_class_weight(config.task, training.class_weight)
    if training.batch_size < team().size:
        raise InputError(
            f"batch_size is that of all processes together: {training.batch_size} rows are too few "
            f"for {team().size} processes; raise --batch-size or start fewer"
        )


def _where_to_go_on(data: str, output: Path | None, *, resume: bool) -> tuple[Path | None, bool]:
    """The folder, if one is named or a process goes on in the place of another; whether it does."""
    if is_restarted() and not resume:
        output = output or last_run_folder(plain_name(data))
        resume = output is not None and (output / CONFIG_FILE).is_file()
    if resume and output is not None:
        check_unfinished(output)
    return output, resume


def check_unfinished(folder: Path) -> None:
    """Refuse a run that is over, and a folder that holds none.

    Raises:
        RunFinishedError: it is over.
        InputError: there is none.
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


def saved_in(
    folder: Path, config: ModelConfig, training: TrainingConfig, digest: str
) -> Saved | None:
    """What a run saved to go on from; None where it had not come so far.

    Raises:
        InputError: the file is damaged, or from other settings or data.
    """
    path = own_file(folder, LAST_FILE)
    if path is None:
        return None
    saved = load_progress(path, config, training)
    if saved.about.get("data_fingerprint") != digest:
        raise InputError(
            f"{path}: written with other data (fingerprint {saved.about.get('data_fingerprint')}, "
            f"found {digest}); put them back, or start a new run"
        )
    return saved


def _stamp(folder: Path) -> object:
    """Differs once a run wrote to the folder."""
    files = (folder / name for name in (MODEL_FILE, LAST_FILE, METRICS_FILE))
    return [(stat.st_mtime_ns, stat.st_size) for f in files if f.exists() for stat in [f.stat()]]


def _sequence_parts(
    data: str,
    hyper_parameters: Mapping[str, Any],
    training: TrainingConfig,
    test: str | None,
    table: TableOptions | None,
    task: str | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[ModelConfig, Parts]:
    per_step = find_task(task).per_step if task else None
    everything = load_dataset(
        data, "train", table=table, progress=progress, per_step=per_step, tokens=training.tokens
    )
    _check_text(data, everything, training)
    config = ModelConfig(
        task=everything.task_like(task),
        input_size=len(everything.features),
        output_size=len(everything.classes or everything.targets),
        vocabulary_size=len(everything.vocabulary or ()),
        **hyper_parameters,
    )
    return config, _split(data, everything, test, training)


def _check_text(data: str, rows: Sequences, training: TrainingConfig) -> None:
    """Refuse settings of numbers for text, and of text for numbers."""
    if rows.vocabulary is None and training.tokens != "char":
        raise InputError(f"{data}: tokens is for text, and this is none; name a column with --text")
    for name in ("noise", "feature_dropout"):
        if rows.vocabulary is not None and getattr(training, name):
            raise InputError(f"{name} is for features, which text has none of; set it to 0")


def _text_parts(
    data: str,
    hyper_parameters: Mapping[str, Any],
    training: TrainingConfig,
    test: str | None,
    task: str | None,
) -> tuple[ModelConfig, Parts]:
    everything = read_corpus(data, training.tokens)
    size = len(everything.vocabulary)
    config = ModelConfig(
        task=fitting_task(task, is_text=True),
        input_size=1,
        output_size=size,
        vocabulary_size=size,
        **hyper_parameters,
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
    """The sha256 of what was learned from, 64 hexadecimal digits."""
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
    """The training part, the validation part, and where the rows of the first stand."""
    generator = torch.Generator().manual_seed(training.seed)
    try:
        kept, held_out = stratified_split(everything.strata, training.validation, generator)
    except InputError as error:
        raise InputError(f"{data}: {error}") from error
    return everything.select(kept), everything.select(held_out), kept
