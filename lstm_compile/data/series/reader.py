"""Series to forecast: long tables as rows at equal steps, gaps filled, the calendar beside them.

Loads no torch.
"""

from collections.abc import Callable
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.calendar import calendar_names
from lstm_compile.data.schema import Schema, SeriesSchema
from lstm_compile.data.series.clock import Clock, calendar_columns, infer_clock
from lstm_compile.data.series.grid import (
    GridRows,
    check_some,
    fill_linear,
    merge_duplicates,
    to_grid,
)
from lstm_compile.data.series.series_roles import INDICATOR, SeriesRoles, find_series_roles
from lstm_compile.data.series.series_table import (
    NO_SHARES,
    Ints,
    SeriesTable,
    Shares,
    Split,
    split_of,
)
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.gaps import column_means, fill
from lstm_compile.data.tables.keys import Keys, Labels, read_keys
from lstm_compile.data.tables.long import check_columns, open_sources, read_features
from lstm_compile.data.tables.table import sorted_labels
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing, suggestion

Progress = Callable[[int, int], None]


def read_series(
    path: str | PathLike[str],
    options: TableOptions | None = None,
    *,
    schema: Schema | None = None,
    split: Split | Shares = NO_SHARES,
    progress: Progress | None = None,
) -> SeriesTable:
    """Read series from a long table of one file, a folder or a glob.

    GridRows may stand anywhere; they are sorted by series and time.

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
        split = split_of(merged.ticks, clock, split)
    return _finished(place, grid, history, clock, keys, replace(roles, notes=notes), schema, split)


def _sorted_rows(
    keys: Keys, roles: SeriesRoles, schema: Schema | None, progress: Progress | None
) -> tuple[Clock, GridRows]:
    assert keys.times is not None
    x = read_features(keys, roles.reading, progress)
    x[~np.isfinite(x)] = np.nan
    table_rows = np.arange(len(x))
    rows = GridRows(x, keys.times, keys.lengths, table_rows)
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


def _history(rows: GridRows, targets: int) -> Ints:
    """Rows of each series up to the last with a target, int64 (series,)."""
    is_there = np.isfinite(rows.x[:, :targets]).any(1)
    starts = rows.lengths.cumsum() - rows.lengths
    last = np.maximum.reduceat(np.where(is_there, np.arange(len(rows.x)), -1), starts)
    return np.maximum(last - starts + 1, 0)


def _check_cells(keys: Keys, roles: SeriesRoles, rows: GridRows, history: Ints) -> None:
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


def _finished(
    place: str,
    rows: GridRows,
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
