"""Converts time stamps to whole steps and back. Loads no torch.

Stamps are moments in UTC, or what a clock shows where the table names no zone.
"""

from dataclasses import dataclass
from math import isclose
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.series.zones import meant_times, to_local, to_utc
from lstm_compile.errors import InputError

Monthly = Literal["months", "month-ends", "business-month-ends", "business-month-starts"]
Kind = Literal["number", "fixed", "wall", "weekdays", Monthly]
Ticks = NDArray[Any]  # int64, or float64 for numbers with fractions

HOUR = 3_600_000_000_000  # of nanoseconds
DAY = 24 * HOUR
LEAST_MONTH = 28 * DAY
UNITS = {
    "day": DAY, "hour": HOUR, "minute": HOUR // 60, "second": HOUR // 3600,
    "millisecond": 1_000_000, "microsecond": 1000, "nanosecond": 1,
}  # fmt: skip
STEP_DECIMALS = 7
CLOSE = 1e-6  # of a step: the largest error of fractional times
MOST_TRIED = 8  # days and times of day, to find what most rows have
DAYS_OF_WEEK, WEEKS_OF_YEAR, MONTHS_OF_YEAR = 7, 52, 12
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
BUSINESS = "1111100"  # Monday to Friday
_FIRST_DAY = np.datetime64("1600-01-01")  # before all stamps: NumPy counts days forwards
_WORDS = {
    "months": "the same day and time of each month",
    "month-ends": "the last day of each month",
    "business-month-ends": "the last weekday of each month",
    "business-month-starts": "the first weekday of each month",
}


