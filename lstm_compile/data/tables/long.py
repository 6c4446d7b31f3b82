"""Long tables: one row a step, columns that say whose step it is, when, and what it holds.

Two passes: the first reads ids, times and labels and finds where each row goes, the second puts the
values there, so that the values are in memory once. Loads no torch.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import find_files, is_set
from lstm_compile.data.tables.formats import SOURCES
from lstm_compile.data.tables.gaps import column_means, fill
from lstm_compile.data.tables.keys import Keys, Labels, StepLabels, read_keys
from lstm_compile.data.tables.roles import Roles, infer_roles
from lstm_compile.data.tables.row_places import RowPlaces
from lstm_compile.data.tables.source import Source
from lstm_compile.data.tables.table import Table
from lstm_compile.data.tables.values import CellError, to_floats
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

Progress = Callable[[int, int], None]  # rows done, rows in all
WHOLE = re.compile(r"[-+]?\d+")


def read_long(
    path: str | PathLike[str],
    options: TableOptions | None = None,
    *,
    schema: Schema | None = None,
    labelled: bool = True,
    per_step: bool = False,
    progress: Progress | None = None,
) -> Table:
    """Read a long table of one file, a folder or a glob.

    Sequences come in the order in which their ids first appear, the steps of each in the order of
    the time column, wherever its rows stand.

    Args:
        path: a `.csv`, `.parquet`, `.arrow`, `.feather`, `.jsonl` or `.ndjson` file, a folder of
            them (those in folders called `name=value` get that column), or a glob.
        options: which columns to take, and what to do about gaps; None infers the columns.
        schema: of a trained model: the features and targets to read, wherever they stand.
        labelled: False leaves the target alone, there or not.
        per_step: every row has a label of its own, and not every sequence.
        progress: called after each batch of rows.

    Returns:
        Its content, with `ids` and `roles`.

    Raises:
        InputError: anything wrong with the files, their columns or a value, in one line.
    """
    options = options or TableOptions()
    if options.given_for_series:
        flags = ", ".join(options.given_for_series)
        raise InputError(f"{path}: {flags} is for series to forecast; add --task forecast")
    sources = open_sources(path)
    roles = infer_roles(
        str(sources[0].path),
        sources[0].kinds,
        options,
        schema=schema,
        labelled=labelled,
        several_files=is_set(path),
    )
    check_columns(sources, roles)
    per_step = per_step and labelled
    keys = read_keys(sources, roles, per_step=per_step)
    x = read_features(keys, roles, progress)
    if roles.missing != "error":
        means = options.means or column_means(x, roles.missing)
        filled = fill(str(path), x, keys.lengths, roles.features, roles.missing, means)
        roles = replace(roles, filled=filled, means=means)
    y: list[str] | NDArray[np.float32] = np.zeros((len(keys.ids), 0), np.float32)
    if per_step:
        y = _step_labels(keys, sources[0])
    elif labelled:
        y = labels_of(keys.labels, keys.rows, schema)
    targets = None if isinstance(y, list) or not labelled else roles.target
    return Table(
        Path(path), x, keys.lengths, y, roles.features,
        targets=targets, ids=keys.ids, roles=roles, per_step=per_step,
    )  # fmt: skip


def open_sources(path: str | PathLike[str]) -> list[Source]:
    """The files of a table, sorted by path.

    Raises:
        InputError: no such file, none in the folder, or a damaged one.
    """
    return [SOURCES[f.path.suffix.lower()](f.path, f.constants) for f in find_files(path)]


def check_columns(sources: Sequence[Source], roles: Roles) -> None:
    """All files must have the same columns, and the same types where these decide the order.

    Raises:
        InputError: a file that differs from the first.
    """
    first = sources[0]
    for source in sources[1:]:
        if other := sorted(set(source.types) ^ set(first.types)):
            raise InputError(
                f"{source.path}: expected the columns of {first.path}, but only one of the files "
                f"has {listing(other)}; give all files the same columns"
            )
        for name in roles.keys:
            if name not in first.texts and source.types[name] != first.types[name]:
                raise InputError(
                    f"{source.path}, column {name!r}: found {source.types[name]}, expected "
                    f"{first.types[name]} as in {first.path}; give a column one type"
                )


def read_features(keys: Keys, roles: Roles, progress: Progress | None) -> NDArray[np.float32]:
    """The feature columns in the table's order, float32 (rows, features).

    What is missing is NaN or infinite, unless `roles.missing` is `error`.

    Raises:
        InputError: a cell that is no number, or a file that changed since its keys were read.
    """
    total = int(keys.lengths.sum())
    x = np.empty((total, len(roles.features)), np.float32)
    done = 0
    for source in keys.rows.sources:
        for count, cells in source.batches(roles.features, as_numbers=True):
            if done + count > total:
                raise InputError(f"{source.path}: changed while it was read; read it again")
            block = to_block(keys.rows, roles, done, cells)
            rows: Any = slice(done, done + count)
            x[rows if keys.target_rows is None else keys.target_rows[rows]] = block
            done += count
            if progress is not None:
                progress(done, total)
    if done != total:
        raise InputError(f"{keys.rows.sources[-1].path}: changed while it was read; read it again")
    return x


def to_block(
    rows: RowPlaces, roles: Roles, start: int, cells: dict[str, Any]
) -> NDArray[np.float32]:
    """The features of a batch, float32 (rows, features); it begins at row `start` of the table.

    Raises:
        InputError: a cell that is no number, or missing where `roles` allow no gap.
    """
    columns = []
    for name in roles.features:
        try:
            columns.append(_to_float32(to_floats(cells[name])))
        except CellError as error:
            mend = "mend the cell, or choose columns with --features"
            rows.refuse(start + error.index, name, error.found, error.expected, mend)
    block = np.stack(columns, axis=1)
    if roles.missing == "error" and not np.isfinite(block).all():
        row, column = (int(index) for index in np.argwhere(~np.isfinite(block))[0])
        found = (
            "an empty cell or NaN" if math.isnan(block[row, column]) else str(block[row, column])
        )
        mend = "fill gaps with --missing forward, mean or zero"
        rows.refuse(start + row, roles.features[column], found, "a finite number", mend)
    return block


def _to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # looked for below
        small = values.astype(np.float32, copy=False)
    if values.dtype != np.float32:
        for index in np.flatnonzero(np.isinf(small) & np.isfinite(values))[:1]:
            raise CellError(int(index), str(values[index]), "a number within float32")
    return small


def labels_of(
    labels: list[Labels], rows: RowPlaces, schema: Schema | None
) -> list[str] | NDArray[np.float32]:
    """The label of each sequence, or its targets, float32 (sequences, targets).

    Args:
        labels: one a target column.
        rows: where they stand.
        schema: of a trained model, which has classes or targets; None goes by the values.

    Raises:
        InputError: several columns for a model with classes, or no number where one is wanted.
    """
    source = rows.sources[0]
    wants_numbers = bool(schema.targets) if schema else len(labels) > 1
    if not wants_numbers and len(labels) > 1:
        raise InputError(
            f"{source.path}: {len(labels)} target columns, but the model was trained on "
            f"classes; name one with --target"
        )
    if not wants_numbers and (schema or not are_fractions(labels[0], source)):
        return [str(value) for value in labels[0].values()]
    return np.stack([_numbers(rows, label) for label in labels], axis=1)


def _step_labels(keys: Keys, source: Source) -> list[str]:
    labels = keys.labels[0]
    assert isinstance(labels, StepLabels)
    if len(keys.labels) > 1:
        names = listing([each.column for each in keys.labels])
        raise InputError(
            f"{source.path}: {len(keys.labels)} target columns ({names}), expected one class for "
            "every step; name one with --target"
        )
    if are_fractions(labels, source):
        raise InputError(
            f"{source.path}: column {labels.column!r} holds numbers with fractions, expected a "
            "class for every step; name another column with --target"
        )
    return labels.in_order(keys.target_rows)


def are_fractions(label: Labels, source: Source) -> bool:
    """Whether labels are numbers to predict and not classes: some have a fraction part."""
    if label.column not in source.texts:
        return any(isinstance(value, float) for value in label.known)
    texts = [str(value).strip() for value in label.known]
    return not all(map(WHOLE.fullmatch, texts)) and all(map(_is_float, texts))


def _numbers(rows: RowPlaces, label: Labels) -> NDArray[np.float32]:
    values = label.values()
    for sequence, value in enumerate(values):
        row = int(label.rows[sequence])
        expected = "a finite float32 number to predict"
        if not _is_float(value):
            rows.refuse(row, label.column, repr(value), expected, "mend it or drop the sequence")
    return np.array([float(value) for value in values], dtype=np.float32)


def _is_float(value: Any) -> bool:
    try:
        return abs(float(value)) <= float(np.finfo(np.float32).max)
    except ValueError:
        return False
