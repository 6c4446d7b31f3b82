"""Read an exported file and check every part of it with onnx; `runtime` does without onnx."""

from pathlib import Path
from typing import NamedTuple

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, ValueInfoProto

from lstm_compile.errors import InputError, reason
from lstm_compile.export import names, runtime
from lstm_compile.export.runtime import ModelError
from lstm_compile.tasks import TASKS, find_task

INVALID = (
    DecodeError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    ValueError,  # the checker raises it for unknown types and for text that is not UTF-8
)


class Interface(NamedTuple):
    """What a file takes and gives, each by name with its element type and shape."""

    task: str
    inputs: names.Tensors
    outputs: names.Tensors  # the answers first


class OnnxFile(NamedTuple):
    """A checked file: its bytes, its interface and its metadata_props."""

    data: bytes
    interface: Interface
    metadata: dict[str, str]


def read_onnx(path: str | Path) -> OnnxFile:
    """Read and check an exported file; nothing outside it is read.

    Raises:
        InputError: no such file, not a valid ONNX model, tensors in other files, or not the
            interface that this package exports.
    """
    try:
        data = runtime.read_bytes(path)
    except ModelError as error:
        raise InputError(str(error)) from error
    try:
        runtime.check_graph(data)
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model, full_check=True)
        interface = _interface(model)
    except (ModelError, InputError) as error:
        raise InputError(f"{path}: {error}") from error
    except INVALID as error:
        why = reason(error)
        raise InputError(f"{path}: not a valid ONNX file ({why}); export it again") from error
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    if not all(isinstance(text, str) for text in metadata.values()):
        raise InputError(f"{path}: its metadata are not UTF-8; export it again")
    return OnnxFile(data, interface, metadata)


def is_streaming(path: str | Path) -> bool:
    """Whether an exported file is a streaming file.

    Raises:
        InputError: as `read_onnx`.
    """
    return names.STATE_KEY in read_onnx(path).metadata


def _interface(model: ModelProto) -> Interface:
    inputs = {value.name: _described(value) for value in model.graph.input}
    outputs = {value.name: _described(value) for value in model.graph.output}
    parts = tuple(name for name in inputs if f"{name}{names.NEXT}" in outputs)
    more, needed = tuple(f"{name}{names.NEXT}" for name in parts), parts or (names.LENGTHS,)
    known = [find_task(name) for name in TASKS]
    said = next((prop.value for prop in model.metadata_props if prop.key == "task"), "")
    fitting = [task for task in known if set(outputs) == {task.output, *more}]
    fitting.sort(key=lambda task: task.name != said)  # two tasks may name their answers alike
    first = next(iter(inputs), "")
    if first not in (names.INPUT, names.TOKENS) or not {*needed} <= set(inputs) or not fitting:
        outs = ", ".join(task.output for task in known)
        raise InputError(
            f"expected inputs {names.INPUT} or {names.TOKENS}, {', '.join(needed)} and one output "
            f"of {outs}; found inputs {', '.join(inputs) or 'none'} and outputs "
            f"{', '.join(outputs) or 'none'}; export it again"
        )
    task, tensors = fitting[0], {**inputs, **outputs}
    rank = max(3, len(outputs[task.output][1])) if task.is_series else 2 + task.per_step
    expected = {task.output: ("float32", rank), **dict.fromkeys((*needed, *more), ("float32", 3))}
    expected |= {} if parts else {names.LENGTHS: ("int64", 1)}
    expected[first] = ("float32", 3) if first == names.INPUT else ("int64", 2)
    for name, (element, rank) in expected.items():
        kind, shape = tensors[name]
        if kind != element or len(shape) != rank:
            raise InputError(
                f"{name} must be {element} of {rank} dimensions, found {kind} {shape}; "
                "export it again"
            )
    return Interface(task.name, inputs, outputs)


def _described(value: ValueInfoProto) -> tuple[str, names.Shape]:
    """Element type, by NumPy's name where this package uses it, and shape."""
    found = value.type.tensor_type
    sizes: names.Shape = [size.dim_param or size.dim_value for size in found.shape.dim]
    name = TensorProto.DataType.Name(found.elem_type)
    return {"FLOAT": "float32", "INT64": "int64"}.get(name, name), sizes
