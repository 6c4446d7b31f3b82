"""The inputs on which runtimes are compared: sizes, lengths and values in the user's own units."""

from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from lstm_compile.export import names
from lstm_compile.export.proof.engines import torch_engine
from lstm_compile.export.runtime import Inputs, Lengths
from lstm_compile.model.checkpoint import Model

Kind = Literal["full", "mixed", "zero", "one", "junk"]

BATCHES = (1, 3, 32)
TIMES = (1, 2, 17, 61)
SEED = 20_240_229
WARMING = 5  # steps before a random state
JUNK = 12_345.0
LARGEST = 10.0  # of the logarithm of a target; larger targets are not realistic

STEPS = 1000
STREAM_BATCH = 3
UNEVEN = (1, 2, 7, 40, 1, 130, 19)  # steps of each chunk, 200 in all, repeated
CUTS = {  # a single step shows the initial state, which a model may forget within 1,000 steps
    "one step": [1],
    "whole": [STEPS],
    "steps": [1] * STEPS,
    "chunks": list(UNEVEN) * (STEPS // sum(UNEVEN)),
}
LED_CUTS = {"steps": [1] * STEPS, "tens": [10] * (STEPS // 10)}


class ParityCase(NamedTuple):
    """The size of one input: `full` rows all have `time` steps, `mixed` rows 0 to `time`.

    Rows of `zero` and `one` have so many steps. The padding is NaN. `junk` is `mixed` with large
    numbers in the padding: they show in every answer that reads it.
    """

    batch: int
    time: int
    kind: Kind

    def __str__(self) -> str:
        return f"B={self.batch} T={self.time} {self.kind}"


class Feeding(NamedTuple):
    """How a file is fed: how the steps are cut, and the state before the first of them."""

    cut: str
    sizes: list[int]  # steps of each call
    state: str  # "zero" or "random"
    led: bool = False  # whether each call begins from the state of the model in float64

    def __str__(self) -> str:
        return f"{self.cut} {self.state}{' led' * self.led}"


def feedings(one_step: bool, led: bool = False) -> list[Feeding]:
    """Every way to feed a file; for a file that takes one step a call, those with single steps."""
    return [
        Feeding(cut, sizes, state, led)
        for state in ("zero", "random")
        for cut, sizes in (LED_CUTS if led else CUTS).items()
        if set(sizes) == {1} or not one_step
    ]


def all_cases() -> list[ParityCase]:
    """Each batch and time with full and mixed lengths, and each batch with lengths 0 and 1."""
    grid = [ParityCase(b, t, kind) for kind in ("full", "mixed") for b in BATCHES for t in TIMES]
    return grid + [ParityCase(batch, 17, kind) for kind in ("zero", "one") for batch in BATCHES]


def ragged_cases() -> list[ParityCase]:
    """Two batches and times with lengths below the time, 1 and 0; NaN or numbers in the padding."""
    grid = [ParityCase(b, t, kind) for b in (2, 5) for t in (7, 33) for kind in ("mixed", "junk")]
    return grid + [ParityCase(2, 7, kind) for kind in ("full", "one", "zero")]


def random_inputs(case: ParityCase, model: Model, padding: float = float("nan")) -> Inputs:
    """All inputs of the model's file, `x` with `padding` after each row's end.

    The values are like those of training, as far as the scaler tells: of zero mean and unit
    deviation after `standard` scaling, in [0, 1] after `minmax`. The same case and sizes give the
    same values.
    """
    config, shape, tokens = model.config, (case.batch, case.time), model.config.vocabulary_size
    padding = JUNK if case.kind == "junk" else padding
    random = np.random.default_rng((SEED, *shape, get_args(Kind).index(case.kind)))
    if tokens:
        first, x = names.TOKENS, random.integers(0, tokens, shape)
        padding = tokens + (SEED if np.isnan(padding) else int(padding))  # no known token
    else:
        first = names.INPUT
        x = _values(model, random, (*shape, config.input_size)).astype(np.float32)
    lengths = _lengths(case, random)
    more = _forecast_inputs(model, random, case) if config.traits.is_series else {}
    x[np.arange(case.time) >= lengths[:, None]] = padding
    return {first: x, names.LENGTHS: lengths, **more}


def random_stream(model: Model, feeding: Feeding) -> Inputs:
    """All inputs of the file, `x` with all its steps."""
    batch = STREAM_BATCH
    inputs = random_inputs(ParityCase(batch, sum(feeding.sizes), "full"), model)
    del inputs[names.LENGTHS]
    layers = model.config.num_layers * model.config.num_directions
    parts = model.config.state_parts.items()
    state: Inputs = {name: np.zeros((layers, batch, size), np.float32) for name, size in parts}
    if feeding.state == "random":  # one that a cell can reach: its parts may depend on each other
        earlier = random_inputs(ParityCase(batch, WARMING, "full"), model)
        del earlier[names.LENGTHS]
        _, *after = torch_engine(model, "reference")({**earlier, **state})
        state = dict(zip(state, after, strict=True))
    return inputs | state


def _values(model: Model, random: np.random.Generator, shape: tuple[int, ...]) -> Any:
    config, (scale, shift) = model.config, _scaler(model)
    uniform = config.scaling == "minmax"
    scaled = random.random(shape) if uniform else random.standard_normal(shape)
    x = scaled if config.scaling == "none" else scaled * scale + shift
    first = config.input_size - len(config.category_sizes)
    for column, size in enumerate(config.category_sizes, first):
        x[..., column] = random.integers(0, size, shape[:-1])
    if config.traits.is_series:
        x[..., : config.output_size] = _targets(model, random, x[..., : config.output_size])
    return x


def _targets(model: Model, random: np.random.Generator, z: Any) -> Any:
    """Targets whose logarithms, or differences to a season before, are `z`."""
    config, (mean, deviation) = model.config, target_statistics(model)
    if config.season and z.ndim == 3:
        noise = random.standard_normal((len(z), 1, z.shape[2]))
        level = np.array(mean) + np.array(deviation) * noise
        level = np.sign(level) * np.log1p(np.abs(level)) if config.log1p else level
        for start in range(0, z.shape[1], config.season):
            season = z[:, start : start + config.season]
            before = z[:, start - config.season : start] if start else level
            season += before[:, : season.shape[1]] if start else level
    return np.sign(z) * np.expm1(np.minimum(np.abs(z), LARGEST)) if config.log1p else z


def target_statistics(model: Model) -> tuple[list[float], list[float]]:
    """Mean and deviation of each target in training, from the model's file or its scaler."""
    size, training = model.config.output_size, model.training
    mean, deviation = training.get("target_mean"), training.get("target_deviation")
    scale, shift = (values[:size].tolist() for values in _scaler(model))
    return mean or shift, deviation or scale


def _scaler(model: Model) -> list[Any]:
    """Scale and shift of the input scaler, float64."""
    params = (model.params[f"scaler.{part}"] for part in ("scale", "shift"))
    return [value.double().cpu().numpy() for value in params]


def _forecast_inputs(model: Model, random: np.random.Generator, case: ParityCase) -> Inputs:
    config, levels = model.config, model.config.level_size
    future = _values(model, random, (case.batch, config.steps_out, config.input_size))
    location = _values(model, random, (case.batch, config.input_size))[:, :levels]
    codes = [random.integers(0, size, case.batch) for size in config.static_sizes]
    values: Inputs = {
        names.KNOWN_FUTURE: future[..., levels : levels + config.known_size].astype(np.float32),
        names.STATIC: np.stack(codes, 1) if codes else np.zeros((case.batch, 0), np.int64),
        names.SERIES_LOCATION: location.astype(np.float32),
        names.SERIES_SCALE: np.exp(random.standard_normal((case.batch, levels))).astype(np.float32)
        * model.params["scaler.scale"][:levels].float().cpu().numpy(),
    }
    return {name: values[name] for name in config.given}


def _lengths(case: ParityCase, random: np.random.Generator) -> Lengths:
    if case.kind not in ("mixed", "junk"):
        return np.full(case.batch, {"full": case.time, "zero": 0, "one": 1}[case.kind], np.int64)
    lengths = random.integers(0, case.time + 1, case.batch, dtype=np.int64)
    lengths[0] = case.time if case.batch > 1 else (case.time + 1) // 2
    lengths[1:2] = 0
    return lengths
