"""How to read a table: its columns, what fills its gaps, and what the reader returns.

Loads neither torch nor pyarrow nor numpy: the command line makes flags of `TableOptions`.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, get_args

from lstm_compile.config import option
from lstm_compile.data.calendar import CALENDAR
from lstm_compile.errors import InputError

if TYPE_CHECKING:
    from lstm_compile.data.schema import Schema

Progress = Callable[[int, int], None]  # is called with rows done and rows in all
Missing = Literal["error", "forward", "mean", "zero"]
Gaps = Literal["error", "forward", "linear", "indicate"]
Duplicates = Literal["error", "mean", "last"]
Unknown = Literal["error", "other"]
Decimal = Literal[".", ","]
Names = tuple[str, ...]
NOT_OF_FILES = ("idna", "punycode", "undefined")  # encodings of names
CHOICES = {
    "unknown": Unknown,
    "missing": Missing,
    "gaps": Gaps,
    "duplicates": Duplicates,
    "decimal": Decimal,
}
# the options that only tables of series to forecast have
SERIES_ONLY = (
    "known", "static", "calendar", "gaps", "duplicates", "time_zone", "step", "jitter",
)  # fmt: skip
JITTER, MOST_JITTER = 0.01, 0.25  # of a step; with more, the nearest step is a guess
Kind = Literal["number", "text", "date", "other"]  # bool and whole numbers are numbers too
AS_TRAINED = "as in training, else error"
HAS_FEATURES, IS_SERIES = "has_features", "is_series"  # properties of a task


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How to read a long table; each field is a flag of `train` and `evaluate`.

    The help text of each field says what it is; some need more words.

    Attributes:
        features: in the model's order.
        categories: of words or numbers that name something; they follow the features.
        unknown: what a category becomes that training has not seen: an error, or a vector that
            is learned for all others (`other`).
        text: is read character by character.
        calendar: columns made from the time stamps: `hour`, `weekday`, `month`; `auto` takes those
            that the step and the span of the table allow, `none` none.
        gaps: what fills steps without a row and empty cells of a series to forecast: nothing
            (`error`), the value before (`forward`), a line to the value after (`linear`), or the
            value before with a column that marks the step (`indicate`).
        duplicates: what replaces two rows of one series at one time: nothing (`error`), their
            mean, or the last of them.
        time_zone: like `Europe/Berlin`. Stamps without an offset are times there, others are turned
            into it; None takes the zone that the data have.
        step: the distance of two rows, where rows do not say it: `B`, `Mon-Sat`, `15min`, `MS`.
        jitter: rows that lie within this share of a step beside equal steps are put there.
        means: of the features in a model's training data; they fill gaps in later data too. There
            is no flag for them. Empty takes the means of the data that are read.

    Raises:
        InputError: a value of another type, or an empty name.
    """

    id: str | None = option(None, "Column that names each row's sequence.", only=HAS_FEATURES)
    time: str | None = option(None, "Column that orders the rows of a sequence.", only=HAS_FEATURES)
    target: Names = option(
        (), "Column to predict; several numbers separated by commas.", only=HAS_FEATURES
    )
    features: Names = option((), "Columns of the input, separated by commas.", only=HAS_FEATURES)
    categories: Names = option(
        (), "Columns of words, learned as vectors.", unset="none", only=HAS_FEATURES
    )
    unknown: Unknown | None = option(
        None, "What categories become that training has not seen.", unset="error",
        only=HAS_FEATURES,
    )  # fmt: skip
    text: str | None = option(
        None, "Column of text, in place of features.", unset="none", only="has_classes"
    )
    missing: Missing | None = option(
        None, "What fills empty cells, NaN and infinities.", unset=AS_TRAINED, only="is_whole"
    )
    known: Names = option((), "Covariates known in the horizon too.", unset="none", only=IS_SERIES)
    static: Names = option((), "Columns with one category a series.", unset="none", only=IS_SERIES)
    calendar: Names = option(
        (), "Any of hour, weekday and month; or auto, or none.", unset="auto", only=IS_SERIES
    )
    gaps: Gaps | None = option(
        None, "What fills missing steps and cells of a series.", unset=AS_TRAINED, only=IS_SERIES
    )
    duplicates: Duplicates | None = option(
        None, "What two rows at one time become.", unset=AS_TRAINED, only=IS_SERIES
    )
    decimal: Decimal | None = option(
        None, "Decimal mark of CSV files.", unset="as in training, else .", only=HAS_FEATURES
    )
    encoding: str | None = option(
        None, "Encoding of CSV and JSON Lines files, such as cp1252 or utf-16.",
        unset="as in training, else UTF-8", only=HAS_FEATURES,
    )  # fmt: skip
    time_zone: str | None = option(
        None, "Zone of the stamps, like Europe/Berlin.", unset="that of the data", only=IS_SERIES
    )
    step: str | None = option(
        None, "Distance of rows, like B, Mon-Sat, 15min or MS.", unset="inferred", only=IS_SERIES
    )
    jitter: float | None = option(
        None, "Share of a step that a stamp may be off.", unset=f"as in training, else {JITTER}",
        only=IS_SERIES,
    )  # fmt: skip
    means: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("id", "time", "text", "time_zone", "step"):
            _check_column_name(name, getattr(self, name))
        for name in ("target", "features", "categories", "known", "static", "calendar"):
            object.__setattr__(self, name, _column_names(name, getattr(self, name)))
        for name, kind in CHOICES.items():
            if getattr(self, name) not in (None, *get_args(kind)):
                choices = ", ".join(get_args(kind))
                raise InputError(f"{name} must be one of {choices}; got {getattr(self, name)!r}")
        _check_encoding(self.encoding)
        _check_jitter(self.jitter)
        if not set(self.calendar) <= {*CALENDAR, "auto", "none"}:
            raise InputError(
                f"calendar must be auto, none or of {', '.join(CALENDAR)}; got "
                f"{', '.join(self.calendar)}"
            )
        if not all(isinstance(mean, float) and isfinite(mean) for mean in self.means):
            raise InputError(f"means must be finite numbers, got {self.means!r}")
        object.__setattr__(self, "means", tuple(self.means))
        self._check_categories()

    def _check_categories(self) -> None:
        if self.text and (self.features or self.categories):
            raise InputError("text replaces features; name only one of them")
        if self.unknown == "other" and not (self.categories or self.static):
            raise InputError("unknown other is for categories; name columns of them too")

    @property
    def changed_flags(self) -> list[str]:
        """The flags of the options that differ from the default."""
        return [f"--{name.replace('_', '-')}" for name in self._changed() if name != "means"]

    @property
    def series_flags(self) -> list[str]:
        """Those of `changed_flags` that only tables of series to forecast have."""
        flags = {f"--{name.replace('_', '-')}" for name in SERIES_ONLY}
        return [name for name in self.changed_flags if name in flags]

    def _changed(self) -> dict[str, Any]:
        default = asdict(TableOptions())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def over(self, stored: Mapping[str, Any] | None) -> "TableOptions":
        """These options; where they have the default, those of a trained model.

        Args:
            stored: `asdict` of the options that the model's training used, or None.

        Raises:
            InputError: `stored` is damaged.
        """
        if not stored:
            return self
        if unknown := sorted(set(stored) - set(asdict(self))):
            raise InputError(f"table options: unknown keys {unknown}; train again")
        return replace(TableOptions(**stored), **self._changed())


