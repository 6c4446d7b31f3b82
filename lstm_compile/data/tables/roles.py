"""Which column of a long table is what: asked for, else inferred from names and types."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lstm_compile.data.schema import Schema, bare_name
from lstm_compile.data.tables.columns import Kind, Missing, TableOptions
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing, suggestion

# what pandas calls row numbers that it writes or reads as a column
_INDEX = re.compile(r"(__index_level_\d+__|Unnamed: \d+)?$")
# What a column must be called (in any case, `-` and blanks as `_`, units left out) to be taken
# for a role that no flag names; a column of dates is taken for the time whatever its name.
NAMES = {
    "id": ("id", "sequence", "sequence_id", "series", "series_id", "seq", "seq_id", "unit_id"),
    "time": ("time", "timestamp", "date", "datetime", "step", "frame", "t"),
    "target": ("target", "label", "class", "y"),
}


@dataclass(frozen=True)
class Roles:
    """What each column of a table is, and how that was found out.

    Attributes:
        id: the column, or None where each file is one sequence.
        time: the column, or None where the order of the file counts.
        target: one column or several; empty where labels were not asked for.
        features: the columns of the input, in the model's order.
        missing: what fills a gap.
        is_text: whether `features` is one column of text. Without an id each row is a sequence.
        inferred: the roles among id, time, target and features that no flag named.
        left_out: the columns that are nothing, with their kinds.
        filled: how many values of the features were missing.
        means: of the features, where gaps are filled with them.
    """

    id: str | None
    time: str | None
    target: tuple[str, ...]
    features: tuple[str, ...]
    missing: Missing
    inferred: tuple[str, ...] = ()
    left_out: tuple[tuple[str, Kind], ...] = ()
    filled: int = 0
    means: tuple[float, ...] = ()
    is_text: bool = False

    @property
    def keys(self) -> list[str]:
        """The columns of ids, times and targets."""
        return [name for name in (self.id, self.time, *self.target) if name is not None]

    @property
    def options(self) -> TableOptions:
        """What asks for the same columns again."""
        entering: dict[str, Any] = {"features": self.features}
        if self.is_text:
            entering = {"text": self.features[0]}
        return TableOptions(
            id=self.id, time=self.time, target=self.target,
            missing=self.missing, means=self.means, **entering,
        )  # fmt: skip

    @property
    def description(self) -> str:
        """One line: `id: sequence (inferred); time: ...; left out: note (text)`."""
        parts = {
            "id": self.id or f"one sequence a {'row' if self.is_text else 'file'}",
            "time": self.time or "none, the order of the rows counts",
            "target": listing(self.target) or "none",
            "text" if self.is_text else "features": listing(self.features),
        }
        found = [
            f"{name}: {text}{' (inferred)' if name in self.inferred else ''}"
            for name, text in parts.items()
        ]
        if self.left_out:
            shown = [f"{n or 'a column without a name'} ({kind})" for n, kind in self.left_out]
            found.append(f"left out: {listing(shown)}")
        if self.missing != "error":
            found.append(f"missing: {self.missing} ({self.filled} values filled)")
        return "; ".join(found)


def infer_roles(
    place: str,
    columns: Mapping[str, Kind],
    options: TableOptions,
    *,
    schema: Schema | None = None,
    labelled: bool = True,
    several_files: bool = False,
) -> Roles:
    """Find the role of every column.

    Args:
        place: the file, for messages.
        columns: the kind of each, in the file's order.
        options: what was asked for.
        schema: of a trained model, whose features and targets are taken by name.
        labelled: False leaves the target alone, there or not.
        several_files: without an id column, each file is one sequence.

    Raises:
        InputError: a column that is not there, has two roles, or cannot be found out.
    """
    is_text = _reads_text(place, options, schema)
    asked = _asked(options, schema, labelled, columns)
    if is_text:
        asked["text"] = asked.pop("features")
    _check_asked(place, columns, asked, needed=labelled)
    taken = {name for names in asked.values() for name in names}
    found = {}
    for role in ("id", "time", "target"):
        found[role] = asked[role] or infer(place, role, columns, taken)
        taken.update(found[role])
    if not found["id"] and not several_files and not is_text:
        raise unknown(place, "id", columns)
    if labelled and not found["target"]:
        raise unknown(place, "target", columns)
    features = asked["text"] if is_text else asked["features"] or numbers(columns, taken)
    if not features:
        raise unknown(place, "features", columns)
    left_out = tuple((n, k) for n, k in columns.items() if n not in taken and n not in features)
    return Roles(
        id=next(iter(found["id"]), None),
        time=next(iter(found["time"]), None),
        target=found["target"] if labelled else (),
        features=features,
        missing=options.missing or "error",
        inferred=tuple(role for role in asked if not asked[role] and found.get(role, features)),
        left_out=left_out,
        is_text=is_text,
    )


def _reads_text(place: str, options: TableOptions, schema: Schema | None) -> bool:
    if schema is None:
        return options.text is not None
    if options.text is not None and schema.vocabulary is None:
        raise InputError(
            f"{place}: --text {options.text} names text, but the model was trained on the features "
            f"{listing(schema.features)}; leave --text out"
        )
    return schema.vocabulary is not None


def _asked(
    options: TableOptions, schema: Schema | None, labelled: bool, columns: Mapping[str, Kind]
) -> dict[str, tuple[str, ...]]:
    asked = {
        "id": (options.id,) if options.id else (),
        "time": (options.time,) if options.time else (),
        "target": options.target or (schema.targets if schema else ()),
        "features": (options.text,)
        if options.text
        else schema.features
        if schema
        else options.features,
    }
    if not labelled:
        asked["target"] = tuple(name for name in asked["target"] if name in columns)
    return asked


def _check_asked(
    place: str, columns: Mapping[str, Kind], asked: Mapping[str, tuple[str, ...]], needed: bool
) -> None:
    roles: dict[str, str] = {}
    for role, names in asked.items():
        for name in names:
            if name not in columns:
                raise InputError(
                    f"{place}: no column {name!r} for --{role}; found {listing(list(columns))}"
                    f"{suggestion(name, list(columns))}"
                )
            if name in roles and (needed or "target" not in (role, roles[name])):
                raise InputError(
                    f"{place}: column {name!r} is asked for as --{roles[name]} and as --{role}; "
                    f"a column has one role, name another"
                )
            roles[name] = role


def infer(place: str, role: str, columns: Mapping[str, Kind], taken: set[str]) -> tuple[str, ...]:
    """The column that nobody named for a role: by its name, or for the time by its kind.

    Raises:
        InputError: several could be meant.
    """
    free = [name for name in columns if name not in taken]
    found = [name for name in free if _normal(name) in NAMES[role]]
    if role == "time" and not found:
        found = [name for name in free if columns[name] == "date"]
    if len(found) > 1:
        raise InputError(
            f"{place}: columns {listing(found)} could all be the {role}; choose with --{role}"
        )
    return tuple(found)


def numbers(columns: Mapping[str, Kind], taken: set[str]) -> tuple[str, ...]:
    """The columns of numbers that have no role yet."""
    free = [name for name in columns if name not in taken and not _INDEX.match(name)]
    return tuple(name for name in free if columns[name] == "number")


def unknown(place: str, role: str, columns: Mapping[str, Kind]) -> InputError:
    """The error that a role has no column."""
    wanted = f"called {', '.join(NAMES[role])}" if role in NAMES else "of numbers left"
    kinds = listing([f"{name} ({kind})" for name, kind in columns.items()])
    alone = "; one series alone is for --task forecast" if role == "id" else ""
    return InputError(
        f"{place}: no column {wanted}, found {kinds}; name the {role} column with --{role}{alone}"
    )


def _normal(name: str) -> str:
    return re.sub(r"[\s-]+", "_", bare_name(name).lower())
