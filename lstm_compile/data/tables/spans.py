"""Where each sequence of a set of Parquet files begins: one pass over ids, times and labels.

What is kept grows with the sequences and not with their rows.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lstm_compile.data.tables.formats import Parquet
from lstm_compile.data.tables.keys import Labels
from lstm_compile.data.tables.roles import Roles
from lstm_compile.data.tables.row_places import RowPlaces
from lstm_compile.data.tables.values import CellError, to_names, to_times
from lstm_compile.errors import InputError

Ints = NDArray[np.int64]
MEND = "sort the rows by sequence and time, or leave --stream out"


class Spans:
    """The sequences found so far, in the order of the files.

    Attributes:
        rows: where rows stand.
        labels: one a target column.
        done: rows read.
    """

    def __init__(self, rows: RowPlaces, roles: Roles) -> None:
        self.rows, self.done = rows, 0
        self.labels = [Labels(name) for name in roles.target]
        self._roles = roles
        self._starts: list[Ints] = []  # of the sequences of each batch
        self._ids: list[Any] = []  # Arrow arrays
        self._count = 0  # of sequences
        self._last: tuple[Any, Any] | None = None  # id and time of the last row of this file
        self._is_dates: bool | None = None

    @property
    def starts(self) -> Ints:
        """The first row of each sequence, int64 (sequences,)."""
        return np.concatenate(self._starts)

    def read(self, source: Parquet, progress: Callable[[int], None]) -> None:
        """Go over the next file.

        Raises:
            InputError: it has no row, an empty cell, labels that differ, or rows out of order.
        """
        before, self._last = self.done, None
        for count, cells in source.batches(self._roles.keys):
            self._add(count, cells)
            progress(self.done)
        if self.done == before:
            raise InputError(f"{source.path}: holds no row; expected at least one")
        self.rows.starts.append(self.done)

    def check_together(self) -> None:
        """Refuse an id whose rows are not together.

        Raises:
            InputError: names the second place of the first of them.
        """
        if self._roles.id is None:
            return
        ids = pa.chunked_array(self._ids)
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        names = ids.combine_chunks().dictionary_encode().indices.to_numpy()
        is_again = np.ones(len(names), bool)
        is_again[np.unique(names, return_index=True)[1]] = False
        again = int(np.flatnonzero(is_again)[0])
        first = int(np.flatnonzero(names == names[again])[0])
        starts = self.starts
        self.rows.refuse(
            int(starts[again]), self._roles.id, f"{ids[again].as_py()!r} again, which began in "
            f"{self.rows.place(int(starts[first]))}", "the rows of a sequence together", MEND,
        )  # fmt: skip

    def _add(self, count: int, cells: dict[str, Any]) -> None:
        roles, start = self._roles, self.done
        ids = self._checked(roles.id, to_names, cells) if roles.id else None
        times = self._checked(roles.time, to_times, cells) if roles.time else None
        is_first = self._first_rows(count, ids)
        if times is not None:
            self._check_times(times, ids, is_first)
        firsts = np.flatnonzero(is_first)
        self._starts.append(start + firsts)
        if ids is not None:
            self._ids.append(ids.take(pa.array(firsts)))
        sequences = (self._count - 1 + is_first.cumsum()).astype(np.int32)
        for label in self.labels:
            self._checked(label.column, label.add, cells, sequences, start, self._name, self.rows)
        self._last = None if ids is None else ids[-1:], None if times is None else times[-1:]
        self._count += len(firsts)
        self.done += count

    def _name(self, sequence: int) -> str:
        if self._roles.id is None:
            return str(self.rows.sources[sequence].path)
        return str(pa.chunked_array(self._ids)[sequence].as_py())

    def _first_rows(self, count: int, ids: Any) -> NDArray[np.bool_]:
        """Which rows begin a sequence, bool (count,)."""
        is_first = np.zeros(count, bool)
        is_first[0] = self._last is None
        if ids is not None:
            is_first[1:] = np.asarray(pc.not_equal(ids[1:], ids[:-1]))
            if self._last is not None:
                is_first[0] = self._last[0][0].as_py() != ids[0].as_py()
        return is_first

    def _check_times(self, times: NDArray[Any], ids: Any, is_first: NDArray[np.bool_]) -> None:
        column, is_dates = self._roles.time, times.dtype.kind == "M"
        assert column is not None
        if self._is_dates not in (None, is_dates):
            found = ("numbers", "dates")
            self.rows.refuse(
                self.done, column, found[is_dates], found[not is_dates], "one kind in all rows"
            )
        self._is_dates = is_dates
        before = times[:1] if self._last is None else self._last[1]
        before = np.concatenate((before, times[:-1]))
        for row in np.flatnonzero(~is_first & ~(times > before))[:1]:
            of = "" if ids is None else f" in the sequence of id {ids[int(row)].as_py()!r}"
            self.rows.refuse(
                self.done + int(row), column, f"{times[row]!s} after {before[row]!s}{of}",
                "times that rise", MEND,
            )  # fmt: skip

    def _checked(self, column: str, convert: Any, cells: dict[str, Any], *args: Any) -> Any:
        try:
            return convert(cells[column], *args)
        except CellError as error:
            row, mend = self.done + error.index, "mend the cell or drop the row"
            self.rows.refuse(row, column, error.found, error.expected, mend)
