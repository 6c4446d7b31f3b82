"""What `tune` tries: ranges and choices of settings. Loads no torch."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `log` spreads them evenly over the ratios."""

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]


Space = dict[str, Range | OneOf]  # by field of a config

ENCODER: Space = {
    "hidden_size": Range(16, 128, log=True, whole=True),
    "num_layers": Range(1, 3, whole=True),
    "dropout": Range(0.0, 0.5),
    "head_dropout": Range(0.0, 0.5),
    "learning_rate": Range(5e-4, 2e-2, log=True),
    "batch_size": OneOf((16, 32, 64)),
}
DIRECTIONS: Space = {"bidirectional": OneOf((True, False))}
POOLING: Space = {"pooling": OneOf(("last", "mean", "max", "attention"))}
SCALING: Space = {"scaling": OneOf(("standard", "minmax"))}
