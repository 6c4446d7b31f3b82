"""Read a file of sequences, with all that can be wrong with it said in one line."""

from os import PathLike
from pathlib import Path

import numpy as np
import torch

from lstm_compile.data.npz import read_npz
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.table import Table, check_schema, encode_labels, own_schema
from lstm_compile.data.ts import read_ts
from lstm_compile.errors import InputError

READERS = {".npz": read_npz, ".ts": read_ts}


def read_sequences(path: str | PathLike[str], *, schema: Schema | None = None) -> Sequences:
    """Read a `.ts` or `.npz` file.

    Args:
        path: the file; its suffix says the format.
        schema: of a trained model: the order of its classes, and the columns it expects. None
            takes classes and names from the file itself.

    Returns:
        The sequences, on the CPU.

    Raises:
        InputError: the file is missing, of another format, damaged, or does not fit `schema`.
    """
    table = _read_table(Path(path))
    if schema is None:
        schema = own_schema(table)
    else:
        check_schema(table, schema)
    return _to_sequences(table, schema)


def _read_table(path: Path) -> Table:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: expected a file that ends in {' or '.join(READERS)}, found "
            f"{repr(path.suffix) if path.suffix else 'no ending'}"
        )
    if path.is_dir():
        raise InputError(f"{path}: expected a file, found a directory")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        return reader(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


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
    )
