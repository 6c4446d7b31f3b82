"""What a model is: one frozen, validated description that every file carries. Loads no torch."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from lstm_compile.errors import InputError

Task = Literal["classify", "regress"]
Pooling = Literal["last", "mean", "max", "attention", "dot-attention"]
Scaling = Literal["none", "standard", "minmax"]

MAX_SIZE = 1 << 16
MAX_LAYERS = 64


def option(
    default: Any,
    text: str,
    low: float | None = None,
    high: float | None = None,
    unset: str = "inferred",
) -> Any:
    """A field that is also a flag of `train`: its default, help text and inclusive range.

    `unset` says what a default of None stands for.
    """
    return field(default=default, metadata={"help": text, "low": low, "high": high, "unset": unset})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of a model, with nn.LSTM's names where it has them.

    Attributes:
        task: `classify` (one class a sequence) or `regress` (numbers a sequence).
        input_size: features a step.
        output_size: classes, or targets.
        hidden_size: width of the state of one layer and direction.
        num_layers: stacked layers.
        bidirectional: a second pass from each sequence's last valid step to its first.
        bias: whether the LSTM has its two bias vectors.
        dropout: probability of dropping a value between layers, in training.
        head_dropout: probability of dropping a pooled value before the linear head, in training.
        pooling: how steps become one vector: `last` valid step, `mean`, `max`, `attention` (learned
            scores), `dot-attention` (scores are dot products with the last valid step).
        scaling: what happens to each feature first: nothing, zero mean and unit deviation
            (`standard`), or the range [0, 1] (`minmax`).
        target_scaling: the same for regression targets; inverted in the graph.

    Raises:
        InputError: a value is of the wrong type or out of range.
    """

    task: Task
    input_size: int
    output_size: int
    hidden_size: int = option(64, "Width of one layer's state.", 1, MAX_SIZE)
    num_layers: int = option(2, "Stacked layers.", 1, MAX_LAYERS)
    bidirectional: bool = option(True, "Read each sequence in both directions.")
    bias: bool = option(True, "Give the LSTM its bias vectors.")
    dropout: float = option(0.4, "Dropout between layers.", 0.0, 1.0)
    head_dropout: float = option(0.4, "Dropout before the linear head.", 0.0, 1.0)
    pooling: Pooling = option("attention", "How the steps become one vector.")
    scaling: Scaling = option("standard", "Scaling of the features, part of the model.")
    target_scaling: Scaling = option("standard", "Scaling of regression targets, inverted inside.")

    def __post_init__(self) -> None:
        validate(self)
        for name in ("input_size", "output_size"):
            _check_range(name, getattr(self, name), 1, MAX_SIZE)

    @property
    def num_directions(self) -> int:
        """1, or 2 for a bidirectional model."""
        return 2 if self.bidirectional else 1

    def to_json(self) -> str:
        """The config as a JSON object with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """Read what `to_json` wrote.

        Raises:
            InputError: not a JSON object, a missing or unknown key, or a value out of range.
        """
        return cls(**checked_keys(cls, text))


def checked_keys(cls: type, text: str) -> dict[str, Any]:
    """The JSON object `text`, whose keys must be fields of the dataclass `cls`.

    Raises:
        InputError: not a JSON object, or an unknown or missing key.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise InputError(f"{cls.__name__}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{cls.__name__}: expected a JSON object, found {type(values).__name__}")
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(values) - known):
        raise InputError(f"{cls.__name__}: unknown keys {unknown}; known are {sorted(known)}")
    if missing := sorted(_required(cls) - set(values)):
        raise InputError(f"{cls.__name__}: missing keys {missing}")
    return values


def validate(config: Any) -> None:
    """Check each field of a dataclass against its annotation and range.

    Raises:
        InputError: names the field, what was found and what was expected.
    """
    hints = get_type_hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        _check_type(f.name, value, hints[f.name])
        _check_range(f.name, value, f.metadata.get("low"), f.metadata.get("high"))


def _required(cls: type) -> set[str]:
    from dataclasses import MISSING

    return {f.name for f in fields(cls) if f.default is MISSING}


def _check_type(name: str, value: Any, hint: Any) -> None:
    choices = get_args(hint)
    if choices and all(isinstance(choice, str) for choice in choices):
        if value not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
        return
    accepted = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name} must be of type {hint.__name__}, got {value!r}")


def _check_range(name: str, value: Any, low: float | None, high: float | None) -> None:
    # `not (a <= b)` and not `a > b`: NaN must fail too
    if low is not None and not value >= low:
        raise InputError(f"{name} must be at least {low}, got {value!r}")
    if high is not None and not value <= high:
        raise InputError(f"{name} must be at most {high}, got {value!r}")
