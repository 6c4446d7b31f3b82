"""The parts of a run on Parquet files that are larger than memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import stratified_split
from lstm_compile.data.bundled import BUNDLED, load_dataset
from lstm_compile.data.schema import Schema
from lstm_compile.data.stream import FLOAT, open_stream
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import is_address, is_table
from lstm_compile.data.tables.long import labels_of
from lstm_compile.data.tables.survey import Progress, Survey, survey
from lstm_compile.data.tables.table import Table, encode_labels, own_schema
from lstm_compile.errors import InputError
from lstm_compile.tasks import tasks_with
from lstm_compile.training.parts import Parts, in_place_of_test
from lstm_compile.training.settings import TrainingConfig

SHARES = 4  # of the memory: two pools, what is validated, and what baselines are made from
OF_SAMPLE = 4  # float64 features of a sample, and of them what is fitted, take as many times it


def streamed_parts(
    data: str,
    hyper_parameters: Mapping[str, Any],
    training: TrainingConfig,
    test: str | None,
    table: TableOptions | None,
    task: str | None,
    progress: Progress | None,
) -> tuple[ModelConfig, Parts]:
    """Two passes over the files: the first finds the sequences, the second what must be known.

    Validation data, and a sample that baselines are fitted on, are drawn at random and kept in
    memory: a quarter of `training.stream` at most, and a sixteenth.

    Raises:
        InputError: anything wrong with the files, or settings that do not go with `stream`.
    """
    _check(data, training, task)
    found = survey(data, table, progress).with_means()
    share = (training.stream << 20) // SHARES
    _check_units(found, training.stream, share)
    schema, labels = _labels(found)
    kept, held, sample = _split(data, found, labels, training, share)
    stream, parts = open_stream(found, schema, labels, kept, share, [held, sample], progress)
    validation = parts[0] if training.validation else None
    config = ModelConfig(
        task=stream.task_like(task),
        input_size=len(schema.features),
        output_size=len(schema.classes or schema.targets),
        **hyper_parameters,
    )
    if test is None:
        tested = in_place_of_test(data, validation)
        return config, Parts(stream, validation, tested, parts[1], "validation", kept, stream)
    options = stream.roles.options if is_table(test) else None
    tested = load_dataset(test, "test", schema=schema, table=options)
    return config, Parts(stream, validation, tested, parts[1], "test", kept, stream)


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


def _check_units(found: Survey, megabytes: int, share: int) -> None:
    sizes = found.steps * len(found.roles.features) * FLOAT
    unit = int(sizes.argmax())
    if sizes[unit] > share:
        least = -(-int(sizes[unit]) * SHARES >> 20)
        raise InputError(
            f"{found.place(unit)}: its sequences take {sizes[unit] / 2**20:.0f} MB, more than a "
            f"quarter of --stream {megabytes}; write smaller row groups (row_group_size of "
            f"pyarrow), or take --stream {least} or more"
        )


def _labels(found: Survey) -> tuple[Schema, Tensor]:
    """The names, and the label or the targets of each sequence."""
    roles, y = found.roles, labels_of(found.labels, found.rows, None)
    targets = None if isinstance(y, list) else roles.target
    x = np.empty((0, len(roles.features)), np.float32)
    table = Table(Path(found.path), x, found.lengths, y, roles.features, targets=targets)
    schema = own_schema(table)
    codes = encode_labels(table, y, schema.classes) if isinstance(y, list) else y
    return schema, torch.from_numpy(codes)


def _split(
    data: str, found: Survey, labels: Tensor, training: TrainingConfig, share: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The sequences to train on, to validate on, and of the first those for the baselines."""
    generator = torch.Generator().manual_seed(training.seed)
    sizes = torch.from_numpy(found.lengths) * len(found.roles.features) * FLOAT
    kept, held = torch.arange(len(found)), torch.arange(0)
    if training.validation:
        try:
            _, held = stratified_split(labels, training.validation, generator)
        except InputError as error:
            raise InputError(f"{data}: {error}") from error
        held = _that_fit(held, sizes, share, generator)
        kept = torch.ones(len(found), dtype=torch.bool).index_fill(0, held, False).nonzero()[:, 0]
    return kept, held, _that_fit(kept, sizes, share // OF_SAMPLE, generator)


def _that_fit(rows: Tensor, sizes: Tensor, share: int, generator: torch.Generator) -> Tensor:
    """Of some rows as many, drawn at random, as a share of the memory holds; one at least."""
    drawn = rows[torch.randperm(len(rows), generator=generator)]
    count = int((sizes[drawn].cumsum(0) <= share).sum())
    return drawn[: max(1, count)].sort().values
