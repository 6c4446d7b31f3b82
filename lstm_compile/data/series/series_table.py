"""Series at equal steps: the roles of the columns, the table, its parts and its next steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.calendar import LAST_YEAR
from lstm_compile.data.schema import Schema, SeriesSchema
from lstm_compile.data.series.clock import Clock, calendar_columns
from lstm_compile.data.tables.columns import Gaps, Kind, TableOptions
from lstm_compile.data.tables.roles import (
    Roles,
    check_roles,
    described_roles,
    free_numbers,
    infer_role,
    missing_role,
)
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

if TYPE_CHECKING:
    from lstm_compile.data.series.stamp_format import StampFormat

Ints = NDArray[np.int64]
ROLES = ("id", "time", "target", "features", "categories", "known", "static")
MEND_TARGET = "mend the cell, or name another column with --target"
MEND_KNOWN = "mend the cell; in place of words take one column of 0 and 1 for each word"
INDICATOR = "gap"  # the feature that marks filled steps


@dataclass(frozen=True)
class SeriesRoles:
    """The role of each column of a table of series, and notes on its rows."""

    options: TableOptions  # the options that ask for the same table again; nothing is left to infer
    inferred: tuple[str, ...] = ()  # those that no flag named
    left_out: tuple[tuple[str, Kind], ...] = ()  # without a role
    notes: tuple[str, ...] = ()  # the step, gaps and duplicates of the table

    @property
    def values(self) -> tuple[str, ...]:
        """The columns of numbers: targets, past covariates, known covariates."""
        return (*self.options.target, *self.options.features, *self.options.known)

    @property
    def gaps(self) -> Gaps:
        """What fills gaps."""
        return self.options.gaps or "error"

    @property
    def reading(self) -> Roles:
        """The roles as those of a long table, whose labels are the statics; gaps are not filled."""
        o = self.options
        return Roles(
            o.id, o.time, o.static, self.values, "zero",
            categories=o.categories, unknown=o.unknown,
            mends={**dict.fromkeys(o.target, MEND_TARGET), **dict.fromkeys(o.known, MEND_KNOWN)},
        )  # fmt: skip

    @property
    def description(self) -> str:
        """One line: `time: date (inferred); target: ...; step: 1 hour; ...`."""
        o = self.options
        parts = {
            "id": o.id or "none, one series a file",
            "time": o.time or "",
            "target": listing(o.target),
            "past covariates": listing(o.features),
            "categories": listing(o.categories),
            "known covariates": listing(o.known),
            "static": listing(o.static),
            "calendar": listing(o.calendar),
        }
        return "; ".join([*described_roles(parts, self.inferred, self.left_out), *self.notes])


def find_series_roles(
    place: str, columns: Mapping[str, Kind], options: TableOptions, schema: Schema | None = None
) -> SeriesRoles:
    """Find the role of every column; `schema` is that of a trained model.

    Past covariates are never inferred: they are `options.features`, or those of the schema.

    Raises:
        InputError: a column that is missing, has two roles, or cannot be inferred, or an option
            of other tasks.
    """
    _check_options(place, options)
    options = _with_schema(options, schema)
    named = {role: getattr(options, role) or () for role in ROLES}
    several = {role: (name,) if isinstance(name, str) else name for role, name in named.items()}
    asked = [(role, name) for role, names in several.items() for name in names]
    check_roles(place, columns, asked, lambda both: both == {"id", "static"})
    taken = {name for _, name in asked}
    inferred = []
    for role in ("id", "time", "target"):
        if getattr(options, role):
            continue
        found = infer_role(place, role, columns, taken)
        if role == "target" and not found:
            free = free_numbers(columns, taken)
            found = free if len(free) == 1 else ()
        if found:
            taken.update(found)
            inferred.append(role)
            value: Any = found if role == "target" else found[0]
            options = replace(options, **{role: value})
    for role in ("time", "target"):
        if not getattr(options, role):
            raise missing_role(place, role, columns)
    left_out = tuple((name, kind) for name, kind in columns.items() if name not in taken)
    return SeriesRoles(options, tuple(inferred), left_out)


def _check_options(place: str, options: TableOptions) -> None:
    if options.missing is not None:
        raise InputError(f"{place}: series take --gaps in place of --missing")
    if options.text is not None:
        raise InputError(
            f"{place}: --text {options.text} is for tasks classify and tag; leave it out"
        )
    if options.categories and options.duplicates == "mean":
        raise InputError(f"{place}: categories have no mean; take --duplicates last")


def _with_schema(options: TableOptions, schema: Schema | None) -> TableOptions:
    if schema is None or schema.series is None:
        past = tuple(name for name in options.features if name not in options.target)
        return replace(options, features=past)
    series, targets = schema.series, schema.targets
    count = len(series.known_features) + series.indicator + len(schema.category_sizes)
    past = schema.features[len(targets) : len(schema.features) - count]
    return replace(
        options, target=targets, features=past, categories=schema.category_columns,
        known=series.known, static=series.statics, calendar=series.calendar or ("none",),
    )  # fmt: skip


class Shares(NamedTuple):
    """The sizes of the validation and test parts at the end of a table."""

    validation: float = 0.0  # share of all rows
    test: float = 0.0  # share of all rows, or from 1 on a number of steps
    least: int = 0  # the least number of steps of validation, unless its share is 0


class Split(NamedTuple):
    """The first ticks of the validation and test parts; infinity where there is none.

    The training part lies before `validation`.
    """

    validation: float
    test: float

    def part_of(self, ticks: NDArray[Any]) -> Ints:
        """0, 1 or 2 for training, validation and test, int64 (rows,)."""
        return (ticks >= self.validation).astype(np.int64) + (ticks >= self.test)


NO_SHARES = Shares()


@dataclass(frozen=True, eq=False)
class SeriesTable:
    """Series at equal steps, one after the other."""

    place: str  # the path, for messages
    x: NDArray[np.float32]  # float32 (rows, features), finite, in the order of `schema.features`
    missing: NDArray[np.bool_]  # bool (rows, columns): filled targets, past and known covariates
    lengths: Ints  # int64 (series,), rows of each
    history: Ints  # int64 (series,), rows up to the last target; later ones hold known covariates
    ticks: NDArray[Any]  # (rows,), the time of each row, see `Clock.ticks`
    clock: Clock  # of these rows
    stamp: np.datetime64 | None  # one of the table's times, see `Clock.like`; None for numbers
    format: "StampFormat"  # how the table writes its times
    ids: tuple[str, ...] | None  # None where there is only one series, without a name
    id_type: Any  # the Arrow type of the ids in the file, if it has types
    statics: Ints  # int64 (series, statics), codes of categories
    schema: Schema
    roles: SeriesRoles
    split: Split

    @property
    def info(self) -> SeriesSchema:
        """The series part of the schema."""
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
        """The times of ticks, as clocks show them."""
        return self.clock.local(self.clock.stamps(ticks, self.stamp))


def split_of(ticks: NDArray[Any], clock: Clock, shares: Shares) -> Split:
    """The split of rows at `ticks`, in any order, into parts of the sizes `shares`."""
    ordered = np.sort(ticks)
    end = float(ordered[-1]) + clock.step
    test = end - shares.test * clock.step
    if shares.test < 1:
        test = _quantile(ordered, shares.test, end)
    if not shares.validation:
        return Split(test, test)
    rest = shares.test if shares.test < 1 else float((ordered >= test).mean())
    validation = _quantile(ordered, rest + shares.validation, end)
    return Split(min(validation, test - shares.least * clock.step), test)


def _quantile(ordered: NDArray[Any], share: float, end: float) -> float:
    """The tick at which the last `share` of rows begins."""
    place = round(len(ordered) * (1 - share))
    return end if place >= len(ordered) else float(ordered[max(0, place)])


def _check_end(table: SeriesTable, is_beyond: bool) -> None:
    if is_beyond:
        raise InputError(
            f"{table.place}: the forecast would reach beyond the year {LAST_YEAR}, which times in "
            "nanoseconds do not; take a smaller --horizon, or bring the stamps nearer"
        )


class Ahead(NamedTuple):
    """The known covariates of the steps after the last target of each series."""

    known: NDArray[np.float32]  # float32 (series, horizon, known)
    ticks: NDArray[Any]  # (series, horizon)


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
    if table.clock.kind in ("fixed", "wall"):
        end = float(table.ticks[last].max()) + horizon * info.step
        _check_end(table, end >= np.iinfo(np.int64).max)
    ticks = (table.ticks[last][:, None] + steps * info.step).astype(table.ticks.dtype)
    if table.clock.kind != "number":
        latest = table.stamps(ticks.max().reshape(1))[0]
        _check_end(table, latest >= np.datetime64(str(LAST_YEAR + 1)))
    stamps = table.stamps(ticks.ravel()) if info.calendar else ticks.ravel()
    calendar = calendar_columns(stamps, info.calendar).reshape(*ticks.shape, -1)
    if not info.known:
        return Ahead(calendar, ticks)
    first = len(table.roles.values) - len(info.known)
    rows = last[:, None] + steps
    is_known = rows < (table.starts + table.lengths)[:, None]
    rows = np.where(is_known, rows, last[:, None])
    is_known = is_known[..., None] & ~table.missing[rows][..., first:]
    for series, step, column in np.argwhere(~is_known)[:1]:
        raise InputError(
            f"{table.name(series)}, column {info.known[column]!r}: no value for "
            f"{table.stamps(ticks[series, step : step + 1])[0]}, step {step + 1} of the horizon; "
            "a known covariate needs rows for the whole horizon, targets left empty"
        )
    known = table.x[rows][..., first : first + len(info.known)]
    return Ahead(np.concatenate((known, calendar), -1), ticks)
