"""Series to forecast: long tables as rows at equal steps, gaps filled, the calendar beside them.

Loads no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.clock import Clock, calendar_columns, calendar_names, infer_clock
from lstm_compile.data.columns import TableOptions
from lstm_compile.data.gaps import column_means, fill
from lstm_compile.data.keys import Keys, Labels, read_keys
from lstm_compile.data.long import check_columns, open_sources, read_features
from lstm_compile.data.regular import Rows, check_some, fill_linear, merge_duplicates, to_grid
from lstm_compile.data.schema import Schema, SeriesSchema
from lstm_compile.data.series_roles import INDICATOR, SeriesRoles, find_series_roles
from lstm_compile.data.table import sorted_labels
from lstm_compile.data.text import listing, suggestion
from lstm_compile.errors import InputError

Progress = Callable[[int, int], None]
Ints = NDArray[np.int64]


class Shares(NamedTuple):
    """How large the parts at the end are.

    Attributes:
        validation: share of all rows.
        test: share of all rows, or a number of steps from 1 on.
        least: steps that validation takes at least, where it takes any.
    """

    validation: float = 0.0
    test: float = 0.0
    least: int = 0


class Split(NamedTuple):
    """Where parts begin, in ticks of the clock; infinity where there is none.

    The training part is what lies before `validation`, the test part what lies from `test` on.
    """

    validation: float
    test: float

    def part_of(self, ticks: NDArray[Any]) -> Ints:
        """0, 1 or 2 for training, validation and test, int64 (rows,)."""
        return (ticks >= self.validation).astype(np.int64) + (ticks >= self.test)


NO_SHARES = Shares()


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """Series at equal steps, one after the other.

    Attributes:
        place: where they come from, for messages.
        x: float32 (rows, features), finite, in the order of `schema.features`.
        missing: bool (rows, columns): which values of targets, past and known covariates were
            filled.
        lengths: int64 (series,), rows of each.
        history: int64 (series,), rows up to the last target; those after it hold known covariates.
        ticks: (rows,), the time of each row, see `Clock.ticks`.
        stamp: any of the table's times, for `Clock.stamps`; None for numbers.
        ids: what each series is called, or None where there is but one without a name.
        statics: int64 (series, statics), codes of categories.
        schema: names, clock and categories.
        roles: the columns of the file.
        split: where validation and test begin.
    """

    place: str
    x: NDArray[np.float32]
    missing: NDArray[np.bool_]
    lengths: Ints
    history: Ints
    ticks: NDArray[Any]
    stamp: np.datetime64 | None
    ids: tuple[str, ...] | None
    statics: Ints
    schema: Schema
    roles: SeriesRoles
    split: Split

    @property
    def info(self) -> SeriesSchema:
        """What the schema says of the series."""
        assert self.schema.series is not None
        return self.schema.series

    @property
    def starts(self) -> Ints:
        """The first row of each series, int64 (series,)."""
        return self.lengths.cumsum() - self.lengths

    def name(self, series: int) -> str:
        """A series in a message."""
        return f"{self.place}, series {self.ids[series]!r}" if self.ids else self.place

    def stamps(self, ticks: NDArray[Any]) -> NDArray[Any]:
        """The times of ticks, as a person writes them."""
        return self.info.clock.stamps(ticks, self.stamp)


def read_series(
    path: str | PathLike[str],
    options: TableOptions | None = None,
    *,
    schema: Schema | None = None,
    split: Split | Shares = NO_SHARES,
    progress: Progress | None = None,
) -> SeriesTable:
    """Read series from a long table of one file, a folder or a glob.

    Rows may stand anywhere; they are sorted by series and time.

    Args:
        path: as for `long.read_long`.
        options: the columns, and what to do about gaps and duplicates.
        schema: of a trained model.
        split: where parts begin, or how large they are.
        progress: called with rows done and rows in all.

    Raises:
        InputError: anything wrong with the files, their columns or a value, in one line.
    """
    sources = open_sources(path)
    first = sources[0]
    roles = find_series_roles(str(first.path), first.kinds, options or TableOptions(), schema)
    check_columns(sources, roles.reading)
    keys = read_keys(sources, roles.reading, with_times=True)
    clock, rows = _sorted_rows(keys, roles, schema, progress)
    place = fspath(path)
    check_some(place, rows.x, roles.values)
    duplicates = roles.options.duplicates or "error"
    merged = merge_duplicates(rows, duplicates, _refuse(keys, roles.options.time))
    grid, added = to_grid(merged, clock, roles.gaps != "error", _refuse(keys, roles.options.time))
    notes = (
        f"step: {clock.name}",
        *_note(len(rows.x) - len(merged.x), "duplicate rows", duplicates),
        *_note(added, "steps without a row", roles.gaps),
    )
    history = _history(grid, len(roles.options.target))
    if roles.gaps == "error":
        _check_cells(keys, roles, grid, history)
    if not isinstance(split, Split):
        split = _split(merged.ticks, clock, split)
    return _finished(place, grid, history, clock, keys, replace(roles, notes=notes), schema, split)


class Ahead(NamedTuple):
    """What is known of the steps after the last target of each series.

    Attributes:
        known: float32 (series, horizon, known).
        ticks: (series, horizon).
    """

    known: NDArray[np.float32]
    ticks: NDArray[Any]


def look_ahead(table: SeriesTable, horizon: int) -> Ahead:
    """The next `horizon` steps of each series: known covariates of the table, and the calendar.

    Raises:
        InputError: the table has no value of a known covariate at one of these steps.
    """
    for series in np.flatnonzero(table.history == 0)[:1]:
        raise InputError(
            f"{table.name(series)}: found no value of {listing(table.schema.targets)}, expected at "
            "least one to go on from; leave the series out"
        )
    info, steps = table.info, np.arange(1, horizon + 1)
    last = table.starts + table.history - 1
    ticks = (table.ticks[last][:, None] + steps * info.step).astype(table.ticks.dtype)
    stamps = table.stamps(ticks.ravel()) if info.calendar else ticks.ravel()
    calendar = calendar_columns(stamps, info.calendar).reshape(*ticks.shape, -1)
    if not info.known:
        return Ahead(calendar, ticks)
    first = len(table.roles.values) - len(info.known)
    rows = last[:, None] + steps
    is_there = rows < (table.starts + table.lengths)[:, None]
    rows = np.where(is_there, rows, last[:, None])
    is_there = is_there[..., None] & ~table.missing[rows][..., first:]
    for series, step, column in np.argwhere(~is_there)[:1]:
        raise InputError(
            f"{table.name(series)}, column {info.known[column]!r}: no value for "
            f"{table.stamps(ticks[series, step : step + 1])[0]}, step {step + 1} of the horizon; "
            "a known covariate needs rows for the whole horizon, targets left empty"
        )
    known = table.x[rows][..., first : first + len(info.known)]
    return Ahead(np.concatenate((known, calendar), -1), ticks)


def _sorted_rows(
    keys: Keys, roles: SeriesRoles, schema: Schema | None, progress: Progress | None
) -> tuple[Clock, Rows]:
    assert keys.times is not None
    x = read_features(keys, roles.reading, progress)
    x[~np.isfinite(x)] = np.nan
    table_rows = np.arange(len(x))
    rows = Rows(x, keys.times, keys.lengths, table_rows)
    place = str(keys.rows.sources[0].path)
    try:
        apart = np.concatenate(([True], keys.times[1:] != keys.times[:-1]))
        clock = (
            schema.series.clock
            if schema and schema.series
            else infer_clock(keys.times, rows.is_next & apart[1:])
        )
        return clock, rows._replace(ticks=clock.ticks(keys.times))
    except InputError as error:
        raise InputError(f"{place}, column {roles.options.time!r}: {error}") from error


def _refuse(keys: Keys, column: str | None) -> Callable[[int, str, str, str], NoReturn]:
    def refuse(row: int, found: str, expected: str, mend: str) -> NoReturn:
        keys.rows.refuse(keys.file_row(row), str(column), found, expected, mend)

    return refuse


def _note(count: int, what: str, how: str) -> tuple[str, ...]:
    return (f"{count} {what} ({how})",) if count else ()


def _history(rows: Rows, targets: int) -> Ints:
    """Rows of each series up to the last with a target, int64 (series,)."""
    is_there = np.isfinite(rows.x[:, :targets]).any(1)
    starts = rows.lengths.cumsum() - rows.lengths
    last = np.maximum.reduceat(np.where(is_there, np.arange(len(rows.x)), -1), starts)
    return np.maximum(last - starts + 1, 0)


def _check_cells(keys: Keys, roles: SeriesRoles, rows: Rows, history: Ints) -> None:
    is_gap = np.isnan(rows.x)
    step = np.arange(len(rows.x)) - np.repeat(rows.lengths.cumsum() - rows.lengths, rows.lengths)
    future = step >= np.repeat(history, rows.lengths)
    unknown = len(roles.options.target) + len(roles.options.features)
    is_gap[future, :unknown] = False
    for row, column in np.argwhere(is_gap)[:1]:
        keys.rows.refuse(
            keys.file_row(int(rows.table_rows[row])),
            roles.values[column],
            f"an empty cell, NaN or infinity ({int(is_gap.sum())} in all)",
            "a finite number",
            "fill gaps with --gaps forward, linear or indicate",
        )


def _split(ticks: NDArray[Any], clock: Clock, shares: Shares) -> Split:
    ordered = np.sort(ticks)
    end = float(ordered[-1]) + clock.step
    tested = end - shares.test * clock.step
    if shares.test < 1:
        tested = _quantile(ordered, shares.test, end)
    if not shares.validation:
        return Split(tested, tested)
    rest = shares.test if shares.test < 1 else float((ordered >= tested).mean())
    begin = _quantile(ordered, rest + shares.validation, end)
    return Split(min(begin, tested - shares.least * clock.step), tested)


def _quantile(ordered: NDArray[Any], share: float, end: float) -> float:
    """Where the last `share` of rows begins."""
    place = round(len(ordered) * (1 - share))
    return end if place >= len(ordered) else float(ordered[max(0, place)])


def _finished(
    place: str,
    rows: Rows,
    history: Ints,
    clock: Clock,
    keys: Keys,
    roles: SeriesRoles,
    schema: Schema | None,
    split: Split,
) -> SeriesTable:
    missing = np.isnan(rows.x)
    parts = split.part_of(rows.ticks)
    if roles.gaps == "linear":
        fill_linear(rows.x, rows.lengths, parts)
    means = roles.options.means or column_means(rows.x[parts == 0], "mean")
    means = tuple(mean if np.isfinite(mean) else 0.0 for mean in means)
    fill(place, rows.x, rows.lengths, roles.values, "forward", means)
    calendar = _calendar(place, roles, clock, rows.ticks[parts == 0], schema)
    categories = _categories(keys.labels, schema)
    info = SeriesSchema(
        clock.kind, clock.step, roles.options.known, calendar, roles.options.static,
        categories, roles.gaps == "indicate",
    )  # fmt: skip
    if schema is not None and schema.series is not None:
        info = replace(info, indicator=schema.series.indicator)
    assert keys.times is not None
    first: Any = keys.times[:1]
    stamp = None if clock.kind == "number" else first[0]
    extra = calendar_columns(clock.stamps(rows.ticks, stamp), calendar)
    is_filled: NDArray[np.bool_] = np.any(missing, axis=1, keepdims=True)
    gap = is_filled[:, : int(info.indicator)].astype(np.float32)
    indicator = (INDICATOR,) if info.indicator else ()
    names = (*roles.values, *calendar_names(calendar), *indicator)
    options = replace(roles.options, means=means, calendar=calendar or ("none",))
    return SeriesTable(
        place=place,
        x=np.concatenate((rows.x, extra, gap), 1),
        missing=missing,
        lengths=rows.lengths,
        history=history,
        ticks=rows.ticks,
        stamp=stamp,
        ids=tuple(keys.ids) if roles.options.id else None,
        statics=_codes(keys, categories),
        schema=Schema(names, (), roles.options.target, series=info),
        roles=replace(roles, options=options),
        split=split,
    )


def _calendar(
    place: str, roles: SeriesRoles, clock: Clock, ticks: NDArray[Any], schema: Schema | None
) -> tuple[str, ...]:
    asked = roles.options.calendar or ("auto",)
    if schema is not None and schema.series is not None:
        return schema.series.calendar
    if "auto" in asked:
        return clock.features(float(ticks.max() - ticks.min()) if len(ticks) else 0.0)
    names = tuple(name for name in asked if name != "none")
    if names and clock.kind == "number":
        raise InputError(
            f"{place}: calendar {listing(names)} needs dates, but column {roles.options.time!r} "
            "holds numbers; use --calendar none"
        )
    return names


def _categories(labels: list[Labels], schema: Schema | None) -> tuple[tuple[str, ...], ...]:
    if schema is not None and schema.series is not None:
        return schema.series.categories
    return tuple(sorted_labels(str(value) for value in label.values()) for label in labels)


def _codes(keys: Keys, categories: tuple[tuple[str, ...], ...]) -> Ints:
    codes = np.zeros((len(keys.ids), len(categories)), np.int64)
    for column, (label, known) in enumerate(zip(keys.labels, categories, strict=True)):
        places = {name: code for code, name in enumerate(known)}
        for series, value in enumerate(map(str, label.values())):
            if value not in places:
                keys.rows.refuse(
                    int(label.rows[series]), label.column, repr(value),
                    f"one of the categories the model was trained on: {listing(known)}"
                    f"{suggestion(value, known)}",
                    "train again with it, or drop the series",
                )  # fmt: skip
            codes[series, column] = places[value]
    return codes
