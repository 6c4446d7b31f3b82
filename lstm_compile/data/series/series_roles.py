"""Which column of a table of series is what: target, past, known or static covariate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.columns import Gaps, Kind, TableOptions
from lstm_compile.data.tables.roles import Roles, infer, numbers, unknown
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing, suggestion

INDICATOR = "gap"  # the feature that says that a step was filled


@dataclass(frozen=True)
class SeriesRoles:
    """What each column of a table of series is, and what was done to its rows.

    Attributes:
        options: what asks for the same again, everything resolved.
        inferred: the roles that no flag named.
        left_out: the columns that are nothing, with their kinds.
        notes: what was found: the step, gaps, duplicates.
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
        """The columns as a table of sequences has them, statics as its labels; gaps stay gaps."""
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
        found = [
            f"{name}: {text}{' (inferred)' if name in self.inferred else ''}"
            for name, text in parts.items()
            if text
        ]
        if self.left_out:
            found.append(f"left out: {listing([f'{n} ({kind})' for n, kind in self.left_out])}")
        return "; ".join([*found, *self.notes])


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
        InputError: a column that is not there, has two roles, or cannot be found out, or
            what is for other tasks.
    """
    _check_options(place, options)
    options = _with_schema(options, schema)
    asked = _asked(options)
    _check(place, columns, asked)
    taken = {name for _, name in asked}
    inferred = []
    for role in ("id", "time", "target"):
        if getattr(options, role):
            continue
        found = infer(place, role, columns, taken)
        if role == "target" and not found:
            left = numbers(columns, taken)
            found = left if len(left) == 1 else ()
        if found:
            taken.update(found)
            inferred.append(role)
            value: Any = found if role == "target" else found[0]
            options = replace(options, **{role: value})
    for role in ("time", "target"):
        if not getattr(options, role):
            raise unknown(place, role, columns)
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


def _check(place: str, columns: Mapping[str, Kind], asked: Sequence[tuple[str, str]]) -> None:
    roles: dict[str, str] = {}
    for role, name in asked:
        if name not in columns:
            raise InputError(
                f"{place}: no column {name!r} for --{role}; found {listing(list(columns))}"
                f"{suggestion(name, list(columns))}"
            )
        if name in roles and {role, roles[name]} != {"id", "static"}:
            raise InputError(
                f"{place}: column {name!r} is asked for as --{roles[name]} and as --{role}; "
                f"a column has one role, name another"
            )
        roles[name] = role
