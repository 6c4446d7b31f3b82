"""From a name or a path to the table in that file. Loads no torch."""

from collections.abc import Mapping
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lstm_compile.data.bundled import BUNDLED, bundled_file
from lstm_compile.data.schema import numbered
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.folders import FORMATS, is_address, is_table
from lstm_compile.data.tables.label_values import are_many, are_whole, codes_of, numbers_of
from lstm_compile.data.tables.npz import read_npz
from lstm_compile.data.tables.roles import FilledGaps
from lstm_compile.data.tables.table import Table
from lstm_compile.data.tables.ts import read_ts
from lstm_compile.errors import InputError
from lstm_compile.formatting import near_file, suggestion

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
        return bundled_file(name_or_path, part)
    if is_address(name_or_path):
        raise InputError(
            f"{name_or_path}: only train --stream MB reads an address; name a file or a folder"
        )
    path = Path(name_or_path)
    if not path.exists() and path.suffix.lower() not in READERS and not is_table(path):
        raise InputError(
            f"{name_or_path}: neither a file nor a bundled data set ({', '.join(BUNDLED)})"
            f"{suggestion(name_or_path, BUNDLED) or near_file(path)}"
        )
    return path


def table_options(
    path: str, asked: TableOptions | None, training: Mapping[str, Any]
) -> TableOptions | None:
    """The options asked for, and the rest as in `training`, a model's metadata.

    Files without named columns take only what fills gaps.
    """
    options, stored = asked or TableOptions(), training.get("table")
    if path in BUNDLED:
        return asked
    if not is_table(path):
        known = TableOptions().over(stored)
        return replace(options, missing=options.missing or known.missing, means=known.means)
    return options.over(stored)


def read_table(request: ReadRequest) -> Table:
    """Read a file by its suffix: with one of `READERS`, else as a long table.

    Raises:
        InputError: the file is missing, empty, damaged or of another format.
    """
    if is_table(request.path):
        from lstm_compile.data.tables.long import read_long  # pyarrow takes as long as all the rest
        from lstm_compile.data.tables.texts import read_texts

        return read_texts(request) if request.reads_text else read_long(request)
    path = Path(request.path)
    if flags := [flag for flag in request.options.changed_flags if flag != "--missing"]:
        raise InputError(
            f"{path}: {', '.join(flags)} says how to read a long table; leave it out, or "
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
        table = reader(
            path,
            request.labelled,
            with_gaps=request.options.missing not in (None, "error"),
            is_new=request.schema is None,
        )
    except OSError as error:
        near = near_file(path)
        raise InputError(f"{path}: cannot be read ({error.strerror}){near}") from error
    table = _filled(table, request.options)
    if request.labelled:
        table = _with_step_labels(table, request.per_step)
    is_told = table.lines is not None  # the header of a text file says what its labels are
    return table if is_told or not request.labelled else _of_kind(table, request)


def _of_kind(table: Table, request: ReadRequest) -> Table:
    """The table with classes or with numbers, as the request asks; else as its labels look.

    Raises:
        InputError: numbers are asked for, and only some labels are numbers.
    """
    y, wanted = table.y, request.wants_classes
    if not isinstance(y, list):
        names = list(map(str, y.ravel()))
        known = request.schema.classes if request.schema else names
        is_asked = wanted and y.shape[1] == 1 and codes_of(names, known)
        return replace(table, y=names, targets=None) if is_asked else table
    if wanted is None:
        wanted = not (are_many(set(y), len(y)) and are_whole(set(y)))
    numbers = dict(zip(set(y), numbers_of(set(y)), strict=True))
    if wanted is not False or all(map(isnan, numbers.values())):
        return table
    for index, label in enumerate(y):
        if isnan(numbers[label]):
            raise InputError(
                f"{table.place_of_label(index)}: found {label!r}, expected a finite float32 number "
                "to predict; mend it or drop the sequence"
            )
    return replace(table, y=np.array([[numbers[label]] for label in y], np.float32), classes=None)


def _filled(table: Table, options: TableOptions) -> Table:
    """The table without NaN and infinities in `x`, if the options say what fills them.

    Raises:
        InputError: a feature without any value.
    """
    if options.missing in (None, "error"):
        return table
    from lstm_compile.data.tables.long import GapFiller, column_means  # loads pyarrow

    features = table.features or numbered("feature", table.width)
    gaps = dict(zip(features, (~np.isfinite(table.x)).sum(0).tolist(), strict=True))
    means = options.means or column_means(table.x, options.missing)
    GapFiller(str(table.path), features, options.missing, means).fill(table.x, table.lengths)
    counts = {name: count for name, count in gaps.items() if count}
    return replace(table, roles=FilledGaps(options.missing, means, counts))


def _with_step_labels(table: Table, per_step: bool | None) -> Table:
    """The table, if it has one label a step or one a sequence as `per_step` asks.

    Raises:
        InputError: it has the other.
    """
    if per_step in (None, table.per_step):
        return table
    if per_step and len(table.y) == len(table.x):
        return replace(table, per_step=True)  # sequences of one step each
    words = ("sequence", "step")
    mend = "y must have a label for every row of x" if per_step else "add --per-step to learn them"
    found, expected = words[table.per_step], words[not table.per_step]
    raise InputError(f"{table.path}: holds one label a {found}, expected one a {expected}; {mend}")
