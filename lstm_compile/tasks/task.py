"""What a task is: one record of everything that tells it from other tasks. Loads no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from lstm_compile.config import ModelConfig
    from lstm_compile.data.schema import Schema

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


def lazy(place: str) -> Function:
    """The function at `module:name`; its module, and torch, is imported at the first call."""

    def function(*args: Any, **named: Any) -> Any:
        module, _, name = place.partition(":")
        return getattr(import_module(module), name)(*args, **named)

    return function


def accept(config: "ModelConfig") -> None:
    """Accept every architecture."""


def numbered_names(config: "ModelConfig") -> "Schema":
    """`feature_0`, and `class_0` or `target_0`, and so on."""
    from lstm_compile.data.schema import Schema, numbered

    features = numbered("feature", config.input_size)
    if config.traits.has_classes:
        return Schema(features, numbered("class", config.output_size), ())
    return Schema(features, (), numbered("target", config.output_size))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task as a value.

    Attributes:
        name: what `--task` and the files of models call it.
        data: what it learns from: `sequences` with labels, `series` of a table, or `text`.
        per_step: whether every step has an answer of its own; else every row has one.
        has_classes: whether answers are classes: logits in torch, probabilities in an exported
            file.
        has_target_scaler: whether the model scales its targets, and its answers back.
        output: what an exported file calls the answer.
        rows: what the rows of its data are called.
        losses: names that `--loss` takes, the default first.
        quantile_losses: the same where the model answers with quantiles.
        loss: from `losses.LossInput` to the scalar that training minimises.
        finish: the answer, from what the head gives (scaled back); of methods of tensors alone, as
            it is part of the exported graph. None leaves the values as they are.
        score: metrics by name, of `(prediction, y)`; of text of `TextScores`.
        row_score: of `(prediction, y)` one score a row (or step), whose mean decides; None for
            series and text.
        gain: from means of row scores (any shape) to figures that grow as a model gets better;
            None takes the means.
        headline: the metric that decides which of two models is better.
        rising: the metrics of which more is better.
        tuned: the validation figures that `tune` goes by, the default first; none in units that a
            setting changes.
        baselines: of `sequences`, the names of what a model must beat, see `evaluation.features`.
        token_baselines: the same where sequences are text.
        check: refuses an architecture that the task cannot have, with an InputError.
        schema: names for a model whose data have none.
        settings: defaults that differ from those of the dataclasses, by section and field.
        space: what `tune` tries.
    """

    name: str
    data: Data
    per_step: bool = False
    has_classes: bool = False
    has_target_scaler: bool = False
    output: str
    rows: str = "sequences"
    losses: tuple[str, ...]
    quantile_losses: tuple[str, ...] = ()
    loss: Function
    finish: Callable[["Tensor"], "Tensor"] | None = None
    score: Function
    row_score: Function | None = None
    gain: Function | None = None
    headline: str
    rising: tuple[str, ...] = ()
    tuned: tuple[str, ...]
    baselines: tuple[str, ...] = ()
    token_baselines: tuple[str, ...] = ()
    check: Callable[["ModelConfig"], None] = accept
    schema: Callable[["ModelConfig"], "Schema"] = numbered_names
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    space: Space

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
