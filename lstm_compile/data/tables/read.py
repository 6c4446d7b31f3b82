"""From a name or a path to the table in that file. Loads no torch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from lstm_compile.data.bundled_files import BUNDLED as BUNDLED
from lstm_compile.data.bundled_files import SERIES as SERIES
from lstm_compile.data.bundled_files import file_of
from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import FORMATS, is_address, is_table
from lstm_compile.data.tables.npz import read_npz
from lstm_compile.data.tables.table import Table, suggestion
from lstm_compile.data.tables.ts import read_ts
from lstm_compile.errors import InputError

Part = Literal["train", "test"]

READERS = {".npz": read_npz, ".ts": read_ts}


def locate(name_or_path: str, part: Part) -> Path:
    """The file of one part of a bundled data set, or the path itself.

    Raises:
        InputError: no such part, name or file.
    """
    if part not in get_args(Part):
        raise InputError(f"part must be one of {', '.join(get_args(Part))}; got {part!r}")
    if name_or_path in BUNDLED:
        return file_of(name_or_path, part)
    if is_address(name_or_path):
        raise InputError(f"{name_or_path}: an address is read by train --stream MB alone")
    path = Path(name_or_path)
    if not path.exists() and path.suffix.lower() not in READERS and not is_table(path):
        raise InputError(
            f"{name_or_path}: neither a file nor a bundled data set ({', '.join(BUNDLED)})"
            f"{suggestion(name_or_path, BUNDLED)}"
        )
    return path


def table_options(
    path: str, given: TableOptions | None, training: Mapping[str, Any]
) -> TableOptions | None:
    """What was asked for, and for a long table the columns that a model was trained on besides.

    Args:
        path: the data.
        given: what was asked for.
        training: a model's metadata.
    """
    if path in BUNDLED or not is_table(path):
        return given
    return (given or TableOptions()).over(training.get("table"))


def read_table(
    path: Path,
    options: TableOptions | None = None,
    *,
    schema: Schema | None = None,
    labelled: bool = True,
    per_step: bool | None = None,
    tokens: str = "char",
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Read a file by its suffix: one of `READERS`, else a long table.

    Args:
        path: the file; for a long table also a folder or a glob.
        options: the columns of a long table; other formats have none.
        schema: of a trained model: picks the feature columns of a long table.
        labelled: False leaves classes and targets alone, there or not.
        per_step: whether every step has a label, or every sequence; None takes `.npz` files as they
            are, others by sequence.
        tokens: what a text is made of, for a column of text.
        progress: called with rows done and rows in all, while a long table is read.

    Raises:
        InputError: the file is missing, empty, damaged or of another format.
    """
    if is_table(path):
        from lstm_compile.data.tables.long import read_long  # pyarrow takes as long as all the rest
        from lstm_compile.data.tables.texts import read_texts

        is_text = schema.vocabulary if schema else options and options.text
        read = partial(read_texts, tokens=tokens) if is_text else read_long
        return read(
            path, options, schema=schema, labelled=labelled, per_step=bool(per_step),
            progress=progress,
        )  # fmt: skip
    if options and options.given:
        raise InputError(
            f"{path}: {', '.join(options.given)} says how to read a long table; leave it out, or "
            f"name a file that ends in {', '.join(FORMATS)}"
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: expected a file that ends in {', '.join(READERS)}, {', '.join(FORMATS)}, "
            f"found {repr(path.suffix) if path.suffix else 'no ending'}"
        )
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        table = reader(path, labelled)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return _with_labels_of(table, per_step) if labelled else table


def _with_labels_of(table: Table, per_step: bool | None) -> Table:
    """The table, once its labels are seen to be those of steps, or of sequences, as was asked."""
    if per_step in (None, table.per_step):
        return table
    if per_step and isinstance(table.y, list) and len(table.y) == len(table.x):
        return replace(table, per_step=True)  # sequences of one step each
    of = ("sequence", "step")
    found, expected = of[table.per_step], of[not table.per_step]
    raise InputError(
        f"{table.path}: holds one label a {found}, expected one a {expected}"
        + ("; for task tag y must have a class for every row of x" if per_step else "")
    )
