"""The names of the columns of a data set; a trained model carries them. Loads no torch."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lstm_compile.config import checked_keys
from lstm_compile.data.calendar import CALENDAR, calendar_names
from lstm_compile.data.series.clock import Clock, Kind
from lstm_compile.errors import InputError

BYTES = 256
WRITTEN = ("zone", "week", "form")  # keys of `SeriesSchema` that earlier versions do not know
OPTIONAL = (*WRITTEN, "other", "subtracted")  # likewise; left out where they have the default
_UNIT = re.compile(r"\[([^\[\]]+)\]\s*$")


@dataclass(frozen=True)
class SeriesSchema:
    """The clock and the covariates of a forecasting model's series.

    Raises:
        InputError: no such clock, or not one list of categories a static.
    """

    kind: Kind  # of the clock, see `Clock`
    step: float
    known: tuple[str, ...] = ()  # columns of the table whose values are known in the horizon too
    calendar: tuple[str, ...] = ()  # of `calendar.CALENDAR`, made from the time stamps
    statics: tuple[str, ...] = ()  # columns with one category a series
    categories: tuple[tuple[str, ...], ...] = ()  # of each static, in the order of their codes
    indicator: bool = False  # whether the last number of x marks the steps that were filled
    # of the stamps; empty where they have none, None for numbers and where it was not kept
    zone: str | None = None
    week: str = ""  # of `weekdays`, see `Clock`
    form: str = ""  # of stamps that are not ISO 8601: of `NUMBERS` and `PERIODS` in `periods`
    other: bool = False  # whether code 0 of a static stands for all other categories
    # one a column of the table (targets, past and known covariates): the number that is subtracted
    # before values become float32, and added to forecasts; empty where all are 0
    subtracted: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.subtracted and not all(map(isfinite, self.subtracted)):
            raise InputError("Schema: subtracted must hold finite numbers; train again")
        if len(self.statics) != len(self.categories):
            raise InputError("Schema: series needs one list of categories a static")
        assert self.clock

    @property
    def static_sizes(self) -> tuple[int, ...]:
        """How many codes each static has."""
        return tuple(len(each) + self.other for each in self.categories)

    @property
    def clock(self) -> Clock:
        """The length of one step."""
        return Clock(self.kind, self.step, self.zone or "", self.week)

    @property
    def known_features(self) -> tuple[str, ...]:
        """The columns of the input `known_future`."""
        return self.known + calendar_names(self.calendar)

    @classmethod
    def from_dict(cls, values: Any) -> "SeriesSchema":
        """The opposite of `dataclasses.asdict`, after a way through JSON.

        Raises:
            InputError: damaged.
        """
        try:
            names: dict[str, Any] = {n: tuple(values[n]) for n in ("known", "calendar", "statics")}
            categories = tuple(tuple(each) for each in values["categories"])
            flat = [*names["known"], *names["statics"], *(c for each in categories for c in each)]
            written: dict[str, Any] = {n: values[n] for n in WRITTEN if n in values}
            are_texts = all(isinstance(name, str) for name in (*flat, *written.values()))
            subtracted = values.get("subtracted", ())
            are_numbers = all(isinstance(each, float | int) for each in subtracted)
            if not (are_texts and are_numbers) or not set(names["calendar"]) <= set(CALENDAR):
                raise TypeError
            return cls(
                values["kind"], values["step"], **names, categories=categories,
                indicator=bool(values["indicator"]), other=bool(values.get("other")),
                subtracted=tuple(subtracted), **written,
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise InputError("Schema: series is damaged; train again") from error


@dataclass(frozen=True)
class Vocabulary:
    """The characters or bytes that tokens stand for: the sorted `characters`, or all 256 bytes.

    Raises:
        InputError: another kind, or characters that do not fit it.
    """

    kind: Literal["char", "byte"]
    characters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fits = bool(self.characters) == (self.kind == "char") and self.kind in ("char", "byte")
        if not fits or not all(len(each) == 1 for each in self.characters):
            raise InputError("Vocabulary: damaged; train again")
        check_unique("Vocabulary: characters", self.characters)

    def __len__(self) -> int:
        return len(self.characters) or BYTES

    def encode(self, text: str, place: str = "text", first: int = 0) -> NDArray[np.int64]:
        """The tokens of a text, int64.

        Raises:
            InputError: a character that is not in the vocabulary; `place` names the text, and
                `first` is the number of its first character there.
        """
        codes, unknown = self.find(text)
        for index in unknown[:1]:
            raise InputError(
                f"{place}, character {first + index}: {text[index]!r} is not in the "
                f"{self.described}; leave it out, or train with --tokens byte"
            )
        return codes.astype(np.int64)

    @property
    def described(self) -> str:
        """The vocabulary in a message."""
        return f"vocabulary of {len(self)} characters that the model was trained on"

    def find(self, text: str) -> tuple[NDArray[Any], NDArray[np.intp]]:
        """The tokens of a text, and the places of its unknown characters; their token is -1."""
        if self.kind == "byte":
            return np.frombuffer(text.encode(), np.uint8), np.empty(0, np.intp)
        known = np.array([ord(character) for character in self.characters])
        code_of = np.full(known.max() + 2, -1, np.int32)
        code_of[known] = np.arange(len(known))
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        codes = code_of[np.minimum(points, len(code_of) - 1)]
        return codes, np.flatnonzero(codes < 0)

    @property
    def code_type(self) -> type[np.generic]:
        """The type that stores tokens: uint8 if it holds all of them, else int32."""
        return np.uint8 if len(self) <= BYTES else np.int32


@dataclass(frozen=True)
class Categories:
    """The categories of the last features of a model, whose values are codes in x.

    Raises:
        InputError: a column without a category, or one twice.
    """

    names: tuple[tuple[str, ...], ...]  # of each column, in the order of their codes
    other: bool = False  # whether code 0 stands for all other categories; the first is then 1

    def __post_init__(self) -> None:
        for each in self.names:
            check_unique("Schema: categories", each)
        if not all(self.names):
            raise InputError("Schema: a column of categories needs at least one")

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes each column has."""
        return tuple(len(each) + self.other for each in self.names)

    @classmethod
    def from_dict(cls, values: Any) -> "Categories":
        """The opposite of `dataclasses.asdict`, after a way through JSON.

        Raises:
            InputError: damaged.
        """
        try:
            names = tuple(_strings("categories", each) for each in values["names"])
            return cls(names, bool(values["other"]))
        except (KeyError, TypeError) as error:
            raise InputError("Schema: categories are damaged; train again") from error


