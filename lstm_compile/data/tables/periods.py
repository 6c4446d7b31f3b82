"""Dates that are not written as ISO 8601: quarters, weeks and months, and whole numbers."""

import re
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from lstm_compile.data.calendar import FIRST_YEAR, LAST_YEAR

# texts by name; the groups hold the year and the number of the period
PERIODS = {
    "quarter": r"^(?P<year>\d{4})[-: ]?[Qq](?P<number>[1-4])$",
    "quarter first": r"^[Qq](?P<number>[1-4])[-/: ]?(?P<year>\d{4})$",
    "month": r"^(?P<year>\d{4})-?M(?P<number>\d\d?)$",
    "week": r"^(?P<year>\d{4})-?W(?P<number>\d\d)$",
}
# whole numbers by name, and their count of digits; the likely ones first
NUMBERS = {
    "YYYY": 4, "YYYYQ": 5, "YYYYMM": 6, "YYYYWW": 6, "YYYYDDD": 7, "YYYYMMDD": 8,
    "YYYYMMDDHH": 10, "YYYYMMDDHHMM": 12, "YYYYMMDDHHMMSS": 14,
}  # fmt: skip
# forms with a year of two digits, which are not read, by those that their numbers may fit too
RIVALS = {"YYYY": ("YYMM", "YYWW"), "YYYYMM": ("YYMMDD",), "YYYYWW": ("YYMMDD",)}
MOST_DIGITS = 18
MEND_DATES = "write dates as ISO 8601, like 2000-01-31"
ANY_PERIOD = "|".join(re.sub(r"\?P<\w+>", "", pattern) for pattern in PERIODS.values())
OF_YEAR = {"YYYYQ": ("M", 3, 1), "YYYYDDD": ("D", 1, 3)}  # a unit, how many, digits
_PARTS = (("h", 24), ("m", 60), ("s", 60))
Dates = NDArray[Any]  # datetime64[s]


def period_of(text: str) -> str:
    """The name of the period that a text is written as; empty if it is none."""
    return next((name for name, each in PERIODS.items() if re.match(each, text)), "")


