"""Series at equal steps: what `read_series` gives, its parts and what lies ahead of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.schema import Schema, SeriesSchema
from lstm_compile.data.series.clock import Clock, calendar_columns
from lstm_compile.data.series.series_roles import SeriesRoles
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

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


def split_of(ticks: NDArray[Any], clock: Clock, shares: Shares) -> Split:
    """Where the parts of rows at `ticks` begin.

    Args:
        ticks: of all rows, in any order.
        clock: what a step is.
        shares: how large the parts are.
    """
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
