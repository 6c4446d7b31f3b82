"""The first pass over a long table: whose row is whose, in which order, with which label."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.tables.roles import Roles
from lstm_compile.data.tables.row_places import RowPlaces
from lstm_compile.data.tables.source import Source
from lstm_compile.data.tables.values import CellError, to_codes, to_times
from lstm_compile.errors import InputError


@dataclass
class Labels:
    """One target column: each sequence's value, as a code into `known`."""

    column: str
    known: dict[Any, int] = field(default_factory=dict)
    codes: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    mend: str = "give a sequence one label, or learn one a step with --task tag"

    def values(self) -> list[Any]:
        """The value of each sequence."""
        names = list(self.known)
        return [names[code] for code in self.codes]

    def add(
        self,
        cells: Any,
        sequences: NDArray[np.int32],
        start: int,
        name_of: Callable[[int], str],
        rows: RowPlaces,
    ) -> None:
        """Note the labels of a batch.

        Raises:
            CellError: no label.
            InputError: another label than the sequence's first.
        """
        codes = to_codes(cells, self.known, _plain_number)
        fresh, first = np.unique(sequences, return_index=True)
        is_new = fresh >= len(self.codes)  # ids are numbered as they appear, so no gap is left
        self.codes = np.concatenate((self.codes, codes[first[is_new]]))
        self.rows = np.concatenate((self.rows, start + first[is_new]))
        for index in np.flatnonzero(codes != self.codes[sequences])[:1]:
            names, sequence = list(self.known), int(sequences[index])
            rows.refuse(
                start + int(index),
                self.column,
                repr(names[codes[index]]),
                f"{names[self.codes[sequence]]!r} as in {rows.place(int(self.rows[sequence]))} of "
                f"the same sequence, id {name_of(sequence)!r}",
                self.mend,
            )


@dataclass
class StaticLabels(Labels):
    """One column of categories of series."""

    mend: str = "give a series one category, or take the column with --features"


@dataclass
class StepLabels(Labels):
    """One target column: each row's value, in the order of the files."""

    parts: list[NDArray[np.int32]] = field(default_factory=list)

    def add(
        self,
        cells: Any,
        sequences: NDArray[np.int32],  # noqa: ARG002 (whose rows they are does not matter)
        start: int,  # noqa: ARG002
        name_of: Callable[[int], str],  # noqa: ARG002
        rows: RowPlaces,  # noqa: ARG002
    ) -> None:
        """Note the labels of a batch.

        Raises:
            CellError: no label.
        """
        self.parts.append(to_codes(cells, self.known, _plain_number))

    def in_order(self, target_rows: NDArray[np.int64] | None) -> list[str]:
        """The label of each row of the table; see `Keys.target_rows`."""
        codes = np.concatenate(self.parts)
        if target_rows is not None:
            codes[target_rows] = codes.copy()
        names = [str(value) for value in self.known]
        return [names[code] for code in codes.tolist()]


@dataclass(frozen=True, eq=False)
class Keys:
    """What the first pass found.

    Attributes:
        rows: where rows stand.
        ids: one a sequence, in order of first appearance; none where each row is a text.
        lengths: int64 (sequences,).
        target_rows: int64 (rows,), where each row of the files goes in the table; None where they
            stand in order already.
        labels: one a target column.
        times: (rows,), of the rows of the table, in its order; None where nothing asked for them.
    """

    rows: RowPlaces
    ids: list[str]
    lengths: NDArray[np.int64]
    target_rows: NDArray[np.int64] | None
    labels: list[Labels]
    times: NDArray[Any] | None = None

    def file_row(self, row: int) -> int:
        """Which row of the files row number `row` of the table is."""
        if self.target_rows is None:
            return row
        return int(np.flatnonzero(self.target_rows == row)[0])


def read_keys(
    sources: Sequence[Source], roles: Roles, *, with_times: bool = False, per_step: bool = False
) -> Keys:
    """Read the id, time and target columns of all files.

    Args:
        sources: the files.
        roles: their columns.
        with_times: keep the times; equal ones are then the caller's business, in the order of the
            files.
        per_step: every row has a label of its own, and not every sequence.

    Raises:
        InputError: no row, an empty id, time or label, a time twice in a sequence, a label that
            changes, or rows of a sequence apart with no time to bring them together.
    """
    rows, known = RowPlaces(sources), dict[str, int]()
    kind = StepLabels if per_step else StaticLabels if with_times else Labels
    labels = [kind(name) for name in roles.target]
    sequences, times = [], []
    for start, file, count, cells in _batches(rows, roles):
        codes = np.full(count, file, np.int32)
        if roles.id is not None:
            codes = _checked(rows, start, roles.id, to_codes, cells[roles.id], known, _text)
        elif roles.is_text:
            codes = np.arange(start, start + count, dtype=np.int32)
        else:
            known.setdefault(str(sources[file].path), file)
        if roles.time is not None:
            times.append(_checked(rows, start, roles.time, to_times, cells[roles.time]))
        sequences.append(codes)
        for label in labels:
            _checked(
                rows,
                start,
                label.column,
                label.add,
                cells[label.column],
                codes,
                start,
                lambda code: list(known)[code],
                rows,
            )
    if not sequences:
        raise InputError(f"{sources[0].path}: holds no row; expected at least one")
    codes = np.concatenate(sequences)
    sequences.clear()
    found = Keys(rows, list(known), np.bincount(codes).astype(np.int64), None, labels)
    if roles.time is None:
        _check_apart(rows, found.ids, codes)
        return found
    return _in_order(found, roles.time, codes, _one_kind(rows, roles.time, times), with_times)