def from_periods(cells: Any, name: str) -> Dates:
    """The first day of periods, NaT where a text is none."""
    parts = pc.extract_regex(cells, PERIODS[name])
    years, numbers = (
        np.array([int(each or 0) for each in pc.struct_field(parts, key).to_pylist()])
        for key in ("year", "number")
    )
    is_good = (years >= FIRST_YEAR) & (years <= LAST_YEAR)
    start = (np.where(is_good, years, 2000) - 1970).astype("M8[Y]")
    if name == "week":
        return _weeks(start, numbers, is_good)
    length = 1 if name == "month" else 3
    months = start.astype("M8[M]") + (numbers - 1) * length
    is_good &= (numbers >= 1) & (numbers <= 12 // length)
    return _where(is_good, months)


def to_periods(days: NDArray[Any], name: str, sample: str) -> list[str]:
    """The periods of days, written as `sample` is."""
    months = days.astype("M8[M]").astype(np.int64)
    years, numbers = months // 12 + 1970, months % 12 + 1
    if name == "week":
        years, numbers = iso_weeks(days)
    elif name != "month":
        numbers = (numbers + 2) // 3
    match = re.match(PERIODS[name], sample)
    assert match is not None
    width = len(match["number"])
    (begin, end), (first, last) = match.span("year"), match.span("number")
    if first > begin:
        return [
            f"{y:04}{sample[end:first]}{n:0{width}}"
            for y, n in zip(years.tolist(), numbers.tolist(), strict=True)
        ]
    return [
        f"{sample[:first]}{n}{sample[last:begin]}{y:04}"
        for y, n in zip(years.tolist(), numbers.tolist(), strict=True)
    ]


def from_numbers(whole: NDArray[np.int64], name: str) -> Dates:
    """The dates of whole numbers, NaT where a number is none."""
    years, rest = np.divmod(whole, 10 ** (NUMBERS[name] - 4))
    is_good = (years >= FIRST_YEAR) & (years <= LAST_YEAR)
    start = (np.where(is_good, years, 2000) - 1970).astype("M8[Y]")
    if name == "YYYYWW":
        return _weeks(start, rest, is_good)
    if name in OF_YEAR:
        unit, size, _ = OF_YEAR[name]
        dates = start.astype(f"M8[{unit}]") + size * (rest - 1)
        return _where(is_good & (dates.astype("M8[Y]") == start), dates)
    count = (NUMBERS[name] - 4) // 2
    parts = [rest // 100 ** (count - 1 - index) % 100 for index in range(count)]
    month, day = [*parts[:2], *[np.ones_like(whole)] * 2][:2]
    months = start.astype("M8[M]") + (np.clip(month, 1, 12) - 1)
    dates = (months.astype("M8[D]") + (day - 1)).astype("M8[s]")
    is_good &= (month >= 1) & (month <= 12) & (dates.astype("M8[M]") == months)
    for part, (unit, most) in zip(parts[2:], _PARTS, strict=False):
        dates, is_good = dates + part.astype(f"m8[{unit}]"), is_good & (part < most)
    return _where(is_good, dates)


def to_numbers(shown: NDArray[Any], name: str) -> list[str]:
    """The digits of dates, as clocks show them."""
    if name == "YYYYWW":
        return [
            f"{y:04}{w:02}" for y, w in zip(*map(np.ndarray.tolist, iso_weeks(shown)), strict=True)
        ]
    if name in OF_YEAR:
        years, (unit, size, width) = shown.astype("M8[Y]"), OF_YEAR[name]
        places = shown.astype(f"M8[{unit}]") - years.astype(f"M8[{unit}]")
        ends = (places.astype(np.int64) // size + 1).tolist()
        return [f"{y}{n:0{width}}" for y, n in zip(years.astype(str), ends, strict=True)]
    texts = np.datetime_as_string(shown.astype("M8[s]")).tolist()
    return [re.sub(r"\D", "", text)[: NUMBERS[name]] for text in texts]


def is_date_code(times: NDArray[Any], is_next: NDArray[np.bool_], step: float) -> NDArray[np.bool_]:
    """Where numbers go on as dates do, like 2412, 2501; all False if they do not.

    The distances that are not `step` are those from one hundred to the next (or thousand, ...), and
    no place within a hundred is above 60. Or they are all those from one week of five days to the
    next, as of days since 1900.

    Args:
        times: sorted within each series, (rows,).
        is_next: whether a row belongs to the series of the row before, bool (rows - 1,).
        step: the most frequent distance.
    """
    times = np.asarray(times, np.float64) + step * 1e-3
    is_odd = is_next & (np.abs(np.diff(times) - step) > step / 2)
    first = int(np.floor(np.log10(step))) + 1
    blocks = [(10.0**power, 0.61, 0.0) for power in range(first, MOST_DIGITS)]
    weekdays = range(7 if is_odd.sum() > 1 else 0)
    blocks += [(7 * step, 5 / 7, times[0] + day * step) for day in weekdays]
    for size, share, start in blocks if (is_next & ~is_odd).any() else []:
        block, place = np.divmod(times - start, size)
        if (place <= share * size).all() and ((is_next & (np.diff(block) > 0)) == is_odd).all():
            return is_odd
    return np.zeros(len(is_next), bool)


def rival_of(whole: NDArray[np.int64], name: str) -> str:
    """A form with a year of two digits that fits numbers better than `name`; else empty."""
    for rival in RIVALS.get(name, ()):
        dates = from_numbers(whole + 20 * 10 ** NUMBERS[name], "YY" + rival)
        if np.isnat(dates).any():
            continue
        if _unevenness(dates, "YY" + rival) < _unevenness(from_numbers(whole, name), name):
            return rival
    return ""


def _unevenness(dates: Dates, name: str) -> float:
    """The share of distances that are not the most frequent one."""
    unit = {"YYYY": "Y", "YYYYMM": "M"}.get(name, "D")
    distances = np.diff(np.unique(dates.astype(f"M8[{unit}]")).astype(np.int64))
    return 1 - float(np.unique(distances, return_counts=True)[1].max(initial=0)) / max(
        1, len(distances)
    )


def iso_weeks(days: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The year and the number of the ISO week of each day; they are those of its Thursday."""
    days = days.astype("M8[D]")
    thursday = days - (days.astype(np.int64) + 3) % 7 + 3
    years = thursday.astype("M8[Y]")
    return years.astype(np.int64) + 1970, (thursday - years.astype("M8[D]")).astype(
        np.int64
    ) // 7 + 1


def _weeks(start: NDArray[Any], numbers: NDArray[np.int64], is_good: NDArray[np.bool_]) -> Dates:
    """The Monday of each ISO week; week 1 is that of 4 January."""
    first, after = (
        day - (day.astype(np.int64) + 3) % 7
        for day in ((start + each).astype("M8[D]") + 3 for each in (0, 1))
    )
    dates = first + 7 * (numbers - 1)
    return _where(is_good & (numbers >= 1) & (dates < after), dates)


def _where(is_good: NDArray[np.bool_], dates: NDArray[Any]) -> Dates:
    return np.where(is_good, dates.astype("M8[s]"), np.datetime64("NaT", "s"))
