"""Reads the time column of series: its zone, and whole numbers that are dates. Loads no torch."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lstm_compile.data.schema import SeriesSchema
from lstm_compile.data.series.clock_changes import moments
from lstm_compile.data.series.stamp_format import OFFSET, StampFormat
from lstm_compile.data.series.zones import check_zone, is_offset, offset_text
from lstm_compile.data.tables.periods import (
    MEND_DATES,
    NUMBERS,
    OF_YEAR,
    from_numbers,
    period_of,
    rival_of,
)
from lstm_compile.data.tables.values import CellError, is_date, kind_of, to_times
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

MOST_FIT = 0.9  # of the rows must be dates: then the others are errors
LARGEST = 1e15  # no date has more digits


@dataclass
class StampReader:
    """Reads the cells of a time column, and finds how they are written.

    Attributes:
        asked: `--time-zone`: the zone of stamps without an offset, and what others are shown in.
        series: of a trained model, whose clock these stamps must fit; else None.
        step: `--step`, which says whether six digits are a month or a week, or no date at all.
        is_typed: whether the files have types.
        format: how the stamps are written.
        zone: whose days and months count; empty where stamps have no zone.
        has_unknown_zone: whether the stamps are moments in UTC, of a zone that was not named.
        notes: for the description of the table.
    """

    asked: str = ""
    series: SeriesSchema | None = None
    step: str = ""
    is_typed: bool = True
    format: StampFormat = field(default_factory=StampFormat)
    zone: str = ""
    has_unknown_zone: bool = False
    notes: tuple[str, ...] = ()
    _type: Any = None  # of the column
    _last: str = ""  # the offset of the last stamp
    _zones: set[str] = field(default_factory=set)

    @property
    def has_offsets(self) -> bool:
        """Whether the stamps have a zone of their own."""
        return bool(self._zones - {""})

    def read(self, cells: Any) -> NDArray[Any]:
        """The times of cells; see `values.to_times`.

        Raises:
            CellError: a cell that is no time, or that is written in another way than those before.
        """
        times = to_times(cells)
        is_text = kind_of(cells.type) == "text"
        texts = cells.cast(pa.string()) if is_text else None
        if self._type is None:
            self._type = cells.type.value_type if pa.types.is_dictionary(cells.type) else cells.type
            self.format = replace(self.format, type=self._type if self.is_typed else None)
            if texts is not None and times.dtype.kind == "M":
                sample = str(texts[0]).strip()
                self.format = replace(self.format, sample=sample, form=period_of(sample))
        if times.dtype.kind != "M":
            return times
        if texts is not None and (match := re.search(OFFSET, str(texts[-1]).strip())):
            self._last = match["offset"]
        zones = _offsets(texts) if texts is not None else {getattr(cells.type, "tz", None) or ""}
        form = period_of(str(texts[0]).strip()) if texts is not None else ""
        self._zones |= zones
        if ("" in self._zones and len(self._zones) > 1) or form != self.format.form:
            expected = f"a stamp written like {self.format.sample!r}, with or without an offset"
            raise CellError(0, repr(str(cells[0])), expected)
        return times

    def finish(self, times: NDArray[Any], series: NDArray[Any]) -> NDArray[Any]:
        """The times of all rows in the order of the files: moments in UTC, or numbers.

        `series` is the number of each row's series.

        Raises:
            CellError: see `moments`; or a whole number that is no date among dates.
            InputError: a zone that is not known, or that does not fit the model.
        """
        times = times if times.dtype.kind == "M" else self._dates(times)
        if times.dtype.kind != "M":
            if self.asked:
                raise InputError("--time-zone is for dates, but the times are numbers")
            return times
        own = sorted({check_zone(each) for each in self._zones if each})
        shown = check_zone(self.asked) if self.asked else own[0] if len(own) == 1 else ""
        if self.series and own and self._is_elsewhere(times, own, shown):
            shown = own[0] if len(own) == 1 else check_zone(self._last)
        self._check_zone(shown or own)
        self.zone = (self.series.zone or "") if self.series else shown or ("UTC" if own else "")
        self.has_unknown_zone = self.zone == "UTC" and not self.asked
        if len(own) > 1 and not shown and not self.series:
            found = f"time zone: UTC, as the stamps have several offsets ({listing(own)})"
            self.notes = (f"{found}; --time-zone names one",)
        elif self.zone:
            self.notes = (f"time zone: {self.zone}{self._shift_note(own)}",)
        shown = shown or (self.zone or "UTC" if own else "")
        self.format = replace(self.format, zone=shown)
        return times if own or not shown else moments(times, series, shown)

    def _is_elsewhere(self, times: NDArray[Any], own: list[str], zone: str) -> bool:
        """Whether stamps have other zones than the zone of a model's training has offsets."""
        is_stored = zone == (self.series.zone if self.series else "")
        if not is_stored or own == ["UTC"] or not all(map(is_offset, own)):
            return is_stored
        return {check_zone(each) for each in set(offset_text(times, zone))} != set(own)

    def _shift_note(self, own: list[str]) -> str:
        """What to tell where stamps have another offset than those of the training."""
        is_same = not self.series or not own or own == [self.zone]
        if is_same or self.asked or not is_offset(self.zone):
            return ""
        return (
            f", as in training, but these stamps have {listing(own)}, and hours and days are "
            f"counted at {self.zone} (if clocks change, train with --time-zone)"
        )

    def _check_zone(self, has_zone: Any) -> None:
        """Find fault with stamps that have a zone where a model's have none, or the reverse."""
        trained = self.series.zone if self.series else None
        if self.series and trained is None and self.asked:
            raise InputError("--time-zone is not for this model, which keeps no zone; leave it out")
        if trained is None or bool(trained) == bool(has_zone):
            return
        if trained:
            raise InputError(
                f"the stamps have no time zone, but the model was trained on stamps of {trained}; "
                "name theirs with --time-zone"
            )
        mend = "leave --time-zone out" if self.asked else "write them without an offset"
        raise InputError(
            f"the stamps have a time zone, but the model was trained on stamps without; {mend}"
        )

    def _dates(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """The dates that whole numbers are; the same numbers if they are none."""
        may_be = self.series is None or self.series.kind != "number"
        may_be &= not re.fullmatch(r"[\d.]+", self.step)
        is_whole = (numbers % 1 == 0).all() and (np.abs(numbers) < LARGEST).all()
        if not may_be or not is_whole or is_date(self._type):
            return numbers
        whole = numbers.astype(np.int64)
        dates = {name: from_numbers(whole, name) for name in self._forms(whole)}
        fits = {name: float((~np.isnat(each)).mean()) for name, each in dates.items()}
        best = max(fits, key=lambda name: fits[name], default="")
        if fits.get("YYYYMM", 0) >= MOST_FIT:
            best = "YYYYMM"  # 13 is rather a wrong month than a week among twelve
        is_known = bool(self.series and self.series.form in NUMBERS)
        if not best or not (is_known or self._are_dates(whole, best, fits[best])):
            return numbers
        self._check_dates(whole, dates[best], best)
        self.format = replace(self.format, form=best)
        return dates[best]

    def _are_dates(self, whole: NDArray[np.int64], name: str, fit: float) -> bool:
        """Whether numbers, of which a share `fit` are dates of a form, are dates, and no count."""
        values = np.unique(whole)
        steps, counts = np.unique(np.diff(values), return_counts=True)
        if fit < MOST_FIT or self.step or name not in ("YYYY", *OF_YEAR):
            return fit >= MOST_FIT
        if name == "YYYY" or not len(steps):
            return fit == 1 or len(steps) > 1
        size = 10 ** (NUMBERS[name] - 4)
        years, places = np.divmod(values[~np.isnat(from_numbers(values, name))], size)
        is_sure = len(np.unique(years)) > 1 or (name == "YYYYDDD" and fit == 1)
        has_halves = name == "YYYYQ" and places.max() < 3  # it may be 20001, 20002, 20011
        return is_sure and not has_halves and int(steps[counts.argmax()]) < size

    def _check_dates(self, whole: NDArray[np.int64], dates: NDArray[Any], name: str) -> None:
        """Find fault with numbers that are no dates, or rather dates of a form that is not read."""
        if not self.series and not self.step and (rival := rival_of(whole, name)):
            expected = f"a year of four digits, as these numbers look like dates {rival}"
            raise CellError(
                0, str(whole[0]), expected, f"{MEND_DATES}; if they are numbers, say --step 1"
            )
        for row in np.flatnonzero(np.isnat(dates))[:1]:
            weeks = "--step W takes weeks, " if name == "YYYYMM" else ""
            hint = "" if self.series else f" ({weeks}--step 1 takes numbers)"
            raise CellError(int(row), str(whole[row]), f"a date {name}, as in other rows{hint}")

    def _forms(self, whole: NDArray[np.int64]) -> list[str]:
        """The forms that the most frequent count of digits allows."""
        if self.series and self.series.form in NUMBERS:
            return [self.series.form]
        counts = np.floor(np.log10(np.maximum(np.abs(whole), 1))).astype(np.int64) + 1
        digits = np.bincount(counts).argmax()
        skipped = ("YYYYMM" if self.step.endswith("W") else "YYYYWW") if self.step else ""
        return [name for name, count in NUMBERS.items() if count == digits and name != skipped]


def _offsets(texts: Any) -> set[str]:
    """The offsets at the end of stamps; empty text where there is none."""
    found = pc.struct_field(pc.extract_regex(texts, OFFSET), "offset")
    return {each or "" for each in pc.unique(found).to_pylist()}
