"""Finds series that stand one after the other in a file without a column of ids."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.series.grid import GridRows
from lstm_compile.data.tables.sequence_index import SequenceIndex

ROWS_OF_RUN = 3  # rows in order, on average; with fewer the rows are in no order at all


class Restarts(NamedTuple):
    """Where the stamps of a file start over."""

    row: int  # of the sorted table, the first of them
    times: int  # that this happens
    is_one: bool  # whether all rows together are as regular as those of each run


def find_restarts(
    index: SequenceIndex, rows: GridRows, merged: GridRows, step: float
) -> Restarts | None:
    """Find times before those of the row above in files whose rows are mostly in order.

    `rows` are sorted by time, `merged` are these with one row a time. Rows are one series if they
    have the step of the runs, and lack no more steps than the runs.
    """
    order = index.target_rows
    if order is None:
        return None
    sizes = np.diff(index.files.starts)
    same = np.diff(np.repeat(np.arange(len(sizes)), sizes)) == 0
    jumps = np.diff(rows.ticks[order])
    places = np.flatnonzero(same & (jumps < 0))
    if not len(places) or ROWS_OF_RUN * (len(places) + 1) > len(order):
        return None
    usual, missing = _steps(jumps[same & (jumps > 0)], step)
    together, lacking = _steps(np.diff(merged.ticks)[merged.is_next], step)
    is_one = usual == together and lacking <= missing
    return Restarts(int(order[places[0] + 1]), len(places), is_one)


def _steps(distances: NDArray[Any], step: float) -> tuple[int, int]:
    """The most frequent distance in steps, and how many steps are missing."""
    counts = np.rint(distances / step).astype(np.int64)
    values, times = np.unique(counts, return_counts=True)
    return int(values[times.argmax()]), int(np.maximum(counts - 1, 0).sum())
