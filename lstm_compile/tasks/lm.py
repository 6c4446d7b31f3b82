"""Task `lm`: the next character of a text, at each step. Loads no torch."""

from typing import TYPE_CHECKING

from lstm_compile.errors import InputError
from lstm_compile.lazy import lazy
from lstm_compile.tasks.task import ENCODER, OneOf, Range, Task

if TYPE_CHECKING:
    from lstm_compile.config import ModelConfig
    from lstm_compile.data.schema import Schema


def check(config: "ModelConfig") -> None:
    """Refuse sizes that are not those of one vocabulary, and reading ahead."""
    if config.vocabulary_size != config.output_size:
        raise InputError(
            f"vocabulary_size must be output_size for task lm, got {config.vocabulary_size} and "
            f"{config.output_size}"
        )
    if config.bidirectional:
        raise InputError("task lm needs --no-bidirectional: reading ahead would reveal the answer")


def numbered_vocabulary(config: "ModelConfig") -> "Schema":
    """Characters from `!` on; bytes where there are as many."""
    from lstm_compile.data.schema import BYTES, Schema, Vocabulary

    size = config.vocabulary_size
    vocabulary = Vocabulary("byte")
    if size != BYTES:
        vocabulary = Vocabulary("char", tuple(chr(ord("!") + code) for code in range(size)))
    return Schema(("text",), (), (), vocabulary=vocabulary)


TASK = Task(
    name="lm",
    data="text",
    per_step=True,
    output="logits",
    rows="characters",
    losses=("cross-entropy",),
    loss=lazy("lstm_compile.tasks.losses:cross_entropy"),
    score=lazy("lstm_compile.tasks.metrics:text_metrics"),
    headline="bits_per_character",
    tuned=("loss",),
    check=check,
    schema=numbered_vocabulary,
    settings={
        "model": {
            "hidden_size": 256,
            "num_layers": 1,
            "bidirectional": False,
            "dropout": 0.0,
            "head_dropout": 0.3,
        },
        "training": {
            "epochs": 20,
            "batch_size": 16,
            "unroll": 64,
            "learning_rate": 4e-3,
            "label_smoothing": 0.0,
            "weight_decay": 0.01,
        },
    },
    space={
        **{name: ENCODER[name] for name in ("dropout", "head_dropout", "learning_rate")},
        "hidden_size": Range(64, 512, log=True, whole=True),
        "num_layers": Range(1, 2, whole=True),
        "embedding_size": OneOf((32, 64, 128)),
        "unroll": OneOf((64, 128, 256)),
    },
)
