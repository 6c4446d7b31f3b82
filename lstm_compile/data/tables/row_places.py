"""Where each row of a long table stands, so that an error can say so."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from lstm_compile.data.tables.source import Source
from lstm_compile.errors import InputError


class RowPlaces:
    """Where each row stands, for messages: in which file, and which row of it from 1."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.starts = [0]  # of each file begun, in rows of the table

    def place(self, row: int) -> str:
        """`file, row N` for row number `row` of the table, from 0."""
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.sources[file].path}, row {row - self.starts[file] + 1}"

    def refuse(self, row: int, column: str, found: str, expected: str, mend: str) -> NoReturn:
        """Say in one line what is wrong with a cell.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.place(row)}, column {column!r}: found {found}, expected {expected}; {mend}"
        )
