"""The clock of a table: inferred from its rows, or asked for with `--step`. Loads no torch."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.series.clock import (
    BUSINESS,
    CLOSE,
    DAY,
    DAYS_OF_WEEK,
    HOUR,
    WEEKDAYS,
    Clock,
    Kind,
    monthly_kind,
    weekdays,
    whole_steps,
)
from lstm_compile.data.series.zones import meant_times
from lstm_compile.errors import InputError

FEW_GAPS = 0.8  # of the rows must follow the row before by one weekday: the rest are holidays
MINUTE = HOUR // 60
MOST_PARTS = 1440  # of a step that is a part of 1, as a minute is of a day
# the names that pandas gives to steps
STEPS: dict[str, tuple[Kind, int]] = {
    "ns": ("fixed", 1),
    "us": ("fixed", 1000),
    "ms": ("fixed", 1_000_000),
    "s": ("fixed", MINUTE // 60),
    "min": ("fixed", MINUTE),
    "h": ("fixed", HOUR),
    "D": ("fixed", DAY),
    "W": ("fixed", DAYS_OF_WEEK * DAY),
    "B": ("weekdays", 1),
    "MS": ("months", 1),
    "ME": ("month-ends", 1),
    "BMS": ("business-month-starts", 1),
    "BME": ("business-month-ends", 1),
    "QS": ("months", 3),
    "QE": ("month-ends", 3),
    "BQS": ("business-month-starts", 3),
    "BQE": ("business-month-ends", 3),
    "YS": ("months", 12),
    "YE": ("month-ends", 12),
}
MONTHLY_STEPS = (("months", "MS", 28, 31), ("quarters", "QS", 90, 92), ("years", "YS", 365, 366))
_ASKED = re.compile(r"([\d.]*)\s*([A-Za-z]*)$")
_DAYS = re.compile(r"[A-Za-z]{3}([-,][A-Za-z]{3})+$")


def infer_clock(times: NDArray[Any], is_next: NDArray[np.bool_], zone: str = "") -> Clock:
    """The clock of a table whose rows are in order.

    The step is the most frequent distance between a row and the next. Months, or some days of each
    week, are a step only if all rows lie on them.

    Args:
        times: numbers or datetime64 (rows,), sorted within each series; moments in UTC with a zone.
        is_next: bool (rows - 1,), whether a row belongs to the series of the row before.
        zone: of the stamps, see `zones`.

    Raises:
        InputError: no series has two rows.
    """
    if not is_next.any():
        raise InputError("no series has two rows, so no step can be inferred")
    if times.dtype.kind != "M":
        return Clock("number", _numeric_step(times, is_next))
    shown = meant_times(times, zone)
    steps = np.diff(shown.astype("M8[M]").astype(np.int64))[is_next]
    ticks = times.astype("M8[ns]").astype(np.int64)
    distances, kind = np.diff(ticks)[is_next], monthly_kind(shown) if (steps > 0).all() else None
    is_even = (distances == distances[0]).all()
    if kind and not (is_even and kind.startswith("business")):
        return Clock(kind, _most_frequent(steps), zone)
    if not is_even and (week := _week(shown, is_next)):
        return Clock("weekdays", 1, zone, week)
    if zone and (wall := _wall(ticks, shown, is_next, zone)):
        return wall
    return Clock("fixed", _most_frequent(distances), zone)


def asked_clock(step: str, is_date: bool, zone: str = "") -> Clock:
    """The clock of `--step`: `15min`, `B`, `Mon-Sat`, `MS`; or a number for a column of numbers.

    Raises:
        InputError: no such step, or it does not go with the column's kind.
    """
    days, match = _asked_week(step), _ASKED.match(step)
    if days:
        clock = Clock("weekdays", 1, zone, days)
    elif match and match[2] in STEPS:
        (kind, size), count = STEPS[match[2]], float(match[1] or 1)
        size = int(count * size) if count * size % 1 == 0 else 0
        if kind == "fixed" and zone and size % DAY == 0:
            kind = "wall"
        clock = Clock(kind, size, zone, BUSINESS if kind == "weekdays" else "")
    elif match and match[1] and not match[2]:
        number = float(match[1])
        clock = Clock("number", int(number) if number % 1 == 0 else number)
    else:
        raise InputError(
            f"--step {step} is no step; expected a number, days like Mon-Sat, or a count and one "
            f"of {', '.join(STEPS)}, like 15min or B"
        )
    if is_date == (clock.kind == "number"):
        raise InputError(
            f"--step {step} is for {'numbers' if is_date else 'dates'}, but the column holds "
            f"{'dates' if is_date else 'numbers'}; "
            + ("name a unit, like 15min or B" if is_date else "name a number, or leave it out")
        )
    return clock


def months_hint(days: float, fits: Callable[[str], bool]) -> str:
    """What to try where rows are so many days apart: `if rows are quarters, say --step QS`.

    `fits` says whether most rows lie on a step.
    """
    for name, step, low, high in MONTHLY_STEPS:
        if low <= days <= high:
            say = f"say --step {step}" if fits(step) else "write each as the first day of its month"
            return f"if rows are {name}, {say}; else "
    return ""


def fitting_clock(clock: Clock, times: NDArray[Any]) -> Clock:
    """The clock of a trained model for other rows: of months, on the days that these rows have."""
    if not clock.is_monthly or times.dtype.kind != "M":
        return clock
    if (clock.stamps(clock.ticks(times), clock.like(times)) == times).all():
        return clock
    kind = monthly_kind(meant_times(times, clock.zone)) or clock.kind
    return Clock(kind, clock.step, clock.zone)


def _week(shown: NDArray[Any], is_next: NDArray[np.bool_]) -> str:
    """The days of the week of all rows, if these are a step; else empty.

    Monday to Friday need a weekend between two rows. Other days need two weeks, so that each other
    day is left out twice.
    """
    days = shown.astype("M8[D]")
    present = np.bincount(weekdays(shown), minlength=DAYS_OF_WEEK) > 0
    week = "".join("01"[int(each)] for each in present)
    starts = np.flatnonzero(np.concatenate(([True], ~is_next)))
    ends = np.concatenate((starts[1:] - 1, [len(days) - 1]))
    span = int((days[ends] - days[starts]).astype(np.int64).max())
    is_once = (shown - days == shown[0] - days[0]).all()
    if not is_once or week.count("1") in (1, 7) or span < (7 if week == BUSINESS else 14):
        return ""
    counts = np.busday_count(days[:-1], days[1:], week)[is_next]
    least = FEW_GAPS if week.count("1") >= 5 else 1
    return week if (counts == 1).mean() >= least else ""


def _wall(
    ticks: NDArray[np.int64], shown: NDArray[Any], is_next: NDArray[np.bool_], zone: str
) -> Clock | None:
    """The clock of equal steps on the clocks of a zone, if rows fit it and need it."""
    fits = []
    for each in (ticks, shown.astype("M8[ns]").astype(np.int64)):
        distances = np.diff(each)[is_next]
        step = _most_frequent(distances)
        fits.append((step, not whole_steps(distances, step)[1].any()))
    (_, is_fixed), (step, is_wall) = fits
    return Clock("wall", step, zone) if is_wall and (step % DAY == 0 or not is_fixed) else None


def _asked_week(step: str) -> str:
    """The week of `Mon-Sat` or `Mon,Wed,Fri`; empty if it is neither."""
    names = [day[:3].lower() for day in WEEKDAYS]
    found = re.split("[-,]", step.lower())
    if not _DAYS.match(step) or not set(found) <= set(names):
        return ""
    places = [names.index(each) for each in found]
    if "-" in step:
        places = [(places[0] + i) % 7 for i in range((places[-1] - places[0]) % 7 + 1)]
    week = "".join("01"[day in places] for day in range(DAYS_OF_WEEK))
    return week if "0" in week else ""


def _numeric_step(times: NDArray[Any], is_next: NDArray[np.bool_]) -> float:
    """The step of times that are numbers; of fractions, rounded as the times themselves are."""
    distances = np.diff(times)[is_next]
    step = _most_frequent(distances)
    rounding = float(np.spacing(np.abs(times).max())) if times.dtype.kind == "f" else 0.0
    if rounding < step * 1e-9:
        parts = round(1 / step) or 1
        return 1 / parts if parts <= MOST_PARTS and abs(1 / parts - step) <= CLOSE * step else step
    like = distances[np.abs(distances - step) <= 4 * rounding]
    return float(f"{like.mean():.6g}")


def _most_frequent(steps: NDArray[Any]) -> float:
    steps = steps[steps > 0]
    if steps.dtype.kind == "f":
        # ignores rounding errors
        steps = np.array([float(f"{step:.9g}") for step in steps[: 1 << 16]])
    values, counts = np.unique(steps, return_counts=True)
    value = values[counts.argmax()]
    return float(value) if steps.dtype.kind == "f" else int(value)
