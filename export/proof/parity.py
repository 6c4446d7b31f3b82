"""Proof that a file and torch's backends give a model's answers: sequence and streaming files."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lstm_compile.devices import cpu_threads
from lstm_compile.errors import InputError
from lstm_compile.export import names
from lstm_compile.export.proof.compare import Question, compare, compare_engines, tolerance
from lstm_compile.export.proof.engines import (
    AT_EXPORT,
    EVERYWHERE,
    Answers,
    Engine,
    choose_runtimes,
    onnxruntime_engine,
    reference,
)
from lstm_compile.export.proof.inputs import (
    Feeding,
    ParityCase,
    all_cases,
    feedings,
    ragged_cases,
    random_inputs,
    random_stream,
)
from lstm_compile.export.proof.onnx_file import OnnxFile, read_onnx
from lstm_compile.export.proof.parity_report import Comparison, ParityReport
from lstm_compile.export.runtime import Inputs
from lstm_compile.model.checkpoint import Model, load_model

INT8_TOLERANCE = 0.25  # random rows lie near the borders of classes: 0.05 was measured there
STREAMING_TOLERANCE = 1e-5
AT_STREAMING_EXPORT = ("eager", "compiled", "onnxruntime", "openvino")
EXACT = ("one step", "whole")  # ways to cut that are compared with the reference


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
        runtimes: some of `engines.KNOWN`; None means those of `engines.AT_EXPORT` that can run
            here.
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
        return verify_streaming(model, onnx_path, runtimes, everywhere)
    _check_interface(model, file, onnx_path)
    among, cases = (EVERYWHERE, ragged_cases()) if everywhere else (AT_EXPORT, all_cases())
    choice = choose_runtimes(runtimes, among, file.metadata.get("runtimes", "any"))
    is_int8 = names.QUANTIZATION_KEY in file.metadata

    def compare_one(name: str, engine: Engine) -> Iterator[Comparison]:
        for question in questions:
            allowed = INT8_TOLERANCE if is_int8 and name in EVERYWHERE else question.tolerance
            yield compare(name, engine, question._replace(tolerance=allowed), model)[0]

    with cpu_threads(1):  # on a busy machine several threads wait for each other at every step
        questions = _questions(model, cases)
        return compare_engines(model, file, choice, compare_one)


def measured_error(model: Model, data: bytes) -> float:
    """The largest difference of a file's answers in ONNX Runtime, in units of `answer_units`."""
    engine = onnxruntime_engine(data)
    with cpu_threads(1):
        rows = [compare("", engine, each, model)[0] for each in _questions(model, all_cases())]
    return max(row.difference for row in rows)


def _questions(model: Model, cases: Sequence[ParityCase]) -> list[Question]:
    exact, asked = reference(model), [(case, random_inputs(case, model)) for case in cases]
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


def verify_streaming(
    model: Model | str | Path,
    path: str | Path,
    runtimes: Sequence[str] | None = None,
    everywhere: bool = False,
) -> ParityReport:
    """Compare a streaming file, and torch's own backends, with the model in float64.

    1,000 steps in one call, and a single step, are compared with the float64 model, within
    `tolerance`. The same steps one by one and in uneven chunks are compared with what the same
    engine answered to all of them in one call, within 1e-5; for engines that only `everywhere`
    compares `tolerance` holds there too. Each is done from a zero and from a random state. A file
    that takes one step a call is compared with the float64 model.

    Args:
        model: the model, or the path of its run folder or safetensors file.
        path: the file.
        runtimes: some of `AT_STREAMING_EXPORT`; None means all that can run here.
        everywhere: compare every installed runtime that loads files.

    Returns:
        The largest difference of answers and states. The report on the file of another model is
        one that did not pass.

    Raises:
        InputError: the model or the file cannot be read, or the file does not stream.
    """
    model = model if isinstance(model, Model) else load_model(model)
    file = read_onnx(path)
    if names.STATE_KEY not in file.metadata:
        raise InputError(f"{path}: is no streaming file; write one with --streaming")
    choice = choose_runtimes(runtimes, EVERYWHERE if everywhere else AT_STREAMING_EXPORT)
    one_step = next(iter(file.interface.inputs.values()))[1][1] == 1
    with cpu_threads(1):
        exact, ways = reference(model), feedings(one_step)
        asked = [(way, random_stream(model, way)) for way in ways]
        questions = [(way, inputs, exact(inputs)) for way, inputs in asked]
        return compare_engines(model, file, choice, partial(_compare_feedings, model, questions))


def _compare_feedings(
    model: Model, questions: Sequence[tuple[Feeding, Inputs, Answers]], name: str, engine: Engine
) -> Iterator[Comparison]:
    whole: dict[str, Answers] = {}  # answers to all steps in one call, by the state before them
    for feeding, inputs, exact in questions:
        expected = exact if feeding.cut in EXACT else whole.get(feeding.state) or exact
        # runtimes that only --runtimes compares may approximate tanh and sigmoid
        is_close = expected is not exact and name in AT_STREAMING_EXPORT
        allowed = STREAMING_TOLERANCE if is_close else tolerance(sum(feeding.sizes))
        fed = partial(_feed, model, engine, feeding.sizes)
        question = Question(str(feeding), inputs, expected, allowed)
        row, answers = compare(name, fed, question, model)
        if feeding.cut == "whole":
            whole[feeding.state] = answers
        yield row


def _feed(model: Model, engine: Engine, sizes: Sequence[int], inputs: Inputs) -> Answers:
    """The answers to all steps, or the last answer, and the last state."""
    first, start, answers = next(iter(inputs)), 0, []
    call = dict(inputs)
    for size in sizes:
        call[first] = inputs[first][:, start : start + size]
        answer, call["h"], call["c"] = engine(call)
        answers.append(answer)
        start += size
    whole = np.concatenate(answers, 1) if model.config.traits.per_step else answers[-1]
    return whole, call["h"], call["c"]
