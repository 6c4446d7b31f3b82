"""Read sequences from a file or a bundled data set; every error is one line."""

from collections.abc import Callable
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import torch

from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.read import Part, locate, read_table
from lstm_compile.data.tables.table import Table, check_schema, encode_labels, own_schema


def read_sequences(
    path: str | PathLike[str],
    *,
    schema: Schema | None = None,
    table: TableOptions | None = None,
    per_step: bool | None = None,
    has_classes: bool | None = None,
    tokens: str = "char",
    progress: Callable[[int, int], None] | None = None,
) -> Sequences:
    """Read a `.ts` or `.npz` file, or a long table.

    Args:
        path: the file; its suffix says the format. A folder or a glob is a long table, see
            `long.read_long`.
        schema: of a trained model: the order of its classes, and the columns it expects. None
            takes classes and names from the file itself.
        table: which columns of a long table to take; None infers them.
        per_step: whether every step has a label, or every sequence; None takes `.npz` files as they
            are, others by sequence.
        has_classes: whether labels are classes, or numbers to predict; None lets the schema or the
            labels decide.
        tokens: `char` or `byte`: the tokens of a column of text.
        progress: called with rows done and rows in all, while a long table is read.

    Returns:
        The sequences, on the CPU.

    Raises:
        InputError: the file is missing, of another format, damaged, or does not fit `schema`.
    """
    request = ReadRequest(
        Path(path), table or TableOptions(),
        schema=schema, per_step=per_step, has_classes=has_classes, tokens=tokens, progress=progress,
    )  # fmt: skip
    content = read_table(request)
    if schema is not None:
        check_schema(content, schema)
    return _to_sequences(content, schema or own_schema(content))


def load_dataset(
    name_or_path: str | PathLike[str],
    part: Part,
    schema: Schema | None = None,
    table: TableOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    per_step: bool | None = None,
    has_classes: bool | None = None,
    tokens: str = "char",
) -> Sequences:
    """Read one part of a bundled data set, or a file.

    `name_or_path` is one of `BUNDLED` or a path; `part` is `train` or `test` of a bundled data set,
    and a file is read whole. For all other arguments, and the result, see `read_sequences`.

    Raises:
        InputError: no such part, name or file, or what `read_sequences` refuses.
    """
    path = locate(fspath(name_or_path), part)
    return read_sequences(
        path, schema=schema, table=table, per_step=per_step, has_classes=has_classes,
        tokens=tokens, progress=progress,
    )  # fmt: skip


def _to_sequences(table: Table, schema: Schema) -> Sequences:
    y = table.y
    codes = encode_labels(table, y, schema.classes) if isinstance(y, list) else y
    offsets = np.concatenate(([0], table.lengths.cumsum()))
    x, starts, labels = (torch.from_numpy(part) for part in (table.x, offsets, codes))
    names = (schema.features, schema.classes, schema.targets)
    return Sequences(
        x, starts, labels, *names, table.roles, table.per_step, table.vocabulary, table.categories
    )
