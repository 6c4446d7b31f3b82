"""Finds series that stand one after the other in a file without a column of ids."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.series.grid import GridRows, Refuse
from lstm_compile.data.tables.sequence_index import SequenceIndex

ROWS_OF_RUN = 3  # rows in order, on average; with fewer the rows are in no order at all


def check_order(
    index: SequenceIndex, rows: GridRows, merged: GridRows, step: float, refuse: Refuse
) -> str | None:
    """Find times before those of the row above, in files whose rows are mostly in order.

    Args:
        index: of the files.
        rows: sorted by time.
        merged: these, with one row a time.
        step: of the clock.
        refuse: says what is wrong with a row.

    Returns:
        A note, if all rows may be one series: together they have the step of each run of rows in
        order, and lack no more steps than the runs.

    Raises:
        InputError: the rows are several series.
    """
    order = index.target_rows
    if order is None:
        return None
    sizes = np.diff(index.files.starts)
    same = np.diff(np.repeat(np.arange(len(sizes)), sizes)) == 0
    jumps = np.diff(rows.ticks[order])
    places, rises = np.flatnonzero(same & (jumps < 0)), jumps[same & (jumps > 0)]
    if not len(places) or not len(rises) or ROWS_OF_RUN * (len(places) + 1) > len(order):
        return None
    usual, missing = _steps(rises, step)
    together, lacking = _steps(np.diff(merged.ticks)[merged.is_next], step)
    count = f"the stamps start over {len(places)} time{'s' if len(places) > 1 else ''}"
    if usual != together or lacking > missing:
        mend = "name the column of the series with --id; if all rows are one series, sort them"
        found = f"a time before that of the row before ({count})"
        refuse(int(order[places[0] + 1]), found, "the rows of one series in order", mend)
    return f"{count}, and the rows were sorted as one series (if they are several: --id)"


def _steps(distances: NDArray[Any], step: float) -> tuple[int, int]:
    """The most frequent distance in steps, and how many steps are missing."""
    counts = np.rint(distances / step).astype(np.int64)
    values, times = np.unique(counts, return_counts=True)
    return int(values[times.argmax()]), int(np.maximum(counts - 1, 0).sum())
