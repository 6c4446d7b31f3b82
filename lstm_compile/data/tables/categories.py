"""Columns of categories of a long table, as codes. Loads no torch."""

from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lstm_compile.data.schema import Categories, Schema
from lstm_compile.data.tables.label_values import codes_of
from lstm_compile.data.tables.roles import Roles
from lstm_compile.data.tables.sequence_index import SequenceIndex
from lstm_compile.data.tables.table import sorted_labels
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing, suggestion

MEND_EMPTY = (
    "write a word for it, such as none; or make empty cells a category of their own, and fill "
    "those of numbers with 0, with --missing zero"
)
MEND_UNKNOWN = "mend the cell, or train again with the category or with --unknown other"


def read_categories(
    index: SequenceIndex, roles: Roles, schema: Schema | None, *, has_gaps: bool = False
) -> tuple[NDArray[np.float32], Categories]:
    """The codes of the columns of categories in the table's order, float32 (rows, columns).

    A trained model's `schema` has their categories; without one, they are those of the table. An
    empty cell is NaN with `has_gaps`; else, unless it is an error, it is a category of its own.

    Raises:
        InputError: an empty cell, or a category that the model was not trained on.
    """
    known = schema.categories if schema else None
    if known and roles.unknown == "other" and not known.other:
        raise InputError("the model was trained without --unknown other; leave it out")
    codes, found = _read(index, roles)
    if known is None:
        names = tuple(sorted_labels(n for n in each if n or not has_gaps) for each in found)
        known = Categories(names, roles.unknown == "other")
    for column, name in enumerate(roles.categories):
        values, own = [*found[column]], codes[:, column].astype(np.int64)
        code_of = codes_of(values, known.names[column])
        final = np.array([code_of.get(value, -1) for value in values], np.float32)
        if has_gaps:
            final[[place for place, value in enumerate(values) if not value]] = np.nan
        for row in np.flatnonzero((final < 0)[own])[: int(not known.other)]:
            _refuse(index, name, int(row), values[own[row]], known.names[column])
        codes[:, column] = (final + known.other)[own]
    return codes, known


def _read(index: SequenceIndex, roles: Roles) -> tuple[NDArray[np.float32], list[dict[str, int]]]:
    """The codes of all cells, and what they stand for in each column, as the cells come."""
    found: list[dict[str, int]] = [{} for _ in roles.categories]
    codes = np.empty((int(index.lengths.sum()), len(found)), np.float32)
    for batch in index.files.reread(roles.categories) if found else ():
        rows: Any = np.arange(batch.start, batch.start + batch.size)
        rows = rows if index.target_rows is None else index.target_rows[rows]
        for column, name in enumerate(roles.categories):
            cells = batch.cells[name]
            is_empty = np.asarray(cells.is_null(nan_is_null=True))
            for row in np.flatnonzero(is_empty)[: int(roles.missing == "error")]:
                place = batch.start + int(row)
                index.files.refuse(place, name, "an empty cell", "a category", MEND_EMPTY)
            if is_empty.any():
                codes[rows[is_empty], column] = found[column].setdefault("", len(found[column]))
                cells = cells.filter(pa.array(~is_empty))
            filled = batch._replace(cells={name: cells})
            values = index.files.convert_codes(filled, name, found[column], str)
            codes[rows[~is_empty], column] = values
    return codes, found


def _refuse(
    index: SequenceIndex, column: str, row: int, found: str, names: tuple[str, ...]
) -> NoReturn:
    expected = (
        f"one of the categories the model was trained on: {listing(names)}"
        f"{suggestion(found, names)}"
    )
    index.refuse(row, column, repr(found), expected, MEND_UNKNOWN)


def most_frequent(codes: NDArray[np.float32]) -> tuple[float, ...]:
    """The most frequent code of each column; NaN does not count. 0 if there is no code."""
    known = (column[np.isfinite(column)].astype(np.int64) for column in codes.T)
    return tuple(float(np.bincount(column, minlength=1).argmax()) for column in known)
