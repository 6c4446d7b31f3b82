"""The role of each column of a table of series: target, past, known or static covariate."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lstm_compile.data.listing import listing
from lstm_compile.data.schema import Schema
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

INDICATOR = "gap"  # the feature that marks filled steps


@dataclass(frozen=True)
class SeriesRoles:
    """The role of each column of a table of series, and notes on its rows.

    Attributes:
        options: the options that ask for the same table again; nothing is left to infer.
        inferred: the roles that no flag named.
        left_out: the columns without a role, with their kinds.
        notes: the step, gaps and duplicates of the table.
    """

    options: TableOptions
    inferred: tuple[str, ...] = ()
    left_out: tuple[tuple[str, Kind], ...] = ()
    notes: tuple[str, ...] = ()

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
        return Roles(o.id, o.time, o.static, self.values, "zero")

    @property
    def description(self) -> str:
        """One line: `time: date (inferred); target: ...; step: 1 hour; ...`."""
        o = self.options
        parts = {
            "id": o.id or "none, one series a file",
            "time": o.time or "",
            "target": listing(o.target),
            "past covariates": listing(o.features),
            "known covariates": listing(o.known),
            "static": listing(o.static),
            "calendar": listing(o.calendar),
        }
        return "; ".join([*described_roles(parts, self.inferred, self.left_out), *self.notes])


def find_series_roles(
    place: str, columns: Mapping[str, Kind], options: TableOptions, schema: Schema | None = None
) -> SeriesRoles:
    """Find the role of every column.

    Args:
        place: the file, for messages.
        columns: the kind of each, in the file's order.
        options: what was asked for. Past covariates are those of `features`, and none if empty.
        schema: of a trained model, which has the names of targets and covariates.

    Raises:
        InputError: a column that is missing, has two roles, or cannot be inferred, or an option
            of other tasks.
    """
    _check_options(place, options)
    options = _with_schema(options, schema)
    asked = _asked(options)
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
        raise InputError(f"{place}: series have --gaps for what is missing, not --missing")
    if options.text is not None:
        raise InputError(
            f"{place}: --text {options.text} is for tasks classify and tag; leave it out"
        )


def _with_schema(options: TableOptions, schema: Schema | None) -> TableOptions:
    if schema is None or schema.series is None:
        past = tuple(name for name in options.features if name not in options.target)
        return replace(options, features=past)
    series, targets = schema.series, schema.targets
    count = len(series.known_features) + series.indicator
    past = schema.features[len(targets) : len(schema.features) - count]
    return replace(
        options, target=targets, features=past, known=series.known, static=series.statics,
        calendar=series.calendar or ("none",),
    )  # fmt: skip


def _asked(options: TableOptions) -> list[tuple[str, str]]:
    """Pairs of a role and a column."""
    single = [(role, getattr(options, role)) for role in ("id", "time") if getattr(options, role)]
    several = [
        (role, name)
        for role in ("target", "features", "known", "static")
        for name in getattr(options, role)
    ]
    return single + several
