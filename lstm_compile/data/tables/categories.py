"""Columns of categories of a long table, as codes. Loads no torch."""

from typing import Any

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

MEND_UNKNOWN = "drop the row, or train with the category or with --unknown other"


def read_categories(
    index: SequenceIndex, roles: Roles, schema: Schema | None
) -> tuple[NDArray[np.float32], Categories]:
    """The codes of the columns of categories in the table's order, float32 (rows, columns).

    A trained model's `schema` has their categories; without one, they are those of the table.

    Raises:
        InputError: an empty cell, or a category that the model was not trained on.
    """
    known = schema.categories if schema else None
    if known and roles.unknown == "other" and not known.other:
        raise InputError("the model was trained without --unknown other; leave it out")
    found: list[dict[Any, int]] = [{} for _ in roles.categories]
    codes = np.empty((int(index.lengths.sum()), len(found)), np.float32)
    for batch in index.files.reread(roles.categories):
        rows: Any = np.arange(batch.start, batch.start + batch.size)
        rows = rows if index.target_rows is None else index.target_rows[rows]
        if roles.missing != "error":  # an empty cell is a category of its own
            cells = {name: cells.cast(pa.string()) for name, cells in batch.cells.items()}
            batch = batch._replace(cells={name: c.fill_null("") for name, c in cells.items()})
        for column, name in enumerate(roles.categories):
            codes[rows, column] = index.files.convert_codes(batch, name, found[column], str)
    if known is None:
        names = tuple(sorted_labels(each) for each in found)
        known = Categories(names, roles.unknown == "other")
    for column, name in enumerate(roles.categories):
        own = codes[:, column].astype(np.int64)
        final = _final_codes(index, name, own, [*found[column]], known, column)
        codes[:, column] = final[own]
    return codes, known


def _final_codes(
    index: SequenceIndex,
    name: str,
    own: NDArray[np.int64],
    values: list[str],
    known: Categories,
    column: int,
) -> NDArray[np.int64]:
    """The code of each of the values; `own` has the number of the value of each row."""
    names = known.names[column]
    code_of = codes_of(values, names)
    final = np.array([code_of.get(value, -1) for value in values], np.int64)
    for row in np.flatnonzero((final < 0)[own])[: int(not known.other)]:
        value = values[own[row]]
        expected = (
            f"one of the categories the model was trained on: {listing(names)}"
            f"{suggestion(value, names)}"
        )
        index.refuse(int(row), name, repr(value), expected, MEND_UNKNOWN)
    return final + known.other
