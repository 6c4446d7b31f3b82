"""How an engine's answers are compared with those of the float64 model."""

import hashlib
import platform
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lstm_compile.devices import package_versions
from lstm_compile.errors import headline
from lstm_compile.export import names
from lstm_compile.export.proof.engines import Answers, Array, Engine, engine_of
from lstm_compile.export.proof.inputs import target_statistics
from lstm_compile.export.proof.isolated import NoAnswerError
from lstm_compile.export.proof.onnx_file import OnnxFile
from lstm_compile.export.proof.parity_report import Comparison, ParityReport
from lstm_compile.export.proof.runtimes import RUNTIMES
from lstm_compile.export.runtime import Inputs
from lstm_compile.model.checkpoint import Model

PACKAGES = tuple(
    dict.fromkeys(
        ["torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy"]
        + [runtime.package for runtime in RUNTIMES.values()]
    )
)
LONG = 512


class Question(NamedTuple):
    """Inputs, and what an engine must answer to them."""

    case: str  # such as `B=3 T=17 mixed`
    inputs: Inputs
    expected: Answers
    tolerance: float  # in units of `answer_units`; states are compared as they are


def compare_engines(
    model: Model,
    file: OnnxFile,
    choice: tuple[list[str], dict[str, str]],
    compare_one: Callable[[str, Engine], Iterable[Comparison]],
) -> ParityReport:
    """Compare the metadata of a file with the model, and then each engine by `compare_one`.

    Args:
        model: the model.
        file: its file.
        choice: names of the engines, and why others are skipped, as `choose_runtimes` gives them.
        compare_one: makes the rows of one engine, from its name and the engine.
    """
    engines, skipped = choice
    rows = [compare_metadata(model, file)]
    for name in engines:
        with ExitStack() as stack:
            try:
                engine = stack.enter_context(engine_of(name, model, file))
            except Exception as error:  # a runtime may raise any class; its refusal is a result
                rows.append(Comparison(name, "load", tolerance(1), float("nan"), _told(error)))
                continue
            rows += compare_one(name, engine)
    digest = hashlib.sha256(file.data).hexdigest()
    return ParityReport(tuple(rows), digest, package_versions(*PACKAGES), device(), skipped)


def compare(
    name: str, engine: Engine, question: Question, model: Model
) -> tuple[Comparison, Answers]:
    """Ask an engine one question; there are no answers where it raises."""
    row = Comparison(name, question.case, question.tolerance, float("nan"))
    try:
        answers = engine(question.inputs)
    except Exception as error:  # as above
        return replace(row, error=_told(error)), ()
    found, wanted = ([part.shape for part in parts] for parts in (answers, question.expected))
    if found != wanted:
        return replace(row, error=f"shapes {found}, expected {wanted}"), ()
    units = (answer_units(model, question.expected[0]), 1.0, 1.0)
    differences = [
        (np.maximum(np.abs(answer - expected) - rounding(expected), 0.0) / unit).max()
        for answer, expected, unit in zip(answers, question.expected, units, strict=False)
    ]
    return replace(row, difference=float(np.max(differences))), answers  # NaN stays NaN


def tolerance(time: int) -> float:
    """The largest difference that passes: errors add up over very long sequences."""
    return 1e-4 if time > LONG else 1e-5


def answer_units(model: Model, expected: Array) -> npt.NDArray[np.float64]:
    """The unit in which each output is compared, of the shape of `expected` (rows, ...) or wider.

    It is what a difference of 1 in every pooled number can do to the output. For probabilities it
    is 1: they cannot move further. For values it is the sum of the head's weights, at least 1,
    times the scale of the target scaler: an answer is as exact as the states behind it. For
    forecasts it is the deviation of each target in training, and for forecasts of logarithms at
    least the size of each forecast itself.
    """
    if model.config.traits.is_series:
        return _forecast_units(model, expected)
    if model.config.traits.has_classes:
        return np.ones(model.config.output_size)
    head = model.params["embedding.weight" if model.config.tie else "head.weight"]
    units = head.detach().abs().sum(1).clamp(min=1.0)
    if model.config.traits.has_target_scaler and model.config.target_scaling != "none":
        units = units * model.params["target_scaler.scale"].abs()
    return np.asarray(units.cpu(), np.float64)


def _forecast_units(model: Model, expected: Array) -> npt.NDArray[np.float64]:
    config = model.config
    deviation = np.abs(np.array(target_statistics(model)[1], np.float64))
    deviation = deviation[:, None] if config.quantiles else deviation
    units = np.broadcast_to(deviation, expected.shape).copy()
    return np.maximum(units, np.abs(expected)) if config.log1p else units


def rounding(expected: Array) -> Array:
    """What it can cost to store a value in float32: two roundings."""
    spacing = np.spacing(np.abs(expected).astype(np.float32))
    return 2 * np.asarray(spacing, np.float64)


def compare_metadata(model: Model, file: OnnxFile) -> Comparison:
    """Names of classes and features can be exchanged while every number agrees."""
    expected = {
        "format": names.FORMAT,
        "interface_version": names.INTERFACE_VERSION,
        "config": model.config.to_json(),
        "schema": model.schema.to_json(),
    }
    differing = [key for key, value in expected.items() if file.metadata.get(key) != value]
    problem = f"not the model's: {', '.join(differing)}" if differing else ""
    return Comparison("metadata", "names", tolerance(1), float(len(differing)), problem)


def device() -> str:
    """What the engines run on, in words."""
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if not torch.cuda.is_available():
        return processor
    return f"{processor}, {torch.cuda.get_device_name()}"


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, NoAnswerError) else headline(error)