@dataclass(frozen=True)
class Clock:
    """The length of one step of a table.

    Attributes:
        kind: `number` (the time column holds numbers), `fixed` (a number of nanoseconds), `wall`
            (the same on the clocks of a zone, which go forward and back), `weekdays` (some days of
            each week), or a `Monthly` one: `months` (the same day and time of a month),
            `month-ends` (its last day), `business-month-ends` or `business-month-starts` (its last
            or first day of Monday to Friday).
        step: in units of the column, in nanoseconds, in days of `week`, or in months.
        zone: of the stamps, see `zones`; empty where they have none.
        week: of `weekdays`: `1` for a day that counts and `0` for one that does not, from Monday.

    Raises:
        InputError: an unknown kind or week, or a step that is not above 0.
    """

    kind: Kind
    step: float
    zone: str = ""
    week: str = ""

    def __post_init__(self) -> None:
        known = self.kind in ("number", "fixed", "wall", "weekdays", *get_args(Monthly))
        is_week = len(self.week) == DAYS_OF_WEEK and set(self.week) == {"0", "1"}
        if not known or not self.step > 0 or is_week != (self.kind == "weekdays"):
            raise InputError(f"Clock: no such step: {self.kind} {self.step!r} {self.week}".strip())

    @property
    def is_monthly(self) -> bool:
        """Whether the step is a number of months."""
        return self.kind in get_args(Monthly)

    @property
    def may_be_months(self) -> bool:
        """Whether the step is a time so long that it may stand for months, which are uneven."""
        return self.kind == "fixed" and self.step >= LEAST_MONTH

    @property
    def season(self) -> int:
        """Steps of the usual season: 24 hours, a week of days, 52 weeks or 12 months; else 1."""
        if self.kind == "number":
            return 1
        if self.kind == "weekdays":
            return self.week.count("1") if self.step == 1 else 1
        if self.is_monthly:
            return int(MONTHS_OF_YEAR // self.step) if MONTHS_OF_YEAR % self.step == 0 else 1
        if self.step < DAY:
            return int(DAY // self.step) if DAY % self.step == 0 else 1
        return {DAY: DAYS_OF_WEEK, DAYS_OF_WEEK * DAY: WEEKS_OF_YEAR}.get(int(self.step), 1)

    @property
    def name(self) -> str:
        """The step in words: `1 hour`, `3 months`, `1 day of Monday to Friday`, `0.5`."""
        return self.words(self.step)

    def words(self, distance: float) -> str:
        """A distance of ticks in words."""
        if self.kind == "number":
            return f"{distance:g}"
        if self.kind == "weekdays":
            return f"{_counted(distance, 'day')} of {_days_of(self.week)}"
        if self.is_monthly:
            business = f" ({_WORDS[self.kind]})" if self.kind.startswith("business") else ""
            return _counted(distance, "month") + business
        unit, size = next((name, size) for name, size in UNITS.items() if distance % size == 0)
        return _counted(distance / size, unit)

    @property
    def rule(self) -> str:
        """What every stamp must be, for a message."""
        days = f"a day of {_days_of(self.week)}, at the same time" if self.week else ""
        return days or _WORDS.get(self.kind, f"steps of {self.name}")

    def ticks(self, times: NDArray[Any]) -> Ticks:
        """Times on a scale where steps are equal: months, days, nanoseconds or the numbers.

        Raises:
            InputError: dates where the clock has numbers, or the reverse.
        """
        is_date = times.dtype.kind == "M"
        if is_date == (self.kind == "number"):
            found, expected = ("dates", "numbers") if is_date else ("numbers", "dates")
            raise InputError(f"the times are {found}, but the model was trained on {expected}")
        if self.kind == "number":
            return times if self.step % 1 == 0 else times.astype(np.float64)
        if self.kind == "fixed":
            return times.astype("M8[ns]").astype(np.int64)
        shown = meant_times(times, self.zone)
        if self.kind == "wall":
            return shown.astype("M8[ns]").astype(np.int64)
        if self.kind == "weekdays":
            days = shown.astype("M8[D]")
            return np.asarray(np.busday_count(_FIRST_DAY, days, self.week), np.int64)
        return shown.astype("M8[M]").astype(np.int64)

    def stamps(self, ticks: Ticks, like: np.datetime64 | None = None) -> NDArray[Any]:
        """The times of ticks: datetime64[s or ns], or numbers; the opposite of `ticks`.

        The steps of weekdays and months have the time of day of `like`, and those of `months` its
        day, or in a month that has no such day its last; see `like`.
        """
        if self.kind == "number":
            return on_parts(ticks, self.step, CLOSE)
        if self.kind in ("fixed", "wall"):
            stamps = ticks.astype("M8[ns]")
        else:
            like = np.datetime64("1970-01-01") if like is None else like
            day, time = _day_and_time(to_local(np.array([like], "M8[ns]"), self.zone))
            stamps = self._days(ticks, day[0]).astype("M8[s]")
            whole = time[0].astype("m8[s]")  # nanoseconds end in the year 2262
            stamps = stamps + (whole if whole == time[0] else time[0])
        if self.kind != "fixed":
            stamps = to_utc(stamps, self.zone)
        seconds = stamps.astype("M8[s]")
        return seconds if (seconds == stamps).all() else stamps

    def like(self, times: NDArray[Any]) -> np.datetime64 | None:
        """The one of `times` whose day and time of day all others have, for `stamps`."""
        if self.kind == "number":
            return None
        latest = _day_and_time(to_local(times, self.zone))[0].argmax() if self.is_monthly else 0
        return np.datetime64(times[latest])

    def local(self, stamps: NDArray[Any]) -> NDArray[Any]:
        """What the clocks of the zone show at `stamps`."""
        return stamps if self.kind == "number" else to_local(stamps, self.zone)

    def features(self, span: float) -> tuple[str, ...]:
        """The columns of `CALENDAR` that differ between steps and repeat within `span` ticks."""
        if self.kind == "number":
            return ()
        if self.is_monthly:
            return ("month",) if self.step < MONTHS_OF_YEAR and span >= 24 else ()
        lengths = {"hour": DAY, "weekday": 7 * DAY, "month": 365 * DAY}
        unit = 7 * DAY / self.week.count("1") if self.kind == "weekdays" else 1
        step, span = self.step * unit, span * unit
        return tuple(n for n, size in lengths.items() if step < size and span >= 2 * size)

    def _days(self, ticks: Ticks, day: Any) -> NDArray[Any]:
        """The day of each tick as clocks show it, datetime64[D]; `day` of the month, from 0."""
        if self.kind == "weekdays":
            return np.busday_offset(_FIRST_DAY, ticks, "forward", self.week)
        first, last = ticks.astype("M8[M]").astype("M8[D]"), month_ends(ticks.astype("M8[M]"))
        if self.kind == "month-ends":
            return last
        if self.kind == "business-month-ends":
            return np.busday_offset(last, 0, "backward", BUSINESS)
        if self.kind == "business-month-starts":
            return np.busday_offset(first, 0, "forward", BUSINESS)
        return np.asarray(np.minimum(first + day, last))


def month_ends(times: NDArray[Any]) -> NDArray[Any]:
    """The last day of the month of each time, datetime64[D]."""
    return np.asarray((times.astype("M8[M]") + 1).astype("M8[D]") - 1)


def monthly_kind(shown: NDArray[Any]) -> Monthly | None:
    """The first kind of months that fits all times of a table, as clocks show them."""
    days, times = _day_and_time(shown)
    if (times != times[0]).any():
        return None
    day, last = shown.astype("M8[D]"), month_ends(shown)
    if (day == last).all():
        return "month-ends"
    first = shown.astype("M8[M]").astype("M8[D]")
    if (day == np.minimum(first + days.max(), last)).all():
        return "months"
    if (day == np.busday_offset(last, 0, "backward", BUSINESS)).all():
        return "business-month-ends"
    if (day == np.busday_offset(first, 0, "forward", BUSINESS)).all():
        return "business-month-starts"
    return None


def usual_times(clock: Clock, times: NDArray[Any]) -> NDArray[Any]:
    """Some of `times`, one for each of the most frequent days and times of day, for `stamps`."""
    shown = to_local(times, clock.zone)
    start = shown.astype("M8[M]" if clock.kind == "months" else "M8[D]")
    _, rows, counts = np.unique(shown - start, return_index=True, return_counts=True)
    return np.asarray(times[rows[np.argsort(-counts, kind="stable")][:MOST_TRIED]])


def whole_steps(
    distance: Ticks, step: float, ticks: Ticks | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Distances rounded to steps, int64, and a mask of those that are no whole number of steps.

    Of distances between fractional `ticks`, the rounding of these is left out of account: seconds
    since 1970 are known to 2e-7.
    """
    close = CLOSE * step
    if ticks is not None and ticks.dtype.kind == "f" and len(ticks):
        close = max(close, 2 * float(np.spacing(np.abs(ticks).max())))
    count = np.rint(distance / step).astype(np.int64)
    return count, np.abs(distance - count * step) > close


def on_parts(ticks: Ticks, step: float, close: float) -> Ticks:
    """Ticks of a step that is one part of 1, like 1/12, where they are such parts but rounded.

    Those of a step with few decimals, like 0.3, are rounded to these. Of other steps, and where one
    is more than `close` steps off (or the last bits of such a number), they stay as they are.
    """
    parts = max(1, round(1 / step))
    if not isclose(step * parts, 1, rel_tol=1e-15):
        parts = next((10**d for d in range(STEP_DECIMALS) if round(step, d) == step), 0)
    if ticks.dtype.kind != "f" or not parts or not len(ticks):
        return ticks
    found = np.rint(ticks * parts) / parts
    room = max(close * step, 4 * float(np.spacing(np.abs(ticks).max())))
    return found if (np.abs(found - ticks) <= room).all() else ticks


def calendar_columns(stamps: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.float32]:
    """Sine and cosine of each of `names`, float32 (stamps, 2 * names): hour, weekday, month.

    Args:
        stamps: datetime64 (stamps,), as the clocks of the zone show them.
        names: of `CALENDAR`; the hour counts its minutes too, Monday is weekday 0.
    """
    if not names:
        return np.zeros((len(stamps), 0), np.float32)
    days, months = stamps.astype("M8[D]"), stamps.astype("M8[M]").astype(np.int64)
    shares = {
        "hour": (stamps - days) / np.timedelta64(1, "D"),
        "weekday": weekdays(stamps) / 7,
        "month": months % 12 / 12,
    }
    angles = [2 * np.pi * shares[name] for name in names]
    columns = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.stack(columns, 1).astype(np.float32)


def weekdays(stamps: NDArray[Any]) -> NDArray[np.int64]:
    """The day of the week of each time, int64, 0 for Monday."""
    days = stamps.astype("M8[D]").astype(np.int64)
    return (days + 3) % DAYS_OF_WEEK  # day 0 was a Thursday


def _day_and_time(shown: NDArray[Any]) -> tuple[Any, Any]:
    """The day of the month from 0, timedelta64[D], and the time of day, of each time."""
    days = shown.astype("M8[D]")
    return days - shown.astype("M8[M]").astype("M8[D]"), shown - days


def _counted(count: float, unit: str) -> str:
    return f"{count:.10g} {unit}{'' if count == 1 else 's'}"


def step_of(week: str) -> str:
    """The `--step` of a week: `B`, `Mon-Sat` or `Mon,Wed`."""
    first, to, last = _days_of(week).partition(" to ")
    if week == BUSINESS or not to:
        return "B" if to else ",".join(day[:3] for day in first.split(", "))
    return f"{first[:3]}-{last[:3]}"


def _days_of(week: str) -> str:
    """The days of a week in words: `Monday to Friday`."""
    start = next((i for i in range(7) if week[i] == "1" and week[i - 1] == "0"), 0)
    turned, count = week[start:] + week[:start], week.count("1")
    if "01" in turned:
        return ", ".join(day for day, mark in zip(WEEKDAYS, week, strict=True) if mark == "1")
    return f"{WEEKDAYS[start]} to {WEEKDAYS[(start + count - 1) % 7]}"
