"""`verify_onnx`: proof that a file and torch's backends give a model's answers everywhere."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lstm_compile.devices import cpu_threads
from lstm_compile.errors import InputError
from lstm_compile.export import names
from lstm_compile.export.proof.compare import Question, compare, compare_engines, tolerance
from lstm_compile.export.proof.engines import (
    AT_EXPORT,
    EVERYWHERE,
    Engine,
    choose_runtimes,
    onnxruntime_engine,
    reference,
)
from lstm_compile.export.proof.inputs import ParityCase, all_cases, ragged_cases, random_inputs
from lstm_compile.export.proof.onnx_file import OnnxFile, read_onnx
from lstm_compile.export.proof.parity_report import Comparison, ParityReport
from lstm_compile.export.proof.streaming_parity import verify_streaming
from lstm_compile.model.checkpoint import Model, load_model

INT8_TOLERANCE = 0.25  # random rows lie near the borders of classes: 0.05 was measured there


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
