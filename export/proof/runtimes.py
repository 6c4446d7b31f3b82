"""Runtimes that load an exported file, each behind the same function; imported on first use.

A runtime may crash, hang or print, so `proof.isolated` runs each in its own process.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Arrays = Sequence[npt.NDArray[Any]]
Run = Callable[[Mapping[str, npt.NDArray[Any]]], Arrays]  # inputs by name -> outputs in order


class File(NamedTuple):
    """An exported file, and a folder for the files of a runtime."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    folder: Path


class Runtime(NamedTuple):
    """Where a runtime comes from and how it answers."""

    module: str  # what is imported
    package: str  # what pip installs; its version is the runtime's
    open: Callable[[File], Run]

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return find_spec(self.module) is not None


def open_onnxruntime(file: File) -> Run:
    """ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, dict(inputs))


def open_openvino(file: File) -> Run:
    """OpenVINO on the CPU in float32; by default it uses bfloat16 where the processor can."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "1"}
    compiled = openvino.Core().compile_model(file.path, "CPU", options)
    return lambda inputs: [np.array(value) for value in compiled(dict(inputs)).values()]


def open_tract(file: File) -> Run:
    """Tract, with open shapes."""
    import tract

    model = tract.onnx().load(file.path).into_model().into_runnable()
    return lambda inputs: [
        value.to_numpy() for value in model.run([inputs[name] for name in file.inputs])
    ]


def open_opencv(file: File) -> Run:
    """OpenCV's dnn module."""
    import cv2

    net = cv2.dnn.readNetFromONNX(str(file.path))

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        for name, value in inputs.items():
            net.setInput(value, name)
        return list(net.forward(list(file.outputs)))

    return run


def open_mnn(file: File) -> Run:
    """MNN; the file is converted from Python, because MNN's script installs packages by itself."""
    import _tools  # of the package MNN
    import MNN

    converted = str(file.folder / "model.mnn")
    _tools.mnnconvert(
        ["", "-f", "ONNX", "--modelFile", str(file.path), "--MNNModel", converted, "--bizCode", "x"]
    )
    net = MNN.nn.load_module_from_file(converted, list(file.inputs), list(file.outputs))

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        variables = [_mnn_variable(inputs[name]) for name in file.inputs]
        return [np.array(value.read()) for value in net.forward(variables)]

    return run


def _mnn_variable(value: npt.NDArray[Any]) -> Any:
    import MNN.expr as expr

    kind = expr.int if value.dtype.kind == "i" else expr.float
    value = value.astype(np.int32) if kind == expr.int else value  # it has no int64
    return expr.const(np.ascontiguousarray(value), list(value.shape), expr.NCHW, kind)


def open_iree(file: File) -> Run:
    """IREE, compiled for this processor; a file with lengths again for each batch and time.

    With open sizes IREE takes another tensor for the initial cell state.
    """
    sized: dict[tuple[int, ...], Run] = {}

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        sizes = inputs[file.inputs[0]].shape[:2] if "lengths" in inputs else ()
        if sizes not in sized:
            sized[sizes] = _compiled(file, sizes)
        return sized[sizes](inputs)

    return run


def _compiled(file: File, sizes: tuple[int, ...]) -> Run:
    import iree.compiler
    import iree.runtime
    from iree.compiler.tools.import_onnx.__main__ import main, parse_arguments

    imported = str(file.folder / "model.mlir")
    main(parse_arguments([str(_fixed(file, sizes) if sizes else file.path), "-o", imported]))
    compiled = iree.compiler.compile_file(
        imported,
        input_type="onnx",
        target_backends=["llvm-cpu"],
        extra_args=["--iree-llvmcpu-target-cpu=host"],
    )
    config = iree.runtime.Config("local-sync")
    module = iree.runtime.load_vm_module(
        iree.runtime.VmModule.copy_buffer(config.vm_instance, compiled), config
    )
    name = next(name for name in module.vm_module.function_names if "$" not in name)

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        found = module[name](*[inputs[each] for each in file.inputs])
        several = found if isinstance(found, list | tuple) else [found]
        return [np.array(value.to_host()) for value in several]

    return run


def _fixed(file: File, sizes: tuple[int, ...]) -> Path:
    """A copy of the file for one batch and time."""
    import onnx

    model, known = onnx.load(file.path), dict(zip(("batch", "time"), sizes, strict=True))
    for value in (*model.graph.input, *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in known:
                size.dim_value = known[size.dim_param]
    onnx.save(model, file.folder / "fixed.onnx")
    return file.folder / "fixed.onnx"


def open_onnx(file: File) -> Run:
    """The reference evaluator of the package onnx."""
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(os.fspath(file.path))
    return lambda inputs: list(session.run(None, dict(inputs)))


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime("onnxruntime", "onnxruntime", open_onnxruntime),
    "openvino": Runtime("openvino", "openvino", open_openvino),
    "tract": Runtime("tract", "tract", open_tract),
    "opencv": Runtime("cv2", "opencv-python-headless", open_opencv),
    "mnn": Runtime("MNN", "MNN", open_mnn),
    "iree": Runtime("iree", "iree-base-compiler", open_iree),
    "onnx": Runtime("onnx", "onnx", open_onnx),
}
