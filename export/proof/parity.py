"""`verify_onnx`: proof that a file and torch's backends give a model's answers everywhere."""

import hashlib
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lstm_compile.devices import cpu_threads
from lstm_compile.errors import InputError
from lstm_compile.export import names
from lstm_compile.export.proof.engines import (
    EVERYWHERE,
    RUNTIMES,
    Answer,
    Answers,
    answer_of,
    choose_runtimes,
    reference,
)
from lstm_compile.export.proof.inputs import (
    ParityCase,
    all_cases,
    draw,
    ragged_cases,
    target_statistics,
)
from lstm_compile.export.proof.isolated import NoAnswerError
from lstm_compile.export.proof.onnx_file import OnnxFile, read_onnx
from lstm_compile.export.proof.parity_report import Comparison, ParityReport
from lstm_compile.export.proof.runtimes import RUNTIMES as LOADERS
from lstm_compile.export.runtime import Inputs
from lstm_compile.model.checkpoint import Model, load_model

PACKAGES = tuple(
    dict.fromkeys(
        ["torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy"]
        + [runtime.package for runtime in LOADERS.values()]
    )
)
LONG = 512
INT8_TOLERANCE = 0.25  # rows of noise lie near the borders of classes: 0.05 was measured there


def verify_onnx(
    model: Model | str | Path,
    onnx_path: str | Path,
    runtimes: Sequence[str] | None = None,
    everywhere: bool = False,
) -> ParityReport:
    """Compare a file, and torch's own backends, with the model in float64.

    Args:
        model: the model, or the path of its run folder or safetensors file.
        onnx_path: the file.
        runtimes: some of `answers.KNOWN`; those of `answers.RUNTIMES` that can run here if None.
        everywhere: compare every installed runtime that loads files, on `cases.ragged_cases`.

    Returns:
        the largest difference of each runtime in each case, in units of `answer_units`; a file of
        another model is a report that did not pass.

    Raises:
        InputError: the model or the file cannot be read, or the file's interface is another than
            the model's.
    """
    model = model if isinstance(model, Model) else load_model(model)
    file = read_onnx(onnx_path)
    if names.STATE_KEY in file.metadata:
        from lstm_compile.export.proof.streaming_parity import verify_streaming

        return verify_streaming(model, onnx_path, runtimes, everywhere)
    _check_interface(model, file, onnx_path)
    among = EVERYWHERE if everywhere else RUNTIMES
    chosen, skipped = choose_runtimes(runtimes, among, file.metadata.get("runtimes", "any"))
    cases = ragged_cases() if everywhere else all_cases()
    with cpu_threads(1):  # on a busy machine more wait for each other at every step
        rows = tuple(_rows(model, file, chosen, cases))
    return ParityReport(
        rows,
        hashlib.sha256(file.data).hexdigest(),
        versions(),
        device(),
        skipped,
    )


def measured_error(model: Model, data: bytes) -> float:
    """The largest difference of a file's answers in ONNX Runtime, in units of `answer_units`."""
    oracle, rows = reference(model), []
    with cpu_threads(1), answer_of("onnxruntime", model, data) as answer:
        for case in all_cases():
            inputs = draw(case, model)
            expected = oracle(inputs)
            units = answer_units(model, expected)
            rows.append(_compare("", answer, case, inputs, expected, units, INT8_TOLERANCE))
    return max(row.difference for row in rows)


def tolerance(time: int) -> float:
    """The largest difference that passes: errors add up over very long sequences."""
    return 1e-4 if time > LONG else 1e-5


def answer_units(model: Model, expected: Answers) -> npt.NDArray[np.float64]:
    """What differences are measured in, of the shape of `expected` (rows, ...) or wider.

    For classes and numbers what a difference of 1 in every pooled number can do to each output: 1
    for probabilities, which cannot move further. For values the sum of the head's weights, at
    least 1, times the target scaler's scale: the answer is as exact as the states it is made of.
    For forecasts the deviation of each target in training; where forecasts are powers of what the
    network gives, at least each forecast's own size.
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


def _forecast_units(model: Model, expected: Answers) -> npt.NDArray[np.float64]:
    config = model.config
    deviation = np.abs(np.array(target_statistics(model)[1], np.float64))
    units = np.broadcast_to(
        deviation[:, None] if config.quantiles else deviation, expected.shape
    ).copy()
    return np.maximum(units, np.abs(expected)) if config.log1p else units


def rounding(expected: Answers) -> Answers:
    """What storing a value in float32, far from zero as it may be, can cost: two roundings."""
    spacing = np.spacing(np.abs(expected).astype(np.float32))
    return 2 * np.asarray(spacing, np.float64)


def _rows(
    model: Model, file: OnnxFile, runtimes: Sequence[str], cases: Sequence[ParityCase]
) -> Iterator[Comparison]:
    yield metadata_row(model, file)
    oracle = reference(model)
    inputs = [(case, draw(case, model)) for case in cases]
    expected = [oracle(drawn) for _, drawn in inputs]
    for runtime in runtimes:
        with ExitStack() as stack:
            try:
                answer = stack.enter_context(answer_of(runtime, model, file.data))
            except Exception as error:  # a runtime's own refusal, of whatever class, is a finding
                yield Comparison(runtime, "load", tolerance(1), float("nan"), one_line(error))
                continue
            for (case, drawn), values in zip(inputs, expected, strict=True):
                units = answer_units(model, values)
                allowed = _allowed(file, runtime, case.time)
                yield _compare(runtime, answer, case, drawn, values, units, allowed)


def _allowed(file: OnnxFile, runtime: str, time: int) -> float:
    is_int8 = names.QUANTIZATION_KEY in file.metadata and runtime in EVERYWHERE
    return INT8_TOLERANCE if is_int8 else tolerance(time)


def _compare(
    runtime: str,
    answer: Answer,
    case: ParityCase,
    inputs: Inputs,
    expected: Answers,
    units: Any,
    allowed: float,
) -> Comparison:
    try:
        found = answer(inputs)
    except Exception as error:  # as above
        return Comparison(runtime, str(case), allowed, float("nan"), one_line(error))
    if found.shape != expected.shape:
        problem = f"shape {found.shape}, expected {expected.shape}"
        return Comparison(runtime, str(case), allowed, float("nan"), problem)
    difference = np.maximum(np.abs(found - expected) - rounding(expected), 0.0) / units
    return Comparison(runtime, str(case), allowed, float(difference.max()))


def metadata_row(model: Model, file: OnnxFile) -> Comparison:
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


def _check_interface(model: Model, file: OnnxFile, path: str | Path) -> None:
    config, found = model.config, file.interface
    for what, expected, value in (
        ("task", config.task, found.task),
        ("features", config.input_size, found.inputs.get(names.INPUT, ("", [1]))[1][-1]),
        ("outputs", names.output_of(config)[1][-1], found.output[-1]),
        ("inputs", names.inputs_of(config), found.inputs),
        ("output", names.output_of(config)[1], found.output),
    ):
        if expected != value:
            raise InputError(
                f"{path}: {what} is {value}, the model's is {expected}; "
                "name the file of this model or export it again"
            )


def versions() -> dict[str, str]:
    """Of Python and of every package that takes part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device() -> str:
    """What runtimes run on, in words."""
    processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if not torch.cuda.is_available():
        return processor
    return f"{processor}, {torch.cuda.get_device_name()}"


def one_line(error: Exception) -> str:
    """The class and the first line of an error."""
    first = str(error).strip().split("\n")[0]
    return (first if isinstance(error, NoAnswerError) else f"{type(error).__name__}: {first}")[:300]
