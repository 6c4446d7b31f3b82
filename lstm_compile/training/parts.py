"""The parts of a run's data: to train, to validate and to test, by the kind of data."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import stratified_split
from lstm_compile.data.bundled import BUNDLED
from lstm_compile.data.corpus import read_corpus, split_corpus
from lstm_compile.data.readers import load_dataset
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.series import windows
from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.series_table import Shares
from lstm_compile.data.stream import FLOAT, Stream, open_stream
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.folders import is_address, is_table
from lstm_compile.data.tables.label_values import are_fractions, are_many, are_whole
from lstm_compile.data.tables.labels import sequence_labels
from lstm_compile.data.tables.parquet_index import ParquetIndex, index_parquet
from lstm_compile.data.tables.read import locate, table_options
from lstm_compile.data.tables.table import Table, encode_labels, own_schema
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing
from lstm_compile.tasks import find_task, fitting_task, tasks_with
from lstm_compile.training.job import Held, JobRequest, Parts
from lstm_compile.training.settings import TrainingConfig

SHARES = 4  # of the memory: two pools, the validation part, and the sample for the baselines
OF_SAMPLE = 4  # the float64 features of the sample and their copies take 4 times its memory
MOST_VALIDATED = 4096  # windows in validation, evenly spaced if there are more


def sequence_parts(request: JobRequest) -> tuple[ModelConfig, Parts]:
    """Read sequences and split them at random, each class or range of targets alike.

    Raises:
        InputError: anything wrong with the data, or settings that do not go with them.
    """
    data, training, test = request.data, request.training, request.test
    wanted = find_task(request.task) if request.task else None
    everything = load_dataset(
        data, "train", table=request.table, progress=request.progress, tokens=training.tokens,
        per_step=wanted.per_step if wanted else None,
        has_classes=wanted.has_classes if wanted else None,
    )  # fmt: skip
    _check_text(data, everything, training)
    note = _choice(request, everything.schema, everything.y, everything.per_step)
    config = _config(request, everything.task_like(request.task), everything.schema)
    train, validation, kept = everything, None, torch.arange(len(everything), device="cpu")
    if training.validation:
        generator = Generator().manual_seed(training.seed)
        kept, held = _split(data, everything.strata, training, generator)
        train, validation = everything.select(kept), everything.select(held)
    tested = None
    if test is not None or data in BUNDLED:
        # the test data have the columns that were found in the training data
        found = {"table": asdict(everything.roles.options)} if test and everything.roles else {}
        table = table_options(test or data, None, found)
        schema, per_step = everything.schema, everything.per_step
        tested = load_dataset(test or data, "test", schema=schema, table=table, per_step=per_step)
    known = train if tested is None else everything
    held_out = _held_out(data, tested, validation)
    return config, Parts(train, validation, *held_out, known, kept, everything, note)


def _choice(request: JobRequest, schema: Schema, y: Tensor, per_step: bool = False) -> str:
    """What whole numbers are learned as, if the data decide that.

    Raises:
        InputError: there are too many fractions for classes.
    """
    flag = " --per-step" if per_step else ""
    if are_fractions(schema.classes) and are_many(schema.classes, len(y)):
        raise InputError(
            f"{request.data}: {len(schema.classes)} different numbers with fractions are no "
            f"classes; learn them with --task regress{flag}, or name another column with --target"
        )
    count, other = len(schema.classes), f"numbers with --task regress{flag}"
    if len(schema.targets) == 1 and bool((y % 1 == 0).all()):
        count, other = len(y.unique()), f"classes with --task classify{flag}"
    elif not (count and are_whole(schema.classes)):
        return ""
    learned = "classes" if schema.classes else "numbers"
    note = f"{count} different whole numbers, learned as {learned}; learn {other}"
    is_doubtful = per_step and are_many(schema.classes, len(y))  # a tag for nearly every number
    return note if is_doubtful or not request.task else ""


def _check_text(data: str, rows: Sequences, training: TrainingConfig) -> None:
    """Refuse settings of numbers for text, and of text for numbers."""
    if rows.vocabulary is None and training.tokens != "char":
        raise InputError(f"{data}: tokens is for text, and this is none; name a column with --text")
    for name in ("noise", "feature_dropout"):
        if rows.vocabulary is not None and getattr(training, name):
            raise InputError(f"{name} is for features, which text has none of; set it to 0")


def text_parts(request: JobRequest) -> tuple[ModelConfig, Parts]:
    """Read a text; its end is the validation part.

    Raises:
        InputError: anything wrong with the text.
    """
    data, training, test = request.data, request.training, request.test
    everything = read_corpus(data, training.tokens)
    config = _config(request, fitting_task(request.task, is_text=True), everything.schema)
    train, validation = everything, None
    if training.validation:
        train, validation = split_corpus(everything, training.validation)
    tested = None if test is None else read_corpus(test, vocabulary=everything.vocabulary)
    known = train if tested is None else everything
    held_out = _held_out(data, tested, validation)
    return config, Parts(
        train, validation, *held_out, known, torch.arange(0, device="cpu"), everything
    )


def forecast_parts(request: JobRequest) -> tuple[ModelConfig, Parts]:
    """Read series and split them, by time, into a training, a validation and a test part.

    The test file, if any, holds other series or later rows, and all of it is tested.

    Raises:
        InputError: anything wrong with the table, or no window in a part.
    """
    training, test = request.training, request.test
    horizon = request.hyper_parameters.get("horizon", ModelConfig.horizon)
    shares = Shares(training.validation, 0.0 if test else training.test_share, horizon)
    path = locate(request.data, "train")
    table = read_series(path, request.table, split=shares, progress=request.progress)
    config = _series_config(request, table.schema)
    windows.check_lengths(table, config.horizon)
    parts = windows.split_windows(windows.windows_of(table, config))
    train, known = (windows.thinned(parts[name], training.stride) for name in ("train", "known"))
    validation, tested = None, parts["test"] if len(parts["test"]) else None
    if training.validation:
        validation = windows.thinned(
            windows.require(parts["validation"], "validation"), most=MOST_VALIDATED
        )
    if test:
        rows = read_series(locate(test, "test"), table.roles.options, schema=table.schema)
        tested = windows.require(windows.windows_of(rows, config), "test")
    held_out = _held_out(request.data, tested, validation)
    train = windows.require(train, "training")
    rows_of_train = torch.arange(len(train), device="cpu")
    return config, Parts(train, validation, *held_out, known, rows_of_train, known)


def _series_config(request: JobRequest, schema: Schema) -> ModelConfig:
    assert schema.series is not None
    if request.hyper_parameters.get("log1p") and schema.series.subtracted:
        raise InputError(
            f"{request.data}: log1p needs the numbers themselves, but float32 would round "
            f"{listing(schema.targets)} too coarsely without a level subtracted; leave --log1p out"
        )
    known, sizes = len(schema.series.known_features), schema.category_sizes
    others = len(schema.targets) + known + schema.series.indicator + len(sizes)
    return ModelConfig(
        task=fitting_task(request.task, is_series=True),
        input_size=len(schema.features),
        output_size=len(schema.targets),
        past_size=len(schema.features) - others,
        category_sizes=sizes,
        has_other=schema.has_other,
        known_size=known,
        static_sizes=schema.series.static_sizes,
        **request.hyper_parameters,
    )


def streamed_parts(request: JobRequest) -> tuple[ModelConfig, Parts]:
    """Go twice through Parquet files: find the sequences, then read what must be known of them.

    Validation data, and a sample for the baselines, are drawn at random and kept in memory: at most
    a quarter and a sixteenth of `training.stream`.

    Raises:
        InputError: anything wrong with the files, or settings that do not go with `stream`.
    """
    data, training, test = request.data, request.training, request.test
    _check(data, training, request.task)
    reading = ReadRequest(data, request.table or TableOptions(), progress=request.progress)
    found = index_parquet(reading).with_means()
    share = (training.stream << 20) // SHARES
    _check_units(found, training.stream, share)
    schema, labels = _labels(found, request.task)
    note = _choice(request, schema, labels)
    kept, held, sample = _split_stream(data, found, labels, training, share)
    stream = Stream(found, schema, labels, kept, share)
    stream, (validation, known) = open_stream(stream, [held, sample], request.progress)
    config = _config(request, stream.task_like(request.task), schema)
    tested = None
    if test is not None:
        options = table_options(test, None, {"table": asdict(stream.roles.options)})
        tested = load_dataset(test, "test", schema=schema, table=options)
    validated = validation if training.validation else None
    held_out = _held_out(data, tested, validated)
    return config, Parts(stream, validated, *held_out, known, kept, stream, note)


def _check(data: str, training: TrainingConfig, task: str | None) -> None:
    known = tasks_with(can_stream=True)
    if task not in (None, *known):
        raise InputError(f"stream is for task {' or '.join(known)}, the task is {task}")
    if data in BUNDLED or not (is_table(data) or is_address(data)):
        raise InputError(
            f"{data}: --stream reads Parquet files, a folder or a glob of them; leave it out for "
            "other data"
        )
    if training.refit:
        raise InputError("refit needs all data in memory; leave --refit or --stream out")


def _check_units(found: ParquetIndex, megabytes: int, share: int) -> None:
    sizes = found.steps * len(found.roles.features) * FLOAT
    unit = int(sizes.argmax())
    if sizes[unit] > share:
        least = -(-int(sizes[unit]) * SHARES >> 20)
        raise InputError(
            f"{found.place(unit)}: its sequences take {sizes[unit] / 2**20:.0f} MB, more than a "
            f"quarter of --stream {megabytes}; write smaller row groups (row_group_size of "
            f"pyarrow), or take --stream {least} or more"
        )


def _labels(found: ParquetIndex, task: str | None) -> tuple[Schema, Tensor]:
    """The names, and the label or the targets of each sequence."""
    wanted = find_task(task).has_classes if task else None
    roles, y = found.roles, sequence_labels(found.labels, found.files, wanted, is_new=True)
    targets = None if isinstance(y, list) else roles.target
    x = np.empty((0, len(roles.features)), np.float32)
    table = Table(Path(found.path), x, found.lengths, y, roles.features, targets=targets)
    schema = own_schema(table)
    codes = encode_labels(table, y, schema.classes) if isinstance(y, list) else y
    return schema, torch.from_numpy(codes)


def _split_stream(
    data: str, found: ParquetIndex, labels: Tensor, training: TrainingConfig, share: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The training sequences, the validation sequences, and the training sample for baselines."""
    generator = Generator().manual_seed(training.seed)
    sizes = torch.from_numpy(found.lengths) * len(found.roles.features) * FLOAT
    kept, held = torch.arange(len(found), device="cpu"), torch.arange(0, device="cpu")
    if training.validation:
        _, held = _split(data, labels, training, generator)
        held = _that_fit(held, sizes, share, generator)
        kept = (
            torch.ones(len(found), dtype=torch.bool, device="cpu")
            .index_fill(0, held, False)
            .nonzero()[:, 0]
        )
    return kept, held, _that_fit(kept, sizes, share // OF_SAMPLE, generator)


def _that_fit(rows: Tensor, sizes: Tensor, share: int, generator: torch.Generator) -> Tensor:
    """As many of the rows, drawn at random, as a share of the memory holds; at least one."""
    drawn = rows[torch.randperm(len(rows), generator=generator, device="cpu")]
    count = int((sizes[drawn].cumsum(0) <= share).sum())
    return drawn[: max(1, count)].sort().values


def _config(request: JobRequest, task: str, schema: Schema) -> ModelConfig:
    return ModelConfig(
        task=task,
        input_size=len(schema.features),
        output_size=len(schema.classes or schema.targets or schema.vocabulary or ()),
        vocabulary_size=len(schema.vocabulary or ()),
        category_sizes=schema.category_sizes,
        has_other=schema.has_other,
        **request.hyper_parameters,
    )


def _split(
    data: str, strata: Tensor, training: TrainingConfig, generator: Generator
) -> tuple[Tensor, Tensor]:
    """The rows to train on and those to validate on."""
    try:
        return stratified_split(strata, training.validation, generator)
    except InputError as error:
        raise InputError(f"{data}: {error}") from error


def _held_out(data: str, test: Held | None, validation: Held | None) -> tuple[Held, str]:
    """What the figures are of, with its name: the test part, else the validation part.

    Raises:
        InputError: there is neither.
    """
    if test is not None:
        return test, "test"
    if validation is None:
        raise InputError(
            f"{data}: nothing is held out to measure on; take a --validation above 0, or name a "
            "--test file"
        )
    return validation, "validation"
