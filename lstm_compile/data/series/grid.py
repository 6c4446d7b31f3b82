"""Rows of series at equal steps: merges duplicates, adds missing steps, fills gaps."""

from collections.abc import Callable
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.series.clock import DAY, Clock, Ticks, whole_steps
from lstm_compile.data.tables.columns import Duplicates
from lstm_compile.errors import InputError

MEND_GAPS = "fill gaps with --gaps forward, linear or indicate"
MEND_MANY = (
    "if nights or weekends have no rows, count the rows: name a column of whole numbers with "
    f"--time; else {MEND_GAPS}"
)
MEND_STEPS = "bring the rows to equal steps first"
MOST_STEPS = 20  # for each row of a series; with more missing steps a stamp must be wrong
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
# takes the row of the table, what was found, what was expected and how to mend it
Refuse = Callable[[int, str, str, str], NoReturn]


class GridRows(NamedTuple):
    """Rows of series one after the other, sorted by time."""

    x: Floats  # float32 (rows, columns), NaN where a cell is missing
    ticks: Ticks  # (rows,), see `Clock.ticks`
    lengths: Ints  # int64 (series,)
    table_rows: Ints  # int64 (rows,), the row of the table that each came from

    @property
    def series(self) -> Ints:
        """The number of each row's series, int64 (rows,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def is_next(self) -> NDArray[np.bool_]:
        """Whether a row belongs to the series of the row before, bool (rows - 1,)."""
        same = np.ones(max(0, len(self.x) - 1), bool)
        same[self.lengths.cumsum()[:-1] - 1] = False
        return same


def merge_duplicates(rows: GridRows, how: Duplicates, has_id: bool, refuse: Refuse) -> GridRows:
    """Make one row of all rows that a series has at one time, which must be sorted.

    `last` takes the last row in the order of the files; `mean` ignores cells without a number.
    Without a column of ids (`has_id`) the rows may be of different series: the error says so.

    Raises:
        InputError: two rows of a series at one time, and `how` is `error`.
    """
    is_again = rows.is_next & (rows.ticks[1:] == rows.ticks[:-1])
    if not is_again.any():
        return rows
    if how == "error":
        row = int(rows.table_rows[int(is_again.argmax()) + 1])
        count = f"{int(is_again.sum())} such rows in all"
        found = f"the time of another row of its series again ({count})"
        mend = "choose --duplicates mean or last"
        if has_id:
            mend = (
                f"if another column tells series apart too, join it to the one of --id; else {mend}"
            )
        else:
            mend = f"name the column of the series with --id; if all rows are one series, {mend}"
        refuse(row, found, "one row a time", mend)
    starts = np.concatenate(([0], np.flatnonzero(~is_again) + 1))
    last = np.concatenate((starts[1:], [len(rows.x)])) - 1
    x = rows.x[last] if how == "last" else _means(rows.x, starts)
    ends = np.searchsorted(last, rows.lengths.cumsum() - 1) + 1
    return GridRows(x, rows.ticks[last], np.diff(ends, prepend=0), rows.table_rows[last])


def _missing(rows: GridRows, steps: Ints) -> Ints:
    """How many steps each series lacks."""
    return np.bincount(rows.series[1:], steps - 1, len(rows.lengths)).astype(np.int64)


def to_grid(rows: GridRows, clock: Clock, may_fill: bool, refuse: Refuse) -> tuple[GridRows, int]:
    """Make a row for every step between the first and the last of each series.

    The times of a series must differ. `may_fill` allows steps without a row.

    Returns:
        The rows, and how many are new. New rows hold NaN, and have the table row of the one before.

    Raises:
        InputError: a distance that is no whole number of steps, or a missing step.
    """
    steps, is_broken = whole_steps(np.diff(rows.ticks), clock.step, rows.ticks)
    steps, is_broken = np.where(rows.is_next, steps, 1), is_broken & rows.is_next
    for index in np.flatnonzero(is_broken)[:1]:
        distance = clock.words(float(rows.ticks[index + 1] - rows.ticks[index]))
        found, expected = f"a time {distance} after the row before", f"whole steps of {clock.name}"
        row = int(rows.table_rows[index + 1])
        refuse(row, found, expected, MEND_STEPS)
    missing = int((steps - 1).sum())
    if not missing:
        return rows, 0
    too_many = _missing(rows, steps) > MOST_STEPS * rows.lengths
    if not may_fill or too_many.any():
        if may_fill:  # of the first series that lacks too many
            steps = np.where(rows.series[1:] == too_many.argmax(), steps, 0)
        worst = int(steps.argmax() if may_fill else (steps > 1).argmax())
        count = f"steps missing in all: {missing}"
        found = f"a time {steps[worst]} steps after the row before ({count})"
        mend = "mend the stamp or drop the row" if may_fill else MEND_GAPS
        if (
            not may_fill
            and clock.kind == "fixed"
            and clock.step < DAY
            and 4 * missing > len(rows.x)
        ):
            mend = MEND_MANY
        refuse(int(rows.table_rows[worst + 1]), found, f"one step of {clock.name}", mend)
    place = np.concatenate(([0], steps.cumsum()))
    x = np.full((place[-1] + 1, rows.x.shape[1]), np.nan, np.float32)
    x[place] = rows.x
    source = np.repeat(np.arange(len(place)), np.diff(place, append=place[-1] + 1))
    ticks = rows.ticks[source] + (np.arange(len(x)) - place[source]) * clock.step
    ticks = ticks.astype(rows.ticks.dtype)
    lengths = np.diff(place[rows.lengths.cumsum() - 1] + 1, prepend=0)
    return GridRows(x, ticks, lengths, rows.table_rows[source]), missing


def fill_linear(x: Floats, lengths: Ints, parts: Ints) -> None:
    """Replace NaN between two values by linear interpolation, in place.

    Gaps at the ends of a series or across the border of two parts stay.

    Args:
        x: float32 (rows, columns), the series one after the other.
        lengths: int64 (series,).
        parts: int64 (rows,), the part of the data that each row is in.
    """
    owner, index = np.repeat(np.arange(len(lengths)), lengths), np.arange(len(x))
    for column in x.T:
        is_gap = np.isnan(column)
        before = np.maximum.accumulate(np.where(is_gap, -1, index))
        after = np.minimum.accumulate(np.where(is_gap, len(x), index)[::-1])[::-1]
        gaps = np.flatnonzero(is_gap & (before >= 0) & (after < len(x)))
        low, high = before[gaps], after[gaps]
        kept = (owner[low] == owner[high]) & (parts[low] == parts[high])
        gaps, low, high = gaps[kept], low[kept], high[kept]
        share = ((gaps - low) / (high - low)).astype(np.float32)
        column[gaps] = column[low] + (column[high] - column[low]) * share


def _means(x: Floats, starts: Ints) -> Floats:
    result = np.empty((len(starts), x.shape[1]), np.float32)
    for index, column in enumerate(x.T):
        is_finite = np.isfinite(column)
        total = np.add.reduceat(np.where(is_finite, column, 0).astype(np.float64), starts)
        count = np.add.reduceat(is_finite.astype(np.int64), starts)
        result[:, index] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return result


def check_values(place: str, x: Floats, names: tuple[str, ...]) -> None:
    """Check that every column has a number.

    Raises:
        InputError: names the first column without one.
    """
    for name, column in zip(names, x.T, strict=True):
        if not np.isfinite(column).any():
            raise InputError(
                f"{place}, column {name!r}: found no number in any row, expected a series of them; "
                "name another column"
            )
