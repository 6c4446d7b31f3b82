"""Finds fault with the times of series, and says how to mend it. Loads no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from lstm_compile.data.series.clock import (
    BUSINESS,
    DAY,
    WEEKDAYS,
    Clock,
    step_of,
    usual_times,
    weekdays,
)
from lstm_compile.data.series.clock_changes import hour_lost_or_repeated
from lstm_compile.data.series.find_clock import asked_clock, infer_clock, months_hint
from lstm_compile.data.series.grid import MEND_GAPS, MEND_STEPS, GridRows
from lstm_compile.data.series.stamp_reader import StampReader
from lstm_compile.data.series.zones import offset_text
from lstm_compile.data.tables.periods import MEND_DATES, is_date_code
from lstm_compile.data.tables.sequence_index import SequenceIndex

SATURDAY = 5
MOST = 0.8  # of the rows: the others are wrong
MEND_MONTHS = "write each as the first day of its month"
LEAST_DISTANCES = 3  # of a series that has a step of its own
LONGEST = 1.2  # of the shortest distance: the median one of a series with a step of its own


@dataclass(frozen=True)
class TimeFaults:
    """What messages about the times of a table need."""

    index: SequenceIndex
    column: str
    clock: Clock
    stamps: StampReader
    jitter: Callable[[], float | None] = lambda: None  # `--jitter` that brings rows to steps

    def clock_change(self) -> str:
        """When clocks seem to go forward or back, in a table without a zone; else empty."""
        index, times = self.index, self.index.times
        if times is None or self.stamps.zone or self.clock.kind != "fixed":
            return ""
        order = slice(None) if index.target_rows is None else index.target_rows
        times, series = times[order], np.repeat(np.arange(len(index.ids)), index.lengths)[order]
        row = hour_lost_or_repeated(times, series, int(self.clock.step))
        return "" if row is None else str(times[row].astype("M8[s]"))

    def change_note(self, changed: int) -> tuple[str, ...]:
        """A note, if some of the `changed` rows may be there as clocks go forward or back."""
        change = self.clock_change() if changed else ""
        told = f"an hour is lost or repeated before {change}"
        return (f"{told} (if clocks change: --time-zone)",) if change else ()

    def refuse(self, row: int, found: str, expected: str, mend: str) -> NoReturn:
        """Raise for the time of a row of the table."""
        series = int(np.searchsorted(self.index.lengths.cumsum(), row, "right"))
        is_day = self.clock.kind in ("fixed", "wall") and self.clock.step >= DAY
        if is_day or self.clock.kind == "weekdays":
            mend = self._mend_days(series, mend)
        elif offset := self._unchanged(row):
            mend = f"if these clocks never change, say --time-zone UTC or {offset}; else {mend}"
        elif change := self.clock_change():
            advice = "train with" if self.stamps.series else "name their zone with"
            mend = f"if clocks change before {change}, {advice} --time-zone; else {mend}"
        elif mend == MEND_STEPS and (jitter := self.jitter()):
            mend = f"{mend}, or let --jitter {jitter:g} move them"
        if len(self.index.ids) > 1:
            expected = f"{expected} in series {self.index.ids[series]!r}"
            mend += (
                ", or use a model for each step" if mend.endswith((MEND_STEPS, "move them")) else ""
            )
        self.index.refuse(row, self.column, found, expected, mend)

    def _mend_days(self, series: int, mend: str) -> str:
        """How to mend steps of days or more, which may be business days, months, or of a zone."""
        if mend == MEND_GAPS:
            end, count = self.index.lengths[: series + 1].sum(), self.index.lengths[series]
            times: Any = self.index.times
            week = self._own_week(times[end - count : end])
            if week in ("", self.clock.week) or self.clock.step not in (1, DAY):
                return mend
            days = "business days" if week == BUSINESS else step_of(week)
            alone = " in a run of this series alone" if len(self.index.ids) > 1 else ""
            return f"if rows are {days}, say --step {step_of(week)}{alone}; else {mend}"
        if mend == MEND_STEPS and not self.stamps.series:
            mend = months_hint(self.clock.step / DAY, self._fits) + mend
        if mend.endswith(MEND_STEPS) and self.stamps.has_unknown_zone:
            return f"name the zone that has equal days with --time-zone, or {mend}"
        return mend

    def _own_week(self, times: Any) -> str:
        """The days of the week that one series has, if these may be its step; else empty."""
        if self.stamps.series or self.clock.kind == "wall":
            return ""
        if weekdays(self.clock.local(times)).max() < SATURDAY:
            return BUSINESS
        is_next = np.ones(len(times) - 1, bool)
        return infer_clock(times, is_next, self.clock.zone).week if len(times) > 1 else ""

    def _fits(self, step: str) -> bool:
        """Whether most rows lie on the `--step` of months."""
        times: Any = self.index.times
        clock = asked_clock(step, True, self.clock.zone)
        ticks = clock.ticks(times)
        likes = usual_times(clock, times)
        shares = [float((clock.stamps(ticks, each) == times).mean()) for each in likes]
        return max(shares) >= MOST

    def _unchanged(self, row: int) -> str:
        """The offset of clocks that seem to stay as clocks of the zone go back; else empty."""
        times, zone = self.index.times, self.stamps.asked
        if times is None or not row or not zone or self.stamps.has_offsets:
            return ""
        shown = self.clock.local(times[row - 1 : row + 1])
        steps = [
            int(np.diff(each.astype("M8[ns]")).item()) for each in (times[row - 1 : row + 1], shown)
        ]
        is_even = self.clock.kind == "fixed" and steps[1] == self.clock.step != steps[0]
        return offset_text(times[row : row + 1], zone)[0] if is_even else ""

    def check_steps(self, rows: GridRows) -> None:
        """Check that rows lie on steps, where steps are days of weeks or of months.

        Raises:
            InputError: a row lies between steps; it is one that differs from most rows.
        """
        times: Any = self.index.times
        if self.clock.kind in ("number", "fixed"):
            return
        if (self.clock.stamps(rows.ticks, self.clock.like(times)) == times).all():
            return
        usual = usual_times(self.clock, times)
        stamps = [self.clock.stamps(rows.ticks, like) for like in usual]
        best = int(np.argmin([(each != times).sum() for each in stamps]))
        for row in np.flatnonzero(stamps[best] != times)[:1]:
            shown = self.clock.local(times[[row, int((stamps[best] == times).argmax())]])
            found = f"{shown[0].astype('M8[s]')}, a {WEEKDAYS[weekdays(shown)[0]]}"
            like = f", like {shown[1].astype('M8[s]')}" if (stamps[best] == times).any() else ""
            mend = "mend the stamp or drop the row"
            if self.clock.is_monthly and (stamps[best] == times).mean() < MOST:
                mend = MEND_MONTHS
                if self.stamps.has_unknown_zone:
                    mend = f"name the zone that has equal months with --time-zone, or {mend}"
            self.refuse(int(row), found, f"{self.clock.rule}{like}", mend)

    def check_distances(self, rows: GridRows) -> None:
        """Check that no step is inferred from numbers that are dates, or for longer steps.

        The times of a series must differ.

        Raises:
            InputError: numbers that look like dates in a form that is not read, or a series whose
                rows are days where the step is an hour.
        """
        clock, ticks = self.clock, rows.ticks
        is_odd = clock.kind == "number" and is_date_code(ticks, rows.is_next, clock.step)
        for row in np.flatnonzero(is_odd)[:1]:
            found = f"{ticks[row + 1]:.15g} after {ticks[row]:.15g}"
            expected = "numbers at equal steps, but these look like dates or times of day"
            say = "train with" if self.stamps.series else "say"
            mend = f"{MEND_DATES}; if they are numbers, {say} --step {clock.step:.15g}"
            self.refuse(int(rows.table_rows[row + 1]), found, expected, mend)
        ends = rows.lengths.cumsum()
        for start, end in zip((ends - rows.lengths).tolist(), ends.tolist(), strict=True):
            distances = np.diff(ticks[start:end])
            if len(distances) < LEAST_DISTANCES:
                continue
            usual = float(np.median(distances))
            if usual >= 1.5 * clock.step and usual <= LONGEST * distances.min():
                found, expected = f"rows {clock.words(usual)} apart", f"the step of {clock.name}"
                mend = "use a model for each step, or resample all series to one step first"
                self.refuse(int(rows.table_rows[start + 1]), found, expected, mend)