@dataclass(frozen=True)
class Schema:
    """The names of features, and of either classes or targets, in the model's order.

    Attributes:
        classes: the class labels, code by code; empty for regression.
        targets: one name a regression target; empty for classification.
        units: one a feature, then one a target, empty text where there is none; empty if there are
            none at all. By default they come from names like `speed [km/h]`.
        series: of a forecasting model, whose targets are among its features; else None.
        vocabulary: of a model that reads text; a language model has no classes or targets.
        categories: of the last features, if there are any.

    Raises:
        InputError: no feature, a name twice, not exactly one of `classes` and `targets`, or another
            number of units.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    units: tuple[str, ...] = ()
    series: SeriesSchema | None = None
    vocabulary: Vocabulary | None = None
    categories: Categories | None = None

    def __post_init__(self) -> None:
        for name in ("features", "classes", "targets"):
            check_unique(f"Schema: {name}", getattr(self, name))
        if not self.features:
            raise InputError("Schema: features must hold at least one name, found none")
        kinds = bool(self.classes) + bool(self.targets)
        if kinds == 2 or (kinds == 0 and self.vocabulary is None):
            raise InputError(
                f"Schema: exactly one of classes and targets must hold names, found "
                f"{len(self.classes)} classes and {len(self.targets)} targets"
            )
        self._fill_units()

    @property
    def category_sizes(self) -> tuple[int, ...]:
        """How many codes each column of categories has."""
        return self.categories.sizes if self.categories else ()

    @property
    def has_other(self) -> bool:
        """Whether code 0 stands for categories that training has not seen."""
        return any(each is not None and each.other for each in (self.categories, self.series))

    @property
    def category_columns(self) -> tuple[str, ...]:
        """The features that are columns of categories: the last."""
        return self.features[len(self.features) - len(self.category_sizes) :]

    def _fill_units(self) -> None:
        names = (*self.features, *self.targets)
        units = self.units or tuple(unit_of(name) for name in names)
        if len(units) != len(names):
            raise InputError(
                f"Schema: units must be {len(names)}, one a feature and target, found {len(units)}"
            )
        object.__setattr__(self, "units", units if any(units) else ())

    def to_json(self) -> str:
        """Write the schema as a JSON object with sorted keys."""
        values = asdict(self)
        if not self.units:
            del values["units"]  # earlier versions know no such key
        for name in ("series", "vocabulary", "categories"):
            if values[name] is None:
                del values[name]
        for name in OPTIONAL if self.series else ():
            default = getattr(SeriesSchema, name)
            if getattr(self.series, name) == default:  # earlier versions know no such key
                del values["series"][name]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Read what `to_json` wrote.

        Raises:
            InputError: not a JSON object, a missing or unknown key, or not lists of strings.
        """
        values = checked_keys(cls, text)
        series, vocabulary = values.pop("series", None), values.pop("vocabulary", None)
        categories = values.pop("categories", None)
        known = [f.name for f in fields(cls) if f.name in values]
        names = {name: _strings(name, values[name]) for name in known}
        return cls(
            **names,
            series=None if series is None else SeriesSchema.from_dict(series),
            vocabulary=None if vocabulary is None else _vocabulary(vocabulary),
            categories=None if categories is None else Categories.from_dict(categories),
        )


def _vocabulary(values: Any) -> Vocabulary:
    try:
        return Vocabulary(values["kind"], tuple(values["characters"]))
    except (KeyError, TypeError) as error:
        raise InputError("Schema: vocabulary is damaged; train again") from error


def numbered(word: str, count: int) -> tuple[str, ...]:
    """`word_0`, `word_1`, ... up to `count` names."""
    return tuple(f"{word}_{index}" for index in range(count))


def check_unique(what: str, names: Sequence[str]) -> None:
    """Check that no name occurs twice.

    Raises:
        InputError: names `what` and the first repeated name.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{what} must differ, found {name!r} twice")
        seen.add(name)


def unit_of(name: str) -> str:
    """The unit in a name like `speed [km/h]`, else empty text."""
    match = _UNIT.search(name)
    return match[1].strip() if match else ""


def bare_name(name: str) -> str:
    """The name without its unit and the blanks around it."""
    return _UNIT.sub("", name).strip()


def _strings(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"Schema: {name} must be a list of strings, found {value!r}")
    return tuple(value)
