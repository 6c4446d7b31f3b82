"""Task `regress-steps`: numbers for each step, such as a remaining life. Loads no torch."""

from dataclasses import replace

from lstm_compile.lazy import lazy
from lstm_compile.tasks.regress import TASK as REGRESS
from lstm_compile.tasks.task import DIRECTIONS, ENCODER, SCALING

TASK = replace(
    REGRESS,
    name="regress-steps",
    per_step=True,
    output="step_value",
    loss=lazy("lstm_compile.tasks.losses:step_error"),
    baselines=("mean", "ridge on 5 steps"),
    space={**ENCODER, **DIRECTIONS, **SCALING},
)
