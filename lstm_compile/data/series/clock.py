"""Converts time stamps to whole steps and back, and infers the step of a table. Loads no torch."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lstm_compile.errors import InputError

Kind = Literal["number", "fixed", "months", "month-ends"]
Ticks = NDArray[Any]  # int64, or float64 for numbers with fractions

HOUR = 3_600_000_000_000  # of nanoseconds
DAY = 24 * HOUR
CLOSE = 1e-6  # of a step: the largest error of fractional times
DAYS_OF_WEEK, WEEKS_OF_YEAR, MONTHS_OF_YEAR = 7, 52, 12


@dataclass(frozen=True)
class Clock:
    """The length of one step of a table.

    Attributes:
        kind: `number` (the time column holds numbers), `fixed` (a number of nanoseconds), `months`
            (the same day and time of a month) or `month-ends` (its last day).
        step: in units of the column, in nanoseconds, or in months.

    Raises:
        InputError: an unknown kind or a step that is not above 0.
    """

    kind: Kind
    step: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or not self.step > 0:
            raise InputError(f"Clock: no such step: {self.kind} {self.step!r}")

    @property
    def season(self) -> int:
        """Steps of the usual season: 24 hours, 7 days, 52 weeks or 12 months; else 1."""
        if self.kind == "number":
            return 1
        if self.kind in ("months", "month-ends"):
            return int(MONTHS_OF_YEAR // self.step) if MONTHS_OF_YEAR % self.step == 0 else 1
        if self.step < DAY:
            return int(DAY // self.step) if DAY % self.step == 0 else 1
        return {DAY: DAYS_OF_WEEK, DAYS_OF_WEEK * DAY: WEEKS_OF_YEAR}.get(int(self.step), 1)

    @property
    def name(self) -> str:
        """The step in words: `1 hour`, `3 months`, `0.5`."""
        if self.kind == "number":
            return f"{self.step:g}"
        if self.kind in ("months", "month-ends"):
            return _counted(self.step, "month")
        units = {"day": DAY, "hour": HOUR, "minute": HOUR // 60, "second": HOUR // 3600}
        unit = next((name for name, size in units.items() if self.step % size == 0), None)
        return _counted(self.step / units[unit], unit) if unit else f"{self.step:g} nanoseconds"

    def ticks(self, times: NDArray[Any]) -> Ticks:
        """Times on a scale where steps are equal: months, nanoseconds or the numbers themselves.

        Raises:
            InputError: dates where the clock has numbers, or the reverse.
        """
        is_date = times.dtype.kind == "M"
        if is_date == (self.kind == "number"):
            found, expected = ("dates", "numbers") if is_date else ("numbers", "dates")
            raise InputError(f"the times are {found}, but the model was trained on {expected}")
        if self.kind in ("months", "month-ends"):
            return times.astype("M8[M]").astype(np.int64)
        return times.astype("M8[ns]").astype(np.int64) if is_date else times

    def stamps(self, ticks: Ticks, like: np.datetime64 | None = None) -> NDArray[Any]:
        """The times of ticks: datetime64[s or ns], or numbers.

        For `months`, the day and time of the month are those of `like`, any stamp of the table; in
        a month that has no such day its last.
        """
        if self.kind == "number":
            return ticks
        if self.kind == "fixed":
            stamps = ticks.astype("M8[ns]")
        elif self.kind == "month-ends":
            stamps = (ticks + 1).astype("M8[M]").astype("M8[D]") - np.timedelta64(1, "D")
        else:
            months = ticks.astype("M8[M]")
            stamps = months.astype("M8[ns]")
            if like is not None:
                day, time = divmod(_in_month(np.asarray([like]))[0], np.timedelta64(1, "D"))
                last = ((months + 1).astype("M8[D]") - months.astype("M8[D]")).astype(int) - 1
                stamps = stamps + np.minimum(day, last).astype("m8[D]") + time
        seconds = stamps.astype("M8[s]")
        return seconds if (seconds == stamps).all() else stamps

    def features(self, span: float) -> tuple[str, ...]:
        """The columns of `CALENDAR` that differ between steps and repeat within `span` ticks."""
        if self.kind == "number":
            return ()
        if self.kind in ("months", "month-ends"):
            return ("month",) if self.step < MONTHS_OF_YEAR and span >= 24 else ()
        lengths = {"hour": DAY, "weekday": 7 * DAY, "month": 365 * DAY}
        return tuple(n for n, size in lengths.items() if self.step < size and span >= 2 * size)


def infer_clock(times: NDArray[Any], is_next: NDArray[np.bool_]) -> Clock:
    """The clock of a table whose rows are in order.

    The step is the most frequent distance between a row and the next.

    Args:
        times: numbers or datetime64 (rows,), sorted within each series.
        is_next: bool (rows - 1,), whether a row belongs to the series of the row before.

    Raises:
        InputError: no series has two rows.
    """
    if not is_next.any():
        raise InputError("no series has two rows, so no step can be inferred")
    if times.dtype.kind != "M":
        return Clock("number", _most_frequent(np.diff(times)[is_next]))
    months, offsets = times.astype("M8[M]").astype(np.int64), _in_month(times)
    steps = np.diff(months)[is_next]
    if (steps > 0).all() and (offsets == offsets[0]).all():
        return Clock("months", _most_frequent(steps))
    days = times.astype("M8[D]")
    is_month_end = (days + np.timedelta64(1, "D")).astype("M8[M]") > days.astype("M8[M]")
    if (steps > 0).all() and is_month_end.all() and (times == days).all():
        return Clock("month-ends", _most_frequent(steps))
    return Clock("fixed", _most_frequent(np.diff(times.astype("M8[ns]").astype(np.int64))[is_next]))


def whole_steps(distance: Ticks, step: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Distances rounded to steps, int64, and a mask of those that are no whole number of steps."""
    count = np.rint(distance / step).astype(np.int64)
    return count, np.abs(distance - count * step) > CLOSE * step


def calendar_columns(stamps: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.float32]:
    """Sine and cosine of each of `names`, float32 (stamps, 2 * names): hour, weekday, month.

    Args:
        stamps: datetime64 (stamps,).
        names: of `CALENDAR`; the hour counts its minutes too, Monday is weekday 0.
    """
    if not names:
        return np.zeros((len(stamps), 0), np.float32)
    days, months = stamps.astype("M8[D]"), stamps.astype("M8[M]").astype(np.int64)
    shares = {
        "hour": (stamps - days) / np.timedelta64(1, "D"),
        "weekday": (days.astype(np.int64) + 3) % 7 / 7,  # day 0 was a Thursday
        "month": months % 12 / 12,
    }
    angles = [2 * np.pi * shares[name] for name in names]
    columns = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.stack(columns, 1).astype(np.float32)


def _counted(count: float, unit: str) -> str:
    return f"{count:g} {unit}{'' if count == 1 else 's'}"


def _most_frequent(steps: NDArray[Any]) -> float:
    steps = steps[steps > 0]
    if steps.dtype.kind == "f":
        # ignores rounding errors
        steps = np.array([float(f"{step:.9g}") for step in steps[: 1 << 16]])
    values, counts = np.unique(steps, return_counts=True)
    value = values[counts.argmax()]
    return float(value) if steps.dtype.kind == "f" else int(value)


def _in_month(times: NDArray[Any]) -> Any:
    return times.astype("M8[ns]") - times.astype("M8[M]").astype("M8[ns]")
