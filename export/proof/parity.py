"""Proof that a file and torch's backends give a model's answers: sequence and streaming files."""

import hashlib
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch

from lstm_compile.devices import cpu_threads, package_versions
from lstm_compile.errors import InputError, headline
from lstm_compile.export import names
from lstm_compile.export.proof import engines
from lstm_compile.export.proof.engines import Answers, Array, Engine
from lstm_compile.export.proof.inputs import (
    STEPS,
    Feeding,
    ParityCase,
    all_cases,
    feedings,
    ragged_cases,
    random_inputs,
    random_stream,
    target_statistics,
)
from lstm_compile.export.proof.known_faults import unloadable
from lstm_compile.export.proof.onnx_file import OnnxFile, read_onnx
from lstm_compile.export.proof.parity_report import Comparison, ParityReport
from lstm_compile.export.proof.runtimes import RUNTIMES, NoAnswerError
from lstm_compile.export.runtime import Inputs
from lstm_compile.model.checkpoint import Model, load_model

OURS = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")
PACKAGES = dict.fromkeys((*OURS, *(runtime.package for runtime in RUNTIMES.values())))
LONG = 512
INT8_TOLERANCE = 0.25  # random rows lie near the borders of classes: 0.05 was measured there
STREAMING_TOLERANCE = 1e-5
EXACT = ("one step", "whole")  # ways to cut that are compared with the reference


class Question(NamedTuple):
    """Inputs, and what an engine must answer to them."""

    case: str  # such as `B=3 T=17 mixed`
    inputs: Inputs
    expected: Answers
    tolerance: float  # in units of `answer_units`; states are compared as they are
    steps: int = 1  # a state may be rounded at each of them


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
        runtimes: some of `engines.KNOWN`; None means those of `engines.AT_EXPORT`, or
            `AT_STREAMING_EXPORT`, that can run here.
        everywhere: compare every installed runtime that loads files, on `inputs.ragged_cases`.

    Returns:
        The largest difference of each engine in each case, in units of `answer_units`. The report
        on the file of another model is one that did not pass.

    Raises:
        InputError: the model or the file cannot be read, or the interface of the file does not fit
            the model.
    """
    model = model if isinstance(model, Model) else load_model(model)
    file = read_onnx(onnx_path)
    if names.STATE_KEY in file.metadata:
        return _verify_streaming(model, file, runtimes, everywhere)
    _check_interface(model, file, onnx_path)
    among = engines.EVERYWHERE if everywhere else engines.AT_EXPORT
    choice = engines.choose_runtimes(runtimes, among, file.metadata.get("runtimes", "any"))
    rounded = engines.EVERYWHERE if names.QUANTIZATION_KEY in file.metadata else ()

    def compare_one(name: str, engine: Engine) -> Iterator[Comparison]:
        for question in questions:
            allowed = INT8_TOLERANCE if name in rounded else question.tolerance
            yield compare(name, engine, question._replace(tolerance=allowed), model)[0]

    with cpu_threads(1):  # on a busy machine several threads wait for each other at every step
        questions = _questions(model, ragged_cases() if everywhere else all_cases())
        return compare_engines(model, file, choice, compare_one)


def measured_error(model: Model, data: bytes) -> float:
    """The largest difference of a file's answers in ONNX Runtime, in units of `answer_units`."""
    engine = engines.onnxruntime_engine(data)
    with cpu_threads(1):
        rows = [compare("", engine, each, model)[0] for each in _questions(model, all_cases())]
    return max(row.difference for row in rows)


def _questions(model: Model, cases: Sequence[ParityCase]) -> list[Question]:
    exact, asked = engines.reference(model), [(case, random_inputs(case, model)) for case in cases]
    return [Question(str(c), inputs, exact(inputs), tolerance(c.time)) for c, inputs in asked]


def _check_interface(model: Model, file: OnnxFile, path: str | Path) -> None:
    config, found = model.config, file.interface
    output, shape = names.output_of(config)
    found_shape = next(iter(found.outputs.values()))[1]
    for what, expected, value in (
        ("task", config.task, found.task),
        ("features", config.input_size, found.inputs.get(names.INPUT, ("", [1]))[1][-1]),
        ("outputs", shape[-1], found_shape[-1]),
        ("inputs", names.inputs_of(config), found.inputs),
        ("output", {output: shape}, {output: found_shape}),
    ):
        if expected != value:
            raise InputError(
                f"{path}: {what} is {value}, the model's is {expected}; "
                "name the file of this model or export it again"
            )


def _verify_streaming(
    model: Model, file: OnnxFile, runtimes: Sequence[str] | None, everywhere: bool
) -> ParityReport:
    """`verify_onnx` of a streaming file, whose states are compared too.

    1,000 steps in one call, and a single step, are compared with the float64 model, within
    `tolerance`. The same steps one by one and in uneven chunks are compared with what the same
    engine answered to all of them in one call, within 1e-5; for engines that only `everywhere`
    compares `tolerance` holds there too. Each is done from a zero and from a random state. A file
    that takes one step a call is compared with the float64 model.

    In a chaotic model any rounding grows until it shows; there each call begins from the state of
    the float64 model, and the answers and states of every call are compared within 1e-5.
    """
    among = engines.EVERYWHERE if everywhere else engines.AT_STREAMING_EXPORT
    choice = engines.choose_runtimes(runtimes, among)
    one_step = next(iter(file.interface.inputs.values()))[1][1] == 1
    with cpu_threads(1):
        exact, ways = engines.reference(model), feedings(one_step)
        asked = [(way, random_stream(model, way)) for way in ways]
        questions = [(way, inputs, exact(inputs)) for way, inputs in asked]
        if _is_chaotic(model, questions):
            return compare_engines(model, file, choice, _led_comparison(model, exact, one_step))
        return compare_engines(model, file, choice, partial(_compare_feedings, model, questions))


