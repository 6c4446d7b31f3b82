"""What the columns of a data set are called; a trained model carries one. Loads no torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from lstm_compile.config import checked_keys
from lstm_compile.errors import InputError


@dataclass(frozen=True)
class Schema:
    """The names of features, and of either classes or targets, in the model's order.

    Attributes:
        features: one name a feature.
        classes: the class labels, code by code; empty for regression.
        targets: one name a regression target; empty for classification.

    Raises:
        InputError: no feature, a name twice, or not exactly one of `classes` and `targets`.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("features", "classes", "targets"):
            check_unique(f"Schema: {name}", getattr(self, name))
        if not self.features:
            raise InputError("Schema: features must hold at least one name, found none")
        if bool(self.classes) == bool(self.targets):
            raise InputError(
                f"Schema: exactly one of classes and targets must hold names, found "
                f"{len(self.classes)} classes and {len(self.targets)} targets"
            )

    def to_json(self) -> str:
        """Write the schema as a JSON object with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Schema":
        """Read what `to_json` wrote.

        Raises:
            InputError: not a JSON object, a missing or unknown key, or not lists of strings.
        """
        values = checked_keys(cls, text)
        return cls(**{f.name: _strings(f.name, values[f.name]) for f in fields(cls)})


def check_unique(what: str, names: Sequence[str]) -> None:
    """Refuse a name that occurs twice.

    Raises:
        InputError: `what` and the first repeated name.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{what} must differ, found {name!r} twice")
        seen.add(name)


def _strings(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"Schema: {name} must be a list of strings, found {value!r}")
    return tuple(value)
