"""The inputs on which runtimes are compared: sizes, lengths and values in the user's own units."""

from typing import Literal, NamedTuple, get_args

import numpy as np

from lstm_compile.checkpoint import Model
from lstm_compile.export.runtime import Floats, Lengths

Kind = Literal["full", "mixed", "zero", "one"]

BATCHES = (1, 3, 32)
TIMES = (1, 2, 17, 61)
SEED = 20_240_229


class Case(NamedTuple):
    """One input: `full` rows all last `time` steps, `mixed` rows 0 to `time`, others 0 or 1."""

    batch: int
    time: int
    kind: Kind

    def __str__(self) -> str:
        return f"B={self.batch} T={self.time} {self.kind}"


def all_cases() -> list[Case]:
    """Every batch and time with full and mixed lengths, every batch with lengths 0 and 1."""
    grid = [
        Case(batch, time, kind) for kind in ("full", "mixed") for batch in BATCHES for time in TIMES
    ]
    return grid + [Case(batch, 17, kind) for kind in ("zero", "one") for batch in BATCHES]


def draw(case: Case, model: Model, padding: float = float("nan")) -> tuple[Floats, Lengths]:
    """`x` (batch, time, features) with `padding` behind each row's end, and `lengths` (batch,).

    Values are what training saw as far as the scaler knows: of zero mean and unit deviation after
    `standard` scaling, in [0, 1] after `minmax`. The same case and sizes give the same values.
    """
    seed = (SEED, case.batch, case.time, get_args(Kind).index(case.kind))
    random = np.random.default_rng(seed)
    shape = (case.batch, case.time, model.config.input_size)
    if model.config.scaling == "minmax":
        scaled = random.random(shape)
    else:
        scaled = random.standard_normal(shape)
    scale, shift = (
        model.params[f"scaler.{part}"].double().cpu().numpy() for part in ("scale", "shift")
    )
    x = scaled if model.config.scaling == "none" else scaled * scale + shift
    lengths = _lengths(case, random)
    x[np.arange(case.time) >= lengths[:, None]] = padding
    return x.astype(np.float32), lengths


def _lengths(case: Case, random: np.random.Generator) -> Lengths:
    if case.kind != "mixed":
        return np.full(case.batch, {"full": case.time, "zero": 0, "one": 1}[case.kind], np.int64)
    lengths = random.integers(0, case.time + 1, case.batch, dtype=np.int64)
    lengths[0] = case.time if case.batch > 1 else (case.time + 1) // 2
    lengths[1:2] = 0
    return lengths
