"""Reads series to forecast: equal steps, gaps filled, calendar columns added. Loads no torch."""

from dataclasses import dataclass, replace
from functools import partial
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.calendar import calendar_names
from lstm_compile.data.schema import Categories, Schema, SeriesSchema
from lstm_compile.data.series.clock import Clock, calendar_columns, whole_steps
from lstm_compile.data.series.find_clock import asked_clock, fitting_clock, infer_clock
from lstm_compile.data.series.grid import (
    MEND_GAPS,
    GridRows,
    check_values,
    fill_linear,
    merge_duplicates,
    to_grid,
)
from lstm_compile.data.series.jitter import TRIED, enough_jitter, room_of, snapped, steady_step
from lstm_compile.data.series.levels import subtract_levels
from lstm_compile.data.series.order import check_order
from lstm_compile.data.series.series_table import (
    INDICATOR,
    NO_SHARES,
    Ints,
    SeriesRoles,
    SeriesTable,
    Shares,
    Split,
    find_series_roles,
    split_of,
)
from lstm_compile.data.series.stamp_reader import StampReader
from lstm_compile.data.series.time_faults import TimeFaults
from lstm_compile.data.tables.categories import most_frequent, read_categories
from lstm_compile.data.tables.columns import JITTER, Progress, TableOptions
from lstm_compile.data.tables.formats import open_files
from lstm_compile.data.tables.label_values import codes_of
from lstm_compile.data.tables.labels import MEND_STATIC, Labels
from lstm_compile.data.tables.long import GapFiller, check_columns, column_means, read_features
from lstm_compile.data.tables.sequence_index import SequenceIndex, index_sequences
from lstm_compile.data.tables.table import sorted_labels
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing, suggestion

MEND_CATEGORY = "write it in the cell, or take that of the row before with --gaps forward"


def read_series(
    path: str | PathLike[str],
    options: TableOptions | None = None,
    *,
    schema: Schema | None = None,
    split: Split | Shares = NO_SHARES,
    progress: Progress | None = None,
) -> SeriesTable:
    """Read series from a long table of one file, a folder or a glob.

    Rows may stand anywhere; they are sorted by series and time. `schema` is that of a trained
    model; `split` says where parts begin, or how large they are.

    Raises:
        InputError: anything wrong with the files, their columns or a value, in one line.
    """
    files = open_files(path, options or TableOptions(), schema)
    first = files.sources[0]
    roles = find_series_roles(str(first.path), first.kinds, options or TableOptions(), schema)
    check_columns(files, roles.reading)
    trained, o = schema.series if schema else None, roles.options
    stamps = StampReader(o.time_zone or "", trained, o.step or "", is_typed=not first.is_text)
    kind = partial(Labels, mend=MEND_STATIC)
    index = index_sequences(files, roles.reading, kind, stamps=stamps)
    clock, exact = _sorted_rows(index, roles, stamps, progress)
    rows, levels = subtract_levels(exact, roles.values, trained, index)
    codes, categories = read_categories(index, roles.reading, schema, has_gaps=True)
    rows = rows._replace(x=np.concatenate((rows.x, codes), 1))
    reading = _Reading(fspath(path), index, roles, clock, stamps, levels.subtracted, categories)
    check_values(reading.place, rows.x, roles.values + o.categories)
    faults = TimeFaults(index, str(o.time), clock, stamps)
    faults.check_steps(rows)
    duplicates, refuse = o.duplicates or "error", faults.refuse
    merged = merge_duplicates(rows, duplicates, bool(o.id), refuse)
    if not o.step:
        faults.check_distances(merged)
    told = None if o.id else check_order(index, rows, merged, clock.step, refuse)
    is_uneven = clock.may_be_months and not (trained or o.step)
    even, moved = (merged, 0) if is_uneven else snapped(merged, clock, _jitter(o))
    room = room_of(merged.ticks, clock.step, _jitter(o))
    faults = replace(faults, jitter=partial(enough_jitter, merged, clock))
    grid, added = to_grid(even, clock, roles.gaps != "error", faults.refuse)
    notes = (
        f"step: {clock.name}",
        *stamps.notes,
        *([told] if told else []),
        *_note(moved, "stamps beside their step", f"moved by less than {room:.2g} steps"),
        *_note(len(rows.x) - len(merged.x), "duplicate rows", duplicates),
        *_note(added, "steps without a row", roles.gaps),
        *faults.change_note(added + len(rows.x) - len(merged.x)),
        *levels.notes,
    )
    if not isinstance(split, Split):
        split = split_of(even.ticks, clock, split)
    return reading.table(grid, split, notes)