def _in_order(
    keys: Keys, column: str, codes: NDArray[np.int32], time: NDArray[Any], with_times: bool
) -> Keys:
    order = _order(codes, time, with_times)
    if order is None:
        return replace(keys, times=time if with_times else None)
    codes, time = codes[order], time[order]
    if with_times:
        return replace(keys, target_rows=_inverse(order), times=time)
    _check_times(keys.rows, column, keys.ids, codes, time, order)
    return replace(keys, target_rows=_inverse(order))


def _batches(rows: RowPlaces, roles: Roles) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
    """The first row, the number of the file, the count of rows and the cells of each batch."""
    start = 0
    for file, source in enumerate(rows.sources):
        before = start
        for count, cells in source.batches(roles.keys):
            yield start, file, count, cells
            start += count
        if start == before:
            raise InputError(f"{source.path}: holds no row; expected at least one")
        rows.starts.append(start)


def _checked(rows: RowPlaces, start: int, column: str, convert: Any, *args: Any) -> Any:
    try:
        return convert(*args)
    except CellError as error:
        row = start + error.index
        rows.refuse(row, column, error.found, error.expected, "mend the cell or drop the row")


def _order(
    codes: NDArray[np.int32], time: NDArray[Any], equal_is_right: bool
) -> NDArray[np.intp] | None:
    """What sorts rows by sequence and time, equal ones as they come; None where they are sorted."""
    ahead, together = codes[1:] > codes[:-1], codes[1:] == codes[:-1]
    rises = time[1:] >= time[:-1] if equal_is_right else time[1:] > time[:-1]
    return None if (ahead | (together & rises)).all() else np.lexsort((time, codes))


def _check_times(
    rows: RowPlaces,
    column: str,
    ids: list[str],
    codes: NDArray[np.int32],
    time: NDArray[Any],
    order: NDArray[np.intp],
) -> None:
    for index in np.flatnonzero((codes[1:] == codes[:-1]) & (time[1:] == time[:-1]))[:1]:
        first, second = rows.place(int(order[index])), int(order[index + 1])
        rows.refuse(
            second,
            column,
            f"{time[index]!s} again in the sequence of id {ids[codes[index]]!r}, first in {first}",
            "one row a time",
            "drop one of the rows, or name another column with --time",
        )


def _inverse(order: NDArray[np.intp]) -> NDArray[np.int64]:
    target_rows = np.empty(len(order), np.int64)
    target_rows[order] = np.arange(len(order))
    return target_rows


def _one_kind(rows: RowPlaces, column: str, times: list[NDArray[Any]]) -> NDArray[Any]:
    kinds = [values.dtype.kind == "M" for values in times]
    if len(set(kinds)) > 1:
        batch = kinds.index(not kinds[0])
        row = sum(len(values) for values in times[:batch])
        found = ("numbers", "dates")
        rows.refuse(row, column, found[kinds[batch]], found[kinds[0]], "one kind in all rows")
    joined = np.concatenate(times)
    times.clear()
    return joined


def _check_apart(rows: RowPlaces, ids: list[str], codes: NDArray[np.int32]) -> None:
    for index in np.flatnonzero(codes[1:] < codes[:-1])[:1]:
        raise InputError(
            f"{rows.place(int(index) + 1)}: the sequence of id {ids[codes[index + 1]]!r} goes on "
            f"after another began; expected its rows together, or a column that orders them: --time"
        )
    for start in rows.starts[1:-1]:
        if codes[start] == codes[start - 1]:
            raise InputError(
                f"{rows.place(start)}: the sequence of id {ids[codes[start]]!r} began in another "
                f"file; expected it in one file, or a column that orders its rows: --time"
            )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _plain_number(value: Any) -> Any:
    return value if isinstance(value, str | bool | int | float) else float(value)  # a decimal
