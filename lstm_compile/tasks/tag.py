"""Task `tag`: one class for each step. Loads no torch."""

from lstm_compile.lazy import lazy
from lstm_compile.tasks.task import DIRECTIONS, ENCODER, SCALING, Task

TASK = Task(
    name="tag",
    data="sequences",
    per_step=True,
    has_classes=True,
    output="step_probabilities",
    losses=("cross-entropy",),
    loss=lazy("lstm_compile.tasks.losses:cross_entropy"),
    score=lazy("lstm_compile.tasks.metrics:score_classes"),
    row_score=lazy("lstm_compile.tasks.metrics:is_right"),
    headline="accuracy",
    rising=("accuracy", "macro_f1"),
    tuned=("loss", "accuracy", "macro_f1"),
    baselines=("majority class", "logistic regression on 5 steps"),
    token_baselines=("majority class", "frequencies by character"),
    settings={"training": {"label_smoothing": 0.0}},
    space={**ENCODER, **DIRECTIONS, **SCALING},
)
