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
    "YYYY": 4, "YYYYMM": 6, "YYYYWW": 6, "YYYYMMDD": 8,
    "YYYYMMDDHH": 10, "YYYYMMDDHHMM": 12, "YYYYMMDDHHMMSS": 14,
}  # fmt: skip
ANY_PERIOD = "|".join(re.sub(r"\?P<\w+>", "", pattern) for pattern in PERIODS.values())
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
    texts = np.datetime_as_string(shown.astype("M8[s]")).tolist()
    return [re.sub(r"\D", "", text)[: NUMBERS[name]] for text in texts]


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