def _check_jitter(jitter: Any) -> None:
    is_share = isinstance(jitter, int | float) and 0 <= jitter < MOST_JITTER
    if jitter is not None and not is_share:
        raise InputError(f"jitter must be a share from 0 to below {MOST_JITTER}; got {jitter!r}")


def _check_column_name(role: str, name: Any) -> None:
    if name is not None and not (isinstance(name, str) and name):
        raise InputError(f"{role} must be the name of a column, got {name!r}")


def _check_encoding(name: Any) -> None:
    try:
        found = None if name is None else codecs.lookup(name)
    except (LookupError, TypeError, ValueError):
        found = codecs.lookup("hex")  # of bytes, not of text
    if found is None or (found._is_text_encoding and found.name not in NOT_OF_FILES):
        return
    raise InputError(
        f"encoding must be one that Python knows, such as cp1252 or utf-16; got {name!r}"
    )


def _column_names(role: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, Sequence) or isinstance(names, str | bytes):
        raise InputError(f"{role} must be a list of column names, got {names!r}")
    if not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{role} must be names of columns, got {list(names)!r}")
    return tuple(names)


@dataclass(frozen=True)
class ReadRequest:
    """A file to read, and everything that decides what its reader returns."""

    path: str | PathLike[str]  # for a long table also a folder or a glob
    # the columns of a long table, and what fills its gaps; other formats take none
    options: TableOptions = TableOptions()
    # of a trained model: picks the columns and the vocabulary; None takes the file's
    schema: "Schema | None" = None
    labelled: bool = True  # False ignores classes and targets, whether the file has them or not
    # whether every step has a label, or every sequence; None takes `.npz` files as they are, others
    # by sequence
    per_step: bool | None = None
    # whether labels are classes, or numbers to predict; None lets the schema or the labels decide
    has_classes: bool | None = None
    # `char` or `byte`: the tokens of a column of text, unless `schema` says it
    tokens: str = "char"
    progress: Progress | None = None

    @property
    def reads_text(self) -> bool:
        """Whether the input is a column of text."""
        return bool(self.schema.vocabulary if self.schema else self.options.text)

    @property
    def wants_classes(self) -> bool | None:
        """Whether labels are read as classes, or as numbers; None: as they look."""
        return bool(self.schema.classes) if self.schema else self.has_classes

    @property
    def step_labels(self) -> bool:
        """Whether labels are read, one for every step."""
        return self.labelled and bool(self.per_step)
