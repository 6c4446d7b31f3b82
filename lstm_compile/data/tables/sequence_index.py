"""The first pass over a long table: the sequence, the place and the label of every row."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.tables.labels import Codes, Labels
from lstm_compile.data.tables.roles import Roles
from lstm_compile.data.tables.source import MEND_CELL, RowBatch, TableFiles
from lstm_compile.data.tables.values import CellError, to_times
from lstm_compile.errors import InputError

if TYPE_CHECKING:
    from lstm_compile.data.series.stamp_reader import StampReader


@dataclass(frozen=True, eq=False)
class SequenceIndex:
    """The sequences of a long table."""

    files: TableFiles  # all scanned
    ids: list[str]  # one a sequence, in order of first appearance; empty where each row is a text
    lengths: NDArray[np.int64]  # int64 (sequences,)
    # int64 (rows,), the row of the table that each row of the files becomes; None: the same row
    target_rows: NDArray[np.int64] | None
    labels: list[Labels]  # one a target column
    times: NDArray[Any] | None = None  # (rows,), in the table's order; None unless asked for

    def refuse(self, row: int, column: str, found: str, expected: str, mend: str) -> NoReturn:
        """Raise an error that names a cell of row number `row` of the table.

        Raises:
            InputError: always.
        """
        if self.target_rows is not None:
            row = int(np.flatnonzero(self.target_rows == row)[0])
        self.files.refuse(row, column, found, expected, mend)


def index_sequences(
    files: TableFiles,
    roles: Roles,
    kind: Callable[[str], Labels] = Labels,
    *,
    stamps: "StampReader | None" = None,
) -> SequenceIndex:
    """Read the id, time and target columns of all files.

    `kind` makes the labels of a column. With `stamps`, which reads the times, these are kept, and
    rows of equal time are sorted in the order of the files.

    Raises:
        InputError: no row, an empty id, time or label, a time twice in a sequence, a label that
            changes, or rows of a sequence apart without a time to sort them by.
    """
    labels, known = [kind(name) for name in roles.target], dict[str, int]()
    sequences, times = [], []
    for batch in files.scan(roles.index_columns):
        codes = _sequences_of(batch, files, roles, known)
        if roles.time is not None:
            convert = stamps.read if stamps else to_times
            times.append(files.convert(batch, roles.time, convert))
        sequences.append(codes)
        for label in labels:
            label.add(batch, files, codes, lambda code: list(known)[code])
    codes = np.concatenate(sequences)
    sequences.clear()
    lengths = np.bincount(codes).astype(np.int64)
    index = SequenceIndex(files, list(known), lengths, None, labels)
    if roles.time is None:
        _check_contiguous(index, codes)
        return index
    joined = _joined(files, roles.time, times)
    if stamps:
        try:
            joined = stamps.finish(joined, codes)
        except CellError as error:
            mend = error.mend or MEND_CELL
            files.refuse(error.index, roles.time, error.found, error.expected, mend)
        except InputError as error:
            raise InputError(f"{files.sources[0].path}, column {roles.time!r}: {error}") from error
    return _sorted(index, roles.time, codes, joined, stamps is not None)


def _sequences_of(batch: RowBatch, files: TableFiles, roles: Roles, known: dict[str, int]) -> Codes:
    """The number of each row's sequence, int32 (rows,); new ids are added to `known`."""
    if roles.id is not None:
        return files.convert_codes(batch, roles.id, known, str)
    if roles.is_text:
        return np.arange(batch.start, batch.start + batch.size, dtype=np.int32)
    known.setdefault(str(files.sources[batch.file].path), batch.file)
    return np.full(batch.size, batch.file, np.int32)


def _sorted(
    index: SequenceIndex, column: str, codes: Codes, time: NDArray[Any], with_times: bool
) -> SequenceIndex:
    """The index of rows sorted by sequence and time; rows of equal time stay as they come."""
    ascends, is_same = codes[1:] > codes[:-1], codes[1:] == codes[:-1]
    rises = time[1:] >= time[:-1] if with_times else time[1:] > time[:-1]
    if (ascends | (is_same & rises)).all():
        return replace(index, times=time if with_times else None)
    order = np.lexsort((time, codes))
    codes, time = codes[order], time[order]
    if not with_times:
        _check_times(index, column, codes, time, order)
    target_rows = np.empty(len(order), np.int64)
    target_rows[order] = np.arange(len(order))
    return replace(index, target_rows=target_rows, times=time if with_times else None)


def _check_times(
    index: SequenceIndex, column: str, codes: Codes, time: NDArray[Any], order: NDArray[np.intp]
) -> None:
    for row in np.flatnonzero((codes[1:] == codes[:-1]) & (time[1:] == time[:-1]))[:1]:
        first, sequence = index.files.place(int(order[row])), index.ids[codes[row]]
        found = f"{time[row]!s} again in the sequence of id {sequence!r}, first in {first}"
        mend = (
            "name another column with --id (join several into one) or with --time, or drop one of "
            "the rows"
        )
        index.files.refuse(int(order[row + 1]), column, found, "one row a time", mend)


def _joined(files: TableFiles, column: str, times: list[NDArray[Any]]) -> NDArray[Any]:
    """The times of all batches, which must all be numbers or all be dates."""
    kinds = [values.dtype.kind == "M" for values in times]
    if len(set(kinds)) > 1:
        row = sum(len(values) for values in times[: kinds.index(not kinds[0])])
        files.refuse_kind(row, column, is_dates=not kinds[0])
    joined = np.concatenate(times)
    times.clear()
    return joined


def _check_contiguous(index: SequenceIndex, codes: Codes) -> None:
    ids, files = index.ids, index.files
    for row in np.flatnonzero(codes[1:] < codes[:-1])[:1]:
        raise InputError(
            f"{files.place(int(row) + 1)}: the sequence of id {ids[codes[row + 1]]!r} goes on "
            f"after another began; expected its rows together, or a column that orders them: --time"
        )
    for start in files.starts[1:-1]:
        if codes[start] == codes[start - 1]:
            raise InputError(
                f"{files.place(start)}: the sequence of id {ids[codes[start]]!r} began in another "
                f"file; expected it in one file, or a column that orders its rows: --time"
            )
