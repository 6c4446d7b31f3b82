"""The role of each column of a long table: asked for, else inferred from names and types."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from lstm_compile.data.schema import bare_name
from lstm_compile.data.tables.columns import (
    Decimal,
    Kind,
    Missing,
    ReadRequest,
    TableOptions,
    Unknown,
)
from lstm_compile.data.tables.folders import is_address, is_several
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing, suggestion

# the names that pandas gives to row numbers, as it writes or reads them as a column
_INDEX = re.compile(r"(__index_level_\d+__|Unnamed: \d+[._\d]*)?$")
WEAK_IDS = ("group", "group_id")  # ids where no column has a name of `NAMES`
# A column with one of these names (in any case, `-` and blanks as `_`, units left out) is taken for
# a role that no flag names. A column of dates is taken for the time whatever its name.
NAMES = {
    "id": (
        "id",
        "sequence",
        "sequence_id",
        "series",
        "series_id",
        "seq",
        "seq_id",
        "unit_id",
        "unique_id",
        "item_id",
    ),
    "time": ("time", "timestamp", "date", "datetime", "step", "frame", "t"),
    "target": ("target", "label", "class", "y"),
}


@dataclass(frozen=True)
class FilledGaps:
    """How the gaps of a file without named columns were filled; it stands in place of `Roles`."""

    missing: Missing
    means: tuple[float, ...]  # of the features, where gaps are filled with them
    counts: Mapping[str, int]  # the gaps of each feature that has any

    @property
    def options(self) -> TableOptions:
        """The options that fill the gaps of later data alike."""
        return TableOptions(missing=self.missing, means=self.means)

    @property
    def description(self) -> str:
        """One line: `missing: forward (3 values filled)`."""
        return f"missing: {self.missing} ({sum(self.counts.values())} values filled)"


@dataclass(frozen=True)
class Roles:
    """The role of each column of a table."""

    id: str | None  # the column, or None where each file is one sequence
    time: str | None  # the column, or None where the order of the file counts
    target: tuple[str, ...]  # one column or several; empty if labels are not read
    features: tuple[str, ...]  # the columns of the input, in the model's order
    missing: Missing  # what fills a gap
    inferred: tuple[str, ...] = ()  # of id, time, target and features, those that no flag named
    left_out: tuple[tuple[str, Kind], ...] = ()  # without a role
    filled: int = 0  # how many values of the features were missing
    means: tuple[float, ...] = ()  # of the features, where gaps are filled with them
    is_text: bool = False  # whether `features` is one column of text
    categories: tuple[str, ...] = ()  # the columns of categories, which follow the features
    unknown: Unknown | None = None  # what categories become that training has not seen
    decimal: Decimal | None = None  # of CSV files, see `TableOptions`
    encoding: str | None = None  # of files of text, see `TableOptions`
    # how to mend a cell that is no number, for features that cannot be `categories`
    mends: Mapping[str, str] = field(default_factory=dict)

    @property
    def index_columns(self) -> list[str]:
        """The columns of ids, times and targets."""
        return [name for name in (self.id, self.time, *self.target) if name is not None]

    @property
    def options(self) -> TableOptions:
        """The options that ask for the same columns."""
        text, features = (self.features[0], ()) if self.is_text else (None, self.features)
        return TableOptions(
            id=self.id, time=self.time, target=self.target, features=features,
            text=text, missing=self.missing, means=self.means,
            categories=self.categories, unknown=self.unknown,
            decimal=self.decimal, encoding=self.encoding,
        )  # fmt: skip

    @property
    def description(self) -> str:
        """One line: `id: sequence (inferred); time: ...; left out: note (text)`."""
        parts = {
            "id": self.id or f"one sequence a {'row' if self.is_text else 'file'}",
            "time": self.time or "none, the order of the rows counts",
            "target": listing(self.target) or "none",
            "text" if self.is_text else "features": listing(self.features),
            "categories": listing(self.categories),
        }
        described = described_roles(parts, self.inferred, self.left_out)
        if self.missing != "error":
            described.append(f"missing: {self.missing} ({self.filled} values filled)")
        return "; ".join(described)


def described_roles(
    parts: Mapping[str, str], inferred: tuple[str, ...], left_out: tuple[tuple[str, Kind], ...]
) -> list[str]:
    """`role: columns` for each role that has any, and the columns left out."""
    described = [
        f"{role}: {columns}{' (inferred)' if role in inferred else ''}"
        for role, columns in parts.items()
        if columns
    ]
    if left_out:
        shown = [f"{name or 'a column without a name'} ({kind})" for name, kind in left_out]
        described.append(f"left out: {listing(shown)}")
    return described


def infer_roles(place: str, columns: Mapping[str, Kind], request: ReadRequest) -> Roles:
    """Find the role of every column: named by options or schema, else inferred.

    Without an id column, each of several files is one sequence.

    Raises:
        InputError: a column that is missing, has two roles, or cannot be inferred.
    """
    labelled, is_text = request.labelled, _reads_text(place, request)
    asked = _asked(request, columns)
    if is_text:
        asked["text"] = asked.pop("features")
    pairs = [(role, name) for role, names in asked.items() for name in names]
    check_roles(place, columns, pairs, lambda both: "target" in both and not labelled)
    taken = {name for _, name in pairs}
    found: dict[str, tuple[str, ...]] = {"categories": ()}  # never inferred
    for role in ("id", "time", "target"):
        found[role] = asked[role] or infer_role(place, role, columns, taken)
        taken.update(found[role])
    several = is_address(request.path) or is_several(request.path)
    if not found["id"] and not is_text and not several:
        raise missing_role(place, "id", columns)
    if labelled and not found["target"]:
        raise missing_role(place, "target", columns)
    features = asked["text"] if is_text else asked["features"] or free_numbers(columns, taken)
    if not features and not asked["categories"]:
        raise missing_role(place, "features", columns)
    taken.update(features)
    return Roles(
        id=next(iter(found["id"]), None),
        time=next(iter(found["time"]), None),
        target=found["target"] if labelled else (),
        features=features,
        missing=request.options.missing or "error",
        inferred=tuple(role for role in asked if not asked[role] and found.get(role, features)),
        left_out=tuple((name, kind) for name, kind in columns.items() if name not in taken),
        is_text=is_text,
        categories=asked["categories"],
        unknown=request.options.unknown,
        decimal=request.options.decimal,
        encoding=request.options.encoding,
    )


def _reads_text(place: str, request: ReadRequest) -> bool:
    schema, text = request.schema, request.options.text
    if schema is not None and text is not None and schema.vocabulary is None:
        raise InputError(
            f"{place}: --text {text} names text, but the model was trained on the features "
            f"{listing(schema.features)}; leave --text out"
        )
    return request.reads_text


def _asked(request: ReadRequest, columns: Mapping[str, Kind]) -> dict[str, tuple[str, ...]]:
    """The columns that the options or the schema name for each role."""
    options, schema = request.options, request.schema
    target = options.target or (schema.targets if schema else ())
    if not request.labelled:
        target = tuple(name for name in target if name in columns)
    features, categories = options.features, options.categories
    if schema:
        categories = schema.category_columns
        features = schema.features[: len(schema.features) - len(categories)]
    return {
        "id": (options.id,) if options.id else (),
        "time": (options.time,) if options.time else (),
        "target": target,
        "features": (options.text,) if options.text else features,
        "categories": categories,
    }


def check_roles(
    place: str,
    columns: Mapping[str, Kind],
    asked: Iterable[tuple[str, str]],
    may_share: Callable[[set[str]], bool],
) -> None:
    """Check that all columns of the pairs (role, column) in `asked` exist, and have one role.

    `may_share` says whether two roles may have the same column.

    Raises:
        InputError: a column that is missing, or has two roles.
    """
    roles: dict[str, str] = {}
    for role, name in asked:
        if name not in columns:
            raise InputError(
                f"{place}: no column {name!r} for --{role}; found {listing(list(columns))}"
                f"{suggestion(name, list(columns))}"
            )
        if name in roles and not may_share({role, roles[name]}):
            raise InputError(
                f"{place}: column {name!r} is asked for as --{roles[name]} and as --{role}; "
                f"a column has one role, name another"
            )
        roles[name] = role


def infer_role(
    place: str, role: str, columns: Mapping[str, Kind], taken: set[str]
) -> tuple[str, ...]:
    """The column for a role that no option names: by its name, or for the time by its kind.

    Raises:
        InputError: several could be meant.
    """
    free = [name for name in columns if name not in taken]
    plain = {name: re.sub(r"[\s-]+", "_", bare_name(name).lower()) for name in free}
    found = [name for name in free if plain[name] in NAMES[role]]
    if role == "id" and not found:
        found = [name for name in free if plain[name] in WEAK_IDS]
    if role == "time" and not found:
        found = [name for name in free if columns[name] == "date"]
    if len(found) > 1:
        raise InputError(
            f"{place}: columns {listing(found)} could all be the {role}; choose with --{role}"
        )
    return tuple(found)


def free_numbers(columns: Mapping[str, Kind], taken: set[str]) -> tuple[str, ...]:
    """The columns of numbers that have no role yet."""
    free = [name for name in columns if name not in taken and not _INDEX.match(name)]
    return tuple(name for name in free if columns[name] == "number")


def missing_role(place: str, role: str, columns: Mapping[str, Kind]) -> InputError:
    """The error that a role has no column."""
    known = (*NAMES[role], *WEAK_IDS) if role == "id" else NAMES.get(role)
    wanted = f"called {', '.join(known)}" if known else "of numbers left"
    kinds = listing([f"{name} ({kind})" for name, kind in columns.items()])
    hint = "; one series alone is for --task forecast" if role == "id" else ""
    return InputError(
        f"{place}: no column {wanted}, found {kinds}; name the {role} column with --{role}{hint}"
    )
