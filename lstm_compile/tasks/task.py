"""What a task is: one record of everything that tells it from other tasks. Loads no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from lstm_compile.config import ModelConfig
    from lstm_compile.data.schema import Categories, Schema

Data = Literal["sequences", "series", "text"]
Function = Callable[..., Any]


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


def numbered_names(config: "ModelConfig") -> "Schema":
    """`feature_0`, and `class_0` or `target_0`, and so on."""
    from lstm_compile.data.schema import Schema, numbered

    features, categories = numbered("feature", config.input_size), numbered_categories(config)
    if config.traits.has_classes:
        classes = numbered("class", config.output_size)
        return Schema(features, classes, (), categories=categories)
    targets = numbered("target", config.output_size)
    return Schema(features, (), targets, categories=categories)


def numbered_categories(config: "ModelConfig") -> "Categories | None":
    """`category_0` and so on for the columns of categories; None if there are none."""
    from lstm_compile.data.schema import Categories

    if not config.category_sizes:
        return None
    return Categories(numbered_codes(config, config.category_sizes), config.has_other)


def numbered_codes(config: "ModelConfig", sizes: tuple[int, ...]) -> tuple[tuple[str, ...], ...]:
    """`category_0` and so on for columns with so many codes."""
    from lstm_compile.data.schema import numbered

    return tuple(numbered("category", size - config.has_other) for size in sizes)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as a value."""

    name: str  # what `--task` and the files of models call it
    data: Data  # what it learns from: `sequences` with labels, `series` of a table, or `text`
    per_step: bool = False  # whether every step has an answer of its own; else every row has one
    # whether answers are classes: logits in torch, probabilities in an exported file
    has_classes: bool = False
    has_target_scaler: bool = False  # whether the model scales its targets, and its answers back
    output: str  # what an exported file calls the answer
    rows: str = "sequences"  # what the rows of its data are called
    losses: tuple[str, ...]  # names that `--loss` takes, the default first
    quantile_losses: tuple[str, ...] = ()  # the same where the model answers with quantiles
    loss: Function  # from `losses.LossInput` to the scalar that training minimises
    # the answer, from what the head gives (scaled back); of methods of tensors alone, as it is part
    # of the exported graph. None leaves the values as they are
    finish: Callable[["Tensor"], "Tensor"] | None = None
    score: Function  # metrics by name, of `(prediction, y)`; of text of `TextScores`
    # of `(prediction, y)` one score a row (or step), whose mean decides; None for series and text
    row_score: Function | None = None
    # from means of row scores (any shape) to figures that grow as a model gets better; None takes
    # the means
    gain: Function | None = None
    headline: str  # the metric that decides which of two models is better
    rising: tuple[str, ...] = ()  # the metrics of which more is better
    # the validation figures that `tune` can go by, the default first; those whose unit depends on a
    # setting are left out
    tuned: tuple[str, ...]
    # of `sequences`, the names of what a model must beat, see `evaluation.baselines`
    baselines: tuple[str, ...] = ()
    token_baselines: tuple[str, ...] = ()  # the same where sequences are text
    # baselines that no other task has: by name, features and fit of `evaluation.baselines.Recipe`
    own_baselines: Mapping[str, tuple[Function, Function]] = field(default_factory=dict)
    # refuses an architecture that the task cannot have, with an InputError
    check: Callable[["ModelConfig"], None] = lambda config: None
    # names for a model whose data have none
    schema: Callable[["ModelConfig"], "Schema"] = numbered_names
    # defaults that differ from those of the dataclasses, by section and field
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    space: Space  # what `tune` tries

    @property
    def is_whole(self) -> bool:
        """Whether rows are whole sequences, each with its label or labels."""
        return self.data == "sequences"

    @property
    def is_series(self) -> bool:
        """Whether rows are windows of series, and answers their next steps."""
        return self.data == "series"

    @property
    def is_text(self) -> bool:
        """Whether it learns the next token of a text."""
        return self.data == "text"

    @property
    def has_features(self) -> bool:
        """Whether its data may be columns of numbers."""
        return not self.is_text

    @property
    def is_pooled(self) -> bool:
        """Whether the steps of a row become one vector."""
        return not self.per_step

    @property
    def reads_tokens(self) -> bool:
        """Whether its input may be text."""
        return self.is_text or self.has_classes

    @property
    def can_stream(self) -> bool:
        """Whether it can learn from files that are larger than memory."""
        return self.is_whole and self.is_pooled