def _is_chaotic(model: Model, questions: Sequence[tuple[Feeding, Inputs, Answers]]) -> bool:
    """Whether the model's own loop in float32 nears the tolerance over all steps."""
    single, limit = engines.torch_engine(model, "reference"), tolerance(STEPS) / 2
    asked = [Question(str(way), inputs, exact, limit) for way, inputs, exact in questions]
    rows = [compare("", single, each, model)[0] for each in asked]
    return not all(row.passed for row in rows)


def _led_comparison(
    model: Model, exact: Engine, one_step: bool
) -> Callable[[str, Engine], Iterator[Comparison]]:
    """Compare an engine from the exact states before each call."""
    questions = []
    for way in feedings(one_step, led=True):
        inputs = random_stream(model, way)
        calls = list(_calls(model, exact, way.sizes, inputs))
        questions.append((way, [call for call, _ in calls], _stacked(a for _, a in calls)))

    def compare_one(name: str, engine: Engine) -> Iterator[Comparison]:
        for way, calls, expected in questions:
            steps = way.sizes[0]
            question = Question(str(way), {}, expected, tolerance(steps), steps)
            answer = partial(_answers_to, engine, calls)
            yield compare(name, answer, question, model)[0]

    return compare_one


def _answers_to(engine: Engine, calls: Sequence[Inputs], _: Inputs) -> Answers:
    return _stacked(engine(call) for call in calls)


def _stacked(answers: Iterable[Answers]) -> Answers:
    """Each part of the answers to several calls, stacked."""
    return tuple(np.stack(parts) for parts in zip(*answers, strict=True))


def _compare_feedings(
    model: Model, questions: Sequence[tuple[Feeding, Inputs, Answers]], name: str, engine: Engine
) -> Iterator[Comparison]:
    whole: dict[str, Answers] = {}  # answers to all steps in one call, by the state before them
    for feeding, inputs, exact in questions:
        expected = exact if feeding.cut in EXACT else whole.get(feeding.state) or exact
        # runtimes that only --runtimes compares may approximate tanh and sigmoid
        is_close = expected is not exact and name in engines.AT_STREAMING_EXPORT
        allowed = STREAMING_TOLERANCE if is_close else tolerance(sum(feeding.sizes))
        fed = partial(_feed, model, engine, feeding.sizes)
        question = Question(str(feeding), inputs, expected, allowed)
        row, answers = compare(name, fed, question, model)
        if feeding.cut == "whole":
            whole[feeding.state] = answers
        yield row


def _feed(model: Model, engine: Engine, sizes: Sequence[int], inputs: Inputs) -> Answers:
    """The answers to all steps, or the last answer, and the last state."""
    answers = [each for _, each in _calls(model, engine, sizes, inputs)]
    steps, (_, *state) = [answer for answer, *_ in answers], answers[-1]
    return np.concatenate(steps, 1) if model.config.traits.per_step else steps[-1], *state


def _calls(
    model: Model, engine: Engine, sizes: Sequence[int], inputs: Inputs
) -> Iterator[tuple[Inputs, Answers]]:
    """The inputs of each call and the answers to it, which hold the state before the next."""
    first, start, call = next(iter(inputs)), 0, dict(inputs)
    for size in sizes:
        call[first] = inputs[first][:, start : start + size]
        answers = engine(call)
        yield dict(call), answers
        state = (part.astype(np.float32) for part in answers[1:])
        call |= dict(zip(model.config.state_parts, state, strict=True))
        start += size


def compare_engines(
    model: Model,
    file: OnnxFile,
    choice: tuple[list[str], dict[str, str]],
    compare_one: Callable[[str, Engine], Iterable[Comparison]],
) -> ParityReport:
    """Compare the metadata of a file with the model, and then each engine by `compare_one`.

    `choice` is as `choose_runtimes` gives it; `compare_one` gets an engine's name and the engine.
    """
    chosen, skipped = choice
    rows, skipped = [compare_metadata(model, file)], dict(skipped)
    limits = unloadable(onnx.load_from_string(file.data).graph)
    for name in chosen:
        with ExitStack() as stack:
            try:
                engine = stack.enter_context(engines.engine_of(name, model, file))
            except Exception as error:  # a runtime may raise any class; its refusal is a result
                if name in limits:
                    skipped[name] = f"known limit: {limits[name]}"
                    continue
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
    units = (answer_units(model, question.expected[0]), *[1.0] * len(model.config.state_parts))
    roundings = 1, *[question.steps] * len(model.config.state_parts)
    differences = [
        (np.maximum(np.abs(answer - expected) - count * rounding(expected), 0.0) / unit).max()
        for answer, expected, unit, count in zip(
            answers, question.expected, units, roundings, strict=False
        )
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
    return 2 * np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)


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
    cuda = torch.cuda.is_available()
    return f"{processor}, {torch.cuda.get_device_name()}" if cuda else processor


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, NoAnswerError) else headline(error)
