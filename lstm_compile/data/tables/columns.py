"""How to read a long table: which columns to take, and what to do about gaps.

Loads neither torch nor pyarrow: the command line makes flags of `TableOptions`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal, get_args

from lstm_compile.config import option
from lstm_compile.data.calendar import CALENDAR
from lstm_compile.errors import InputError

Missing = Literal["error", "forward", "mean", "zero"]
Gaps = Literal["error", "forward", "linear", "indicate"]
Duplicates = Literal["error", "mean", "last"]
CHOICES = {"missing": Missing, "gaps": Gaps, "duplicates": Duplicates}
# what only tables of series to forecast have
SERIES_ONLY = ("known", "static", "calendar", "gaps", "duplicates")
Kind = Literal["number", "text", "date", "other"]  # bool and whole numbers are numbers too


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """How to read a long table; each field is a flag of `train` and `evaluate`.

    Attributes:
        id: column whose value is the same in all rows of a sequence; None infers it.
        time: column that orders the rows of a sequence; None infers it.
        target: columns with the label or the numbers to predict; empty infers one.
        features: columns with the values of a step, in the model's order; empty infers them.
        text: column with text, read character by character in place of features.
        missing: what becomes of empty cells, NaN and infinities in the features; None is `error`,
            or what a model was trained with.
        known: columns whose values are known in the horizon of a forecast too.
        static: columns with one category a series.
        calendar: columns made from the stamps: `hour`, `weekday`, `month`; `auto` takes those that
            the step and the span of the table allow, `none` none.
        gaps: what a series to forecast has at steps without a row and in empty cells: nothing
            (`error`), the value before (`forward`), a line to the value after (`linear`), or the
            value before and a column that says so (`indicate`).
        duplicates: what two rows of one series at one time become: nothing (`error`), their mean,
            or the last of them.
        means: of the features in the data a model was trained on, which fill gaps in later data
            too; no flag. Empty takes those of the data that are read.

    Raises:
        InputError: a value of another type, or an empty name.
    """

    id: str | None = option(None, "Column that names each row's sequence.", only="has_features")
    time: str | None = option(
        None, "Column that orders the rows of a sequence.", only="has_features"
    )
    target: tuple[str, ...] = option(
        (), "Column to predict; several numbers parted by commas.", only="has_features"
    )
    features: tuple[str, ...] = option(
        (), "Columns of the input, parted by commas.", only="has_features"
    )
    text: str | None = option(
        None, "Column of text, in place of features.", unset="none", only="has_classes"
    )
    missing: Missing | None = option(
        None,
        "What fills empty cells, NaN and infinities.",
        unset="as in training, else error",
        only="is_whole",
    )
    known: tuple[str, ...] = option(
        (), "Covariates known in the horizon too.", unset="none", only="is_series"
    )
    static: tuple[str, ...] = option(
        (), "Columns with one category a series.", unset="none", only="is_series"
    )
    calendar: tuple[str, ...] = option(
        (), "Of hour, weekday and month; or auto, or none.", unset="auto", only="is_series"
    )
    gaps: Gaps | None = option(
        None,
        "What fills missing steps and cells of a series.",
        unset="as in training, else error",
        only="is_series",
    )
    duplicates: Duplicates | None = option(
        None,
        "What two rows at one time become.",
        unset="as in training, else error",
        only="is_series",
    )
    means: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("id", "time", "text"):
            _check_column_name(name, getattr(self, name))
        for name in ("target", "features", "known", "static", "calendar"):
            object.__setattr__(self, name, _column_names(name, getattr(self, name)))
        for name, kind in CHOICES.items():
            if getattr(self, name) not in (None, *get_args(kind)):
                choices = ", ".join(get_args(kind))
                raise InputError(f"{name} must be one of {choices}; got {getattr(self, name)!r}")
        if not set(self.calendar) <= {*CALENDAR, "auto", "none"}:
            raise InputError(
                f"calendar must be auto, none or of {', '.join(CALENDAR)}; got "
                f"{', '.join(self.calendar)}"
            )
        if not all(isinstance(mean, float) and isfinite(mean) for mean in self.means):
            raise InputError(f"means must be finite numbers, got {self.means!r}")
        object.__setattr__(self, "means", tuple(self.means))
        if self.text and self.features:
            raise InputError("text stands in place of features; name one of them")

    @property
    def given(self) -> list[str]:
        """The flags that ask for something other than the default."""
        return [f"--{name}" for name in self._changed() if name != "means"]

    @property
    def given_for_series(self) -> list[str]:
        """Those of them that only series to forecast have."""
        return [name for name in self.given if name.removeprefix("--") in SERIES_ONLY]

    def _changed(self) -> dict[str, Any]:
        default = asdict(TableOptions())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def over(self, stored: Mapping[str, Any] | None) -> "TableOptions":
        """These options, with what they leave open taken from those of a trained model.

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


def _check_column_name(role: str, name: Any) -> None:
    if name is not None and not (isinstance(name, str) and name):
        raise InputError(f"{role} must be the name of a column, got {name!r}")


def _column_names(role: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, Sequence) or isinstance(names, str | bytes):
        raise InputError(f"{role} must be a list of column names, got {names!r}")
    if not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{role} must be names of columns, got {list(names)!r}")
    return tuple(names)