def _jitter(options: TableOptions) -> float:
    return JITTER if options.jitter is None else options.jitter


def _sorted_rows(
    index: SequenceIndex, roles: SeriesRoles, stamps: StampReader, progress: Progress | None
) -> tuple[Clock, GridRows]:
    """The clock of the table, and its rows, float64, sorted by series and time."""
    times = index.times
    assert times is not None
    x, _ = read_features(index, roles.reading, progress, np.float64)
    x[~np.isfinite(x)] = np.nan
    rows = GridRows(x, times, index.lengths, np.arange(len(x)))
    try:
        clock = _clock(rows, roles.options, stamps)
        return clock, rows._replace(ticks=clock.ticks(times))
    except InputError as error:
        place = index.files.sources[0].path
        raise InputError(f"{place}, column {roles.options.time!r}: {error}") from error


def _clock(rows: GridRows, options: TableOptions, stamps: StampReader) -> Clock:
    times, zone = rows.ticks, stamps.zone
    if stamps.series:
        return fitting_clock(stamps.series.clock, times)
    if options.step:
        return asked_clock(options.step, times.dtype.kind == "M", zone)
    is_next = rows.is_next & (times[1:] != times[:-1])
    clock = infer_clock(times, is_next, zone)
    if clock.kind not in ("number", "fixed") or clock.may_be_months:
        return clock
    ticks = clock.ticks(times)
    is_broken = whole_steps(np.diff(ticks)[is_next], clock.step, ticks)[1]
    if not is_broken.any():
        return clock
    ticks = ticks.astype(np.float64) if clock.kind == "number" else ticks
    # the second finds a step for a message
    jitters = (_jitter(options), TRIED[-1] if is_broken.mean() > 0.5 else 0)
    step = next(filter(None, (steady_step(ticks, is_next, each) for each in jitters)), clock.step)
    return replace(clock, step=step if clock.kind == "number" else max(1, round(step)))


def _note(count: int, what: str, how: str) -> tuple[str, ...]:
    return (f"{count} {what} ({how})",) if count else ()


