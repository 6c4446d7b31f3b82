"""Puts stamps of an unsteady clock on equal steps. Loads no torch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.series.clock import (
    CLOSE,
    STEP_DECIMALS,
    UNITS,
    Clock,
    Ticks,
    on_parts,
    whole_steps,
)
from lstm_compile.data.series.grid import GridRows
from lstm_compile.data.series.stamp_format import COARSEST, is_multiple, rounding_of
from lstm_compile.data.tables.columns import MOST_JITTER

MARGIN = 1.2  # as a step is known but nearly, rounded stamps may lie farther off
DIGITS = 9  # of a step that is sought
PARTS = (12, 24, 52)  # steps that a year or a day often has
NTSC = 1.001  # seconds of 24, 30 or 60 pictures of a film
SECOND = UNITS["second"]
TRIED = (0.02, 0.05, 0.1, 0.2, MOST_JITTER - 0.01)  # values of `--jitter` for a message


def steady_step(ticks: Ticks, is_next: NDArray[np.bool_], jitter: float) -> float | None:
    """The step of rows that lie beside equal steps by at most `jitter` of a step; else None.

    It is near the slope of all rows: a part of a year, day or second, or the number with the fewest
    digits that leaves all rows of each series so near. It may have a part of a nanosecond.
    """
    distances = np.where(is_next, np.diff(ticks), 0).astype(np.float64)
    if not jitter or not is_next.any():
        return None
    counts = np.rint(distances / np.median(distances[is_next]))
    if (counts[is_next] < 1).any():
        return None
    starts = np.flatnonzero(np.concatenate(([True], ~is_next)))
    places, times = (np.concatenate(([0], each)).cumsum() for each in (counts, distances))
    mean = _slope(places, times, starts)
    unit = rounding_of(ticks)
    whole = np.rint(mean / unit) * unit
    is_whole = abs(whole - mean) * counts.sum() < unit  # then rounding moves no row
    exact, most = (room_of(ticks, whole if is_whole else mean, each) for each in (CLOSE, jitter))
    if (np.abs(distances - counts * mean) > 2 * most * mean).any():
        return None

    def fits(step: float, room: float) -> bool:
        beside = times - places * step
        widths = np.maximum.reduceat(beside, starts) - np.minimum.reduceat(beside, starts)
        near = abs(step - mean) <= most * mean / counts.sum()
        return bool(near and (widths <= 2 * (room + CLOSE) * mean).all())

    steps = [*_round_steps(mean), mean]
    # first as if only rounding moved them
    return next((step for room in (exact, most) for step in steps if fits(step, room)), mean)


def _slope(x: NDArray[Any], y: NDArray[Any], starts: NDArray[np.intp]) -> float:
    """The slope of the lines through series that begin at `starts`, by least squares."""
    sizes = np.diff(starts, append=len(x))
    x, y = (each - np.repeat(np.add.reduceat(each, starts) / sizes, sizes) for each in (x, y))
    return float((x @ y) / (x @ x))


def _round_steps(mean: float) -> list[float]:
    """Steps like `mean`, the likely ones first; some are parts of a year, a day or a second."""
    rounded = [float(f"{mean:.{digits}g}") for digits in range(1, DIGITS + 1)]
    unit = next((each for each in (1, 1e3, 1e6, 1e9) if each > mean), 1e9)
    parts = (size / max(1, round(size / mean)) for size in (unit, NTSC * unit))
    return [*(unit / n for n in PARTS), *rounded[:2], *parts, *rounded[2:]]


def room_of(ticks: Ticks, step: float, jitter: float) -> float:
    """How many steps stamps may lie beside theirs: `jitter`, or as far as they are rounded."""
    unit = rounding_of(ticks)
    rounding = 0 if is_multiple(step, unit) else MARGIN * unit / 2 / step
    return max(jitter, rounding) if rounding <= COARSEST else jitter


def enough_jitter(rows: GridRows, clock: Clock) -> float | None:
    """The `--jitter` with which the rows lie on steps; None if none does it.

    With too small a one, one row that is off moves all others.
    """
    moved = {each: count for each in TRIED if (count := snapped(rows, clock, each)[1])}
    least = min(moved.values(), default=0)
    return next((each for each, count in moved.items() if count <= 2 * least), None)


def snapped(rows: GridRows, clock: Clock, jitter: float) -> tuple[GridRows, int]:
    """The rows on equal steps, and how many moved; the same rows if one is too far from its step.

    A clock that is slow or fast by less than `jitter` keeps the time of its last row.
    """
    is_next, step = rows.is_next, clock.step
    distances = np.diff(rows.ticks)
    if not whole_steps(distances[is_next], step, rows.ticks)[1].any():
        close = room_of(rows.ticks, step, CLOSE)
        return rows._replace(ticks=on_parts(rows.ticks, step, close)), 0
    own = steady_step(rows.ticks, is_next, jitter)
    jitter = room_of(rows.ticks, step, jitter)
    if own is None or clock.kind not in ("number", "fixed") or abs(own - step) > jitter * step:
        return rows, 0
    counts = np.concatenate(([0], np.where(is_next, np.rint(distances / own), 0).cumsum()))
    ticks, end = rows.ticks.copy(), 0
    for length in rows.lengths.tolist():
        part = slice(end, end + length)
        end += length
        found = _snapped(rows.ticks[part], counts[part] - counts[end - length], (step, own), jitter)
        if found is None:
            return rows, 0
        ticks[part] = found
    return rows._replace(ticks=ticks), int((ticks != rows.ticks).sum())


def _snapped(
    ticks: Ticks, counts: NDArray[Any], steps: tuple[float, float], jitter: float
) -> Ticks | None:
    """The ticks of one series on equal steps, whose numbers are `counts`."""
    step, own = steps
    beside = (ticks - ticks[0]).astype(np.float64) - counts * own
    room = (jitter + CLOSE) * own
    shift = float(np.median(beside))  # or the nearest that leaves all rows in the room
    shift = min(max(shift, float(beside.max()) - room), float(beside.min()) + room)
    if (np.abs(beside - shift) > room * (1 + CLOSE)).any():
        return None
    # the last row, and from there back
    last = ticks[0] + _as(ticks, counts[-1] * own + shift)
    low, high = (float(each) - shift for each in (beside.max() - room, beside.min() + room))
    even = _even(last, step, rounding_of(ticks))
    last = next((each for each in even if low <= float(each - last) <= high), last)
    found: Ticks = last - _as(ticks, counts[-1] - counts) * _as(ticks, step)
    return found


def _even(tick: Any, step: float, unit: float) -> Iterator[Any]:
    """The multiples of the step, and of rounder numbers or units of time, next to a tick."""
    if isinstance(tick, float | np.floating):
        yield np.rint(tick / step) * step
        digits = (each for each in range(STEP_DECIMALS) if is_multiple(step, 10**-each))
        yield from (np.rint(tick * 10**each) / 10**each for each in digits)
        return
    tick, parts = int(tick), max(1, round(SECOND / step))
    if abs(parts * step - SECOND) < parts:
        place = round(tick % SECOND * parts / SECOND)
        yield tick - tick % SECOND + round(place * SECOND / parts)
    if is_multiple(step, unit):  # else stamps are rounded, and none of them tells the phase
        for each in (round(step), *(size for size in UNITS.values() if size < step)):
            yield round(tick / each) * each


def _as(ticks: Ticks, value: Any) -> Any:
    """A number of the type of `ticks`."""
    if ticks.dtype.kind == "f":
        return value
    return np.rint(value).astype(np.int64) if isinstance(value, np.ndarray) else round(float(value))
