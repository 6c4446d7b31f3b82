"""Task `classify`: one class for each sequence. Loads no torch."""

from lstm_compile.lazy import lazy
from lstm_compile.tasks.task import DIRECTIONS, ENCODER, POOLING, SCALING, Range, Task

TASK = Task(
    name="classify",
    data="sequences",
    has_classes=True,
    output="probabilities",
    losses=("cross-entropy",),
    loss=lazy("lstm_compile.tasks.losses:cross_entropy"),
    score=lazy("lstm_compile.tasks.metrics:score_classes"),
    row_score=lazy("lstm_compile.tasks.metrics:is_right"),
    headline="accuracy",
    rising=("accuracy", "macro_f1"),
    tuned=("loss", "accuracy", "macro_f1"),
    baselines=(
        "majority class",
        "logistic regression on summaries",
        "logistic regression on 24 frames",
    ),
    token_baselines=("majority class", "logistic regression on character shares"),
    space={**ENCODER, **DIRECTIONS, **POOLING, **SCALING, "label_smoothing": Range(0.0, 0.2)},
)
