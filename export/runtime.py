"""An exported file without torch: read it safely, check its interface, ask it.

What a service needs that only answers: onnx, onnxruntime and numpy.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

from lstm_compile.config import Task
from lstm_compile.errors import InputError
from lstm_compile.export import names

Floats = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int64]

INVALID = (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)


class Interface(NamedTuple):
    """What a file takes and gives."""

    task: Task
    features: int
    outputs: int  # classes, or targets


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
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); export it first") from error
    try:
        model = onnx.load_model_from_string(data)
        _refuse_external_data(model)
        onnx.checker.check_model(model, full_check=True)
        interface = _interface(model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except INVALID as error:
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise InputError(f"{path}: not a valid ONNX file ({reason}); export it again") from error
    return OnnxFile(data, interface, {prop.key: prop.value for prop in model.metadata_props})


def open_session(data: bytes, providers: list[Any] | None = None) -> Any:
    """An onnxruntime session on a file's bytes, on the CPU unless `providers` say otherwise."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about its own optimisations
    # threads that spin while they wait starve whatever else runs on the machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(data, options, providers or ["CPUExecutionProvider"])


def ask(session: Any, x: Floats, lengths: Lengths) -> Floats:
    """The answers (batch, outputs) to `x` (batch, time, features) with `lengths` (batch,).

    Raises:
        InputError: an empty batch or no step, which end the onnxruntime process, or lengths that
            do not fit.
    """
    if x.ndim != 3 or not x.shape[0] or not x.shape[1]:
        raise InputError(
            f"x must have shape (batch, time, features), batch and time at least 1; got {x.shape}"
        )
    if lengths.shape != x.shape[:1] or not ((lengths >= 0) & (lengths <= x.shape[1])).all():
        raise InputError(f"lengths must be {x.shape[0]} numbers in [0, {x.shape[1]}]")
    inputs = {names.INPUT: x.astype(np.float32), names.LENGTHS: lengths.astype(np.int64)}
    (answers,) = session.run(None, inputs)
    return np.asarray(answers, np.float32)


def _interface(model: ModelProto) -> Interface:
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name: value for value in model.graph.output}
    tasks = [task for task, name in names.OUTPUTS.items() if set(outputs) == {name}]
    if set(inputs) != {names.INPUT, names.LENGTHS} or not tasks:
        raise InputError(
            f"expected inputs {names.INPUT}, {names.LENGTHS} and one output of "
            f"{', '.join(names.OUTPUTS.values())}; found inputs {', '.join(inputs) or 'none'} and "
            f"outputs {', '.join(outputs) or 'none'}; export it again"
        )
    output = outputs[names.OUTPUTS[tasks[0]]]
    _check_type(inputs[names.LENGTHS], TensorProto.INT64, 1)
    features = _check_type(inputs[names.INPUT], TensorProto.FLOAT, 3)
    return Interface(tasks[0], features, _check_type(output, TensorProto.FLOAT, 2))


def _check_type(value: ValueInfoProto, element: int, rank: int) -> int:
    """The last size of a tensor that must be of this element type and rank."""
    found = value.type.tensor_type
    sizes = [size.dim_value or size.dim_param for size in found.shape.dim]
    if found.elem_type != element or len(sizes) != rank:
        raise InputError(
            f"{value.name} must be {TensorProto.DataType.Name(element)} of {rank} dimensions, "
            f"found {TensorProto.DataType.Name(found.elem_type)} {sizes}; export it again"
        )
    return int(found.shape.dim[-1].dim_value)


def _refuse_external_data(model: ModelProto) -> None:
    # paths inside a model file are an attack surface (CVE-2022-25882, CVE-2024-27318)
    for tensor in _tensors(model.graph):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise InputError(
                f"tensor {tensor.name!r} lies in another file, which is refused; "
                "a file of this package holds all of its weights: export it again"
            )


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield from (attribute.t, *attribute.tensors)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        if graph.node or graph.initializer:
            yield from _tensors(graph)
