"""What clocks that go forward and back do to the stamps of a table. Loads no torch.

As clocks go back they show one hour twice, and as they go forward they skip one. Which of two equal
stamps is the later one can be told from the order of the rows only.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.series.clock import DAYS_OF_WEEK
from lstm_compile.data.series.zones import offset_text, to_local, to_utc
from lstm_compile.data.tables.values import CellError

HOUR, DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")
NEAR = 6 * HOUR  # rows farther apart do not tell which of two hours is meant
NOTHING = 0 * HOUR
LATE_NIGHT = 5 * HOUR  # after 23:00: in these hours before Sunday's morning clocks change
Order = NDArray[np.intp]


def moments(times: NDArray[Any], series: NDArray[Any], zone: str) -> NDArray[Any]:
    """The moments in UTC of times that the clocks of `zone` show, in the order of the files.

    Args:
        times: datetime64 (rows,), without a zone.
        series: the number of each row's series, (rows,).
        zone: see `zones`.

    Raises:
        CellError: a time that clocks skip, or one of two equal times that the order of the rows
            does not tell apart.
    """
    first, last = to_utc(times, zone, "earliest"), to_utc(times, zone, "latest")
    _check_shown(times, first, zone)
    if (first == last).all():
        return first
    order = rows_in_time(times, series)
    shown, twice = times[order], (first != last)[order]
    near = (np.diff(series[order]) == 0) & (np.abs(np.diff(shown)) <= NEAR)
    late = twice & _are_late(last[order], twice, near)
    found = np.where(late, last[order], first[order])
    wrong = near & (twice[1:] | twice[:-1]) & (np.diff(found) <= NOTHING)
    again = np.lexsort((found, series[order]))
    is_equal = (np.diff(found[again]) == NOTHING) & (np.diff(series[order][again]) == 0)
    for place in [*again[1:][is_equal & twice[again[1:]]], *np.flatnonzero(wrong) + 1][:1]:
        row = int(order[place])
        early, later = offset_text(np.array([first[row], last[row]]), zone)
        expected = f"rows in the order of their moments, as clocks in {zone} show this hour twice"
        mend = f"sort the rows so, or write stamps with their offset, {early} or {later}"
        raise CellError(row, _text(times[row]), expected, mend)
    result = np.empty_like(found)
    result[order] = found
    return result


def _check_shown(times: NDArray[Any], found: NDArray[Any], zone: str) -> None:
    """Find fault with times that clocks skip."""
    for row in np.flatnonzero(to_local(found, zone) != times)[:1]:
        usual = offset_text(found[row : row + 1] - HOUR, zone)[0]
        expected = f"a time that clocks in {zone} show; they skip this one as they go forward"
        mend = (
            f"if these clocks never change, say --time-zone UTC or {usual}; else mend the cell or "
            "drop the row"
        )
        raise CellError(int(row), _text(times[row]), expected, mend)


def _are_late(
    last: NDArray[Any], twice: NDArray[np.bool_], near: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the times that clocks show twice are the later ones, bool (rows,).

    In a run of such rows it is those from the first on that is not above the row before. Without
    one it is all of a run that has a row near after it, but none before or one as far away.
    """
    steps = np.diff(last)
    joined = twice[1:] & twice[:-1] & near
    falls = np.concatenate(([0], joined & (steps <= NOTHING))).cumsum()
    begins = np.flatnonzero(twice & ~np.concatenate(([False], joined)))
    ends = np.flatnonzero(twice & ~np.concatenate((joined, [False])))
    near, steps = np.pad(near, 1), np.pad(steps, 1)  # number i: from row i - 1 to row i
    after, before = near[ends + 1], near[begins]
    is_even = steps[begins] == steps[ends + 1]
    is_whole = (falls[ends] == falls[begins]) & after & (~before | is_even)
    run = np.maximum(np.searchsorted(begins, np.arange(len(last)), "right") - 1, 0)
    return np.asarray((falls > falls[begins][run]) | is_whole[run])


def rows_in_time(times: NDArray[Any], series: NDArray[Any]) -> Order:
    """Rows of files by series; in their order, or from the last to the first if times fall so."""
    rows = np.arange(len(times))
    order = np.argsort(series, kind="stable")
    same = np.diff(series[order]) == 0
    rises = np.where(same, np.sign(np.diff(times[order]).astype(np.int64)), 0)
    is_falling = np.bincount(series[order][1:], rises, series.max(initial=0) + 1) < 0
    return np.lexsort((np.where(is_falling[series], -rows, rows), series))


def hour_lost_or_repeated(times: NDArray[Any], series: NDArray[Any], step: int) -> int | None:
    """The first row whose time is an hour beside its step, in a night in which clocks may change.

    Args:
        times: datetime64 (rows,), without a zone, in the order of the files.
        series: the number of each row's series, (rows,).
        step: in nanoseconds.
    """
    size = np.timedelta64(step, "ns")
    if size >= DAY:
        return None
    order = rows_in_time(times, series)
    same, shown = np.diff(series[order]) == 0, times[order].astype("M8[ns]")
    distance, later = np.diff(shown), shown[1:] + HOUR
    days = later.astype("M8[D]")
    is_night = (days.astype(np.int64) + 4) % DAYS_OF_WEEK == 0  # day 0 was a Thursday
    is_night &= same & (later - days < LATE_NIGHT + size)
    again = is_night & ((distance == NOTHING) | (distance == size - HOUR))
    if 2 * again.sum() * max(1, HOUR // size) < _equal_rows(times, series):
        return None  # rows are doubled for another reason
    for place in np.flatnonzero(again | (is_night & (distance == size + HOUR)))[:1]:
        return int(order[place + 1])
    return None


def _equal_rows(times: NDArray[Any], series: NDArray[Any]) -> int:
    """How many rows have the time of another one of their series."""
    order = np.lexsort((times, series))
    same = np.diff(series[order]) == 0
    return int((same & (np.diff(times[order]) == NOTHING)).sum())


def _text(time: Any) -> str:
    return str(time.astype("M8[s]"))
