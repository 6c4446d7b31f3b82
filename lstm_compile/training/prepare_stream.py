"""The parts of a run on Parquet files that are larger than memory."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import stratified_split
from lstm_compile.data.bundled import BUNDLED
from lstm_compile.data.readers import load_dataset
from lstm_compile.data.schema import Schema
from lstm_compile.data.stream import FLOAT, Stream, open_stream
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.folders import is_address, is_table
from lstm_compile.data.tables.labels import sequence_labels
from lstm_compile.data.tables.parquet_index import ParquetIndex, index_parquet
from lstm_compile.data.tables.table import Table, encode_labels, own_schema
from lstm_compile.errors import InputError
from lstm_compile.tasks import tasks_with
from lstm_compile.training.job import JobRequest, Parts, in_place_of_test
from lstm_compile.training.settings import TrainingConfig

SHARES = 4  # of the memory: two pools, the validation part, and the sample for the baselines
OF_SAMPLE = 4  # the float64 features of the sample and their copies take 4 times its memory


def streamed_parts(request: JobRequest) -> tuple[ModelConfig, Parts]:
    """Go twice through the files: first find the sequences, then read what must be known of them.

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
    schema, labels = _labels(found)
    kept, held, sample = _split(data, found, labels, training, share)
    stream = Stream(found, schema, labels, kept, share)
    stream, parts = open_stream(stream, [held, sample], request.progress)
    validation = parts[0] if training.validation else None
    config = ModelConfig(
        task=stream.task_like(request.task),
        input_size=len(schema.features),
        output_size=len(schema.classes or schema.targets),
        **request.hyper_parameters,
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


def _labels(found: ParquetIndex) -> tuple[Schema, Tensor]:
    """The names, and the label or the targets of each sequence."""
    roles, y = found.roles, sequence_labels(found.labels, found.files, None)
    targets = None if isinstance(y, list) else roles.target
    x = np.empty((0, len(roles.features)), np.float32)
    table = Table(Path(found.path), x, found.lengths, y, roles.features, targets=targets)
    schema = own_schema(table)
    codes = encode_labels(table, y, schema.classes) if isinstance(y, list) else y
    return schema, torch.from_numpy(codes)


def _split(
    data: str, found: ParquetIndex, labels: Tensor, training: TrainingConfig, share: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The training sequences, the validation sequences, and the training sample for baselines."""
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
    """As many of the rows, drawn at random, as a share of the memory holds; at least one."""
    drawn = rows[torch.randperm(len(rows), generator=generator)]
    count = int((sizes[drawn].cumsum(0) <= share).sum())
    return drawn[: max(1, count)].sort().values