@dataclass(frozen=True)
class _Reading:
    """What all steps of reading need."""

    place: str  # the path, for messages
    index: SequenceIndex
    roles: SeriesRoles
    clock: Clock
    stamps: StampReader
    subtracted: tuple[float, ...]  # see `SeriesSchema`
    categories: Categories  # of the last columns of the rows

    @property
    def trained(self) -> SeriesSchema | None:
        """Of a trained model."""
        return self.stamps.series

    def table(self, rows: GridRows, split: Split, notes: tuple[str, ...]) -> SeriesTable:
        """Fill the gaps of rows at equal steps, and add calendar and indicator.

        Raises:
            InputError: a gap where none is allowed, or what does not fit the trained model.
        """
        options, history = self.roles.options, _history(rows, len(self.roles.options.target))
        if self.roles.gaps == "error":
            self._check_cells(rows, history)
        missing, numbers = np.isnan(rows.x), len(self.roles.values)
        means = self._fill(rows, split)
        info = self._schema(rows.ticks[split.part_of(rows.ticks) == 0])
        times: Any = self.index.times
        stamp, ids = self.clock.like(times), self.index.ids
        shown = self.clock.local(self.clock.stamps(rows.ticks, stamp))
        calendar = calendar_columns(shown, info.calendar)
        is_filled: NDArray[np.bool_] = np.any(missing, axis=1, keepdims=True)
        indicator = is_filled[:, : int(info.indicator)].astype(np.float32)
        added = (*calendar_names(info.calendar), *([INDICATOR] if info.indicator else []))
        resolved = replace(options, means=means, calendar=info.calendar or ("none",))
        return SeriesTable(
            place=self.place,
            x=np.concatenate((rows.x[:, :numbers], calendar, indicator, rows.x[:, numbers:]), 1),
            missing=missing[:, :numbers],
            lengths=rows.lengths,
            history=history,
            ticks=rows.ticks,
            clock=self.clock,
            stamp=stamp,
            format=self.stamps.format.of_times(times, self.clock),
            ids=tuple(ids) if options.id or len(ids) > 1 else None,
            id_type=self.index.files.type_of(options.id),
            statics=self._codes(info),
            schema=Schema(
                self.roles.values + added + options.categories,
                (),
                options.target,
                series=info,
                categories=self.categories if options.categories else None,
            ),
            roles=replace(self.roles, options=resolved, notes=notes),
            split=split,
        )

    def _check_cells(self, rows: GridRows, history: Ints) -> None:
        is_gap, lengths = np.isnan(rows.x), rows.lengths
        step = np.arange(len(rows.x)) - np.repeat(lengths.cumsum() - lengths, lengths)
        is_future = step >= np.repeat(history, lengths)
        unknown = len(self.roles.options.target) + len(self.roles.options.features)
        is_gap[is_future, :unknown] = is_gap[is_future, len(self.roles.values) :] = False
        columns = self.roles.values + self.roles.options.categories
        for row, column in np.argwhere(is_gap)[:1]:
            found = f"an empty cell, NaN or infinity ({int(is_gap.sum())} in all)"
            place = int(rows.table_rows[row])
            name, expected, mend = columns[column], "a finite number", MEND_GAPS
            if name in self.roles.options.categories:
                found, expected, mend = "an empty cell", "a category", MEND_CATEGORY
            self.index.refuse(place, name, found, expected, mend)

    def _fill(self, rows: GridRows, split: Split) -> tuple[float, ...]:
        """Fill all gaps in place, and return the means of the columns in the training part."""
        parts, numbers = split.part_of(rows.ticks), len(self.roles.values)
        if self.roles.gaps == "linear":
            fill_linear(rows.x[:, :numbers], rows.lengths, parts)
        x = rows.x[parts == 0]
        means = self.roles.options.means or column_means(x[:, :numbers], "mean")
        means = tuple(mean if np.isfinite(mean) else 0.0 for mean in means)
        if len(means) == numbers:
            means += most_frequent(x[:, numbers:])
        names = self.roles.values + self.roles.options.categories
        GapFiller(self.place, names, "forward", means).fill(rows.x, rows.lengths)
        return means

    def _schema(self, ticks: NDArray[Any]) -> SeriesSchema:
        """The series as a model carries them; `ticks` are those of the training part."""
        if self.trained:
            return self.trained
        options, clock = self.roles.options, self.clock
        calendar, indicator = self._calendar(ticks), self.roles.gaps == "indicate"
        added = {name: f"--calendar {name.rpartition('_')[0]}" for name in calendar_names(calendar)}
        added |= {INDICATOR: "--gaps indicate"} if indicator else {}
        for name in filter(added.get, self.roles.values):
            raise InputError(
                f"{self.place}, column {name!r}: has the name of a column that {added[name]} "
                "makes; rename it, or leave that option out"
            )
        categories = tuple(sorted_labels(map(str, each.values())) for each in self.index.labels)
        zone = None if clock.kind == "number" else clock.zone
        return SeriesSchema(
            clock.kind, clock.step, options.known, calendar, options.static, categories, indicator,
            zone, clock.week, self.stamps.format.form,
            other=options.unknown == "other" and bool(options.static), subtracted=self.subtracted,
        )  # fmt: skip

    def _calendar(self, ticks: NDArray[Any]) -> tuple[str, ...]:
        asked, columns = self.roles.options.calendar or ("auto",), self.roles.values
        if "auto" in asked:
            # as floats: a span of 300 years is no int64 of nanoseconds
            span = float(ticks.max()) - float(ticks.min()) if len(ticks) else 0.0
            fitting = self.clock.features(span)
            return tuple(n for n in fitting if set(columns).isdisjoint(calendar_names((n,))))
        names = tuple(name for name in asked if name != "none")
        if names and self.clock.kind == "number":
            raise InputError(
                f"{self.place}: calendar {listing(names)} needs dates, but column "
                f"{self.roles.options.time!r} holds numbers; use --calendar none"
            )
        return names

    def _codes(self, info: SeriesSchema) -> Ints:
        """The code of each series' category, int64 (series, statics)."""
        codes = np.zeros((len(self.index.ids), len(info.categories)), np.int64)
        pairs = zip(self.index.labels, info.categories, strict=True)
        for column, (label, known) in enumerate(pairs):
            values = [str(value) for value in label.values()]
            code_of = codes_of(values, known)
            for series, value in enumerate(values):
                if value not in code_of and not info.other:
                    expected = (
                        f"one of the categories the model was trained on: {listing(known)}"
                        f"{suggestion(value, known)}"
                    )
                    row, mend = (
                        int(label.rows[series]),
                        "train again with it or with --unknown other",
                    )
                    self.index.files.refuse(row, label.column, repr(value), expected, mend)
                codes[series, column] = code_of.get(value, -1) + info.other
        return codes


def _history(rows: GridRows, targets: int) -> Ints:
    """Rows of each series up to the last with a target, int64 (series,)."""
    has_target = np.isfinite(rows.x[:, :targets]).any(1)
    starts = rows.lengths.cumsum() - rows.lengths
    last = np.maximum.reduceat(np.where(has_target, np.arange(len(rows.x)), -1), starts)
    return np.maximum(last - starts + 1, 0)
