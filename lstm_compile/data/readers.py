"""Read a file of sequences, with all that can be wrong with it said in one line."""

from collections.abc import Callable
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.read import read_table
from lstm_compile.data.tables.table import Table, check_schema, encode_labels, own_schema


def read_sequences(
    path: str | PathLike[str],
    *,
    schema: Schema | None = None,
    table: TableOptions | None = None,
    per_step: bool | None = None,
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
        tokens: `char` or `byte`, what a column of text is made of.
        progress: called with rows done and rows in all, while a long table is read.

    Returns:
        The sequences, on the CPU.

    Raises:
        InputError: the file is missing, of another format, damaged, or does not fit `schema`.
    """
    found = read_table(
        Path(path), table, schema=schema, per_step=per_step, tokens=tokens, progress=progress
    )
    if schema is None:
        schema = own_schema(found)
    else:
        check_schema(found, schema)
    return _to_sequences(found, schema)


def _to_sequences(table: Table, schema: Schema) -> Sequences:
    y = table.y
    if isinstance(y, list):
        y_tensor = torch.from_numpy(encode_labels(table, y, schema.classes))
    else:
        y_tensor = torch.from_numpy(y)
    offsets = np.concatenate(([0], table.lengths.cumsum()))
    return Sequences(
        torch.from_numpy(table.x),
        torch.from_numpy(offsets),
        y_tensor,
        schema.features,
        schema.classes,
        schema.targets,
        table.roles,
        table.per_step,
        table.vocabulary,
    )
