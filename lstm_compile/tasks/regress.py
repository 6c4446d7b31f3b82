"""Task `regress`: numbers for each sequence. Loads no torch."""

from lstm_compile.lazy import lazy
from lstm_compile.tasks.task import DIRECTIONS, ENCODER, POOLING, SCALING, Task

TASK = Task(
    name="regress",
    data="sequences",
    has_target_scaler=True,
    output="value",
    losses=("mse", "mae", "huber"),
    loss=lazy("lstm_compile.tasks.losses:scaled_error"),
    score=lazy("lstm_compile.tasks.metrics:score_targets"),
    row_score=lazy("lstm_compile.tasks.metrics:squared_error"),
    gain=lazy("lstm_compile.tasks.metrics:minus_root"),
    headline="rmse",
    rising=("r2",),
    tuned=("rmse", "mae", "r2", "loss"),
    baselines=("mean", "ridge on summaries"),
    space={**ENCODER, **DIRECTIONS, **POOLING, **SCALING},
)
