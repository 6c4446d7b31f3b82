"""Runtimes that load an exported file, each behind the same function; imported on first use.

A runtime may crash, hang or print, so each runs in its own process. Inputs and answers go through
pipes: the size of a header in 8 bytes, the header with each array's name, dtype and shape in JSON,
and the arrays' bytes.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lstm_compile.errors import headline

Arrays = Sequence[npt.NDArray[Any]]
Run = Callable[[Mapping[str, npt.NDArray[Any]]], Arrays]  # inputs by name -> outputs in order

LIMIT = 120.0  # seconds for one answer, and for loading
SIZE = 8  # bytes of a header's size
PROGRAM = "from lstm_compile.export.proof.runtimes import serve; serve()"


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
    return lambda inputs: [v.to_numpy() for v in model.run([inputs[n] for n in file.inputs])]


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
    """IREE, compiled for this processor; some files again for each batch and time.

    With open sizes IREE takes another tensor for the initial cell state of an LSTM that begins from
    zeros, as in files with lengths, and has no GRU and no Scan.
    """
    import onnx

    kinds = {node.op_type for node in onnx.load(file.path).graph.node}
    is_sized = "lengths" in file.inputs or not kinds.isdisjoint(("GRU", "Scan"))
    sized: dict[tuple[int, ...], Run] = {}

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        sizes = inputs[file.inputs[0]].shape[:2] if is_sized else ()
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
    options = {"target_backends": ["llvm-cpu"], "extra_args": ["--iree-llvmcpu-target-cpu=host"]}
    compiled = iree.compiler.compile_file(imported, input_type="onnx", **options)
    config = iree.runtime.Config("local-sync")
    loaded = iree.runtime.VmModule.copy_buffer(config.vm_instance, compiled)
    module = iree.runtime.load_vm_module(loaded, config)
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


class NoAnswerError(Exception):
    """A runtime gave no answer; the message says why."""


class IsolatedRuntime:
    """A runtime that has loaded a file: call it with inputs by name, `close` it at the end.

    `inputs` and `outputs` are the names in the file's order; an answer may take `limit` seconds.

    Raises:
        NoAnswerError: the file cannot be loaded, or not in time.
    """

    def __init__(
        self,
        runtime: str,
        data: bytes,
        inputs: Sequence[str],
        outputs: Sequence[str],
        limit: float = LIMIT,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lstm-compile-")
        self._limit, self._failed = limit, ""
        path = Path(self._folder.name, "model.onnx")
        path.write_bytes(data)
        self._log = Path(self._folder.name, "log").open("wb")  # noqa: SIM115 (`close` closes it)
        search_path = os.pathsep.join(map(os.path.abspath, sys.path))  # as in this process
        arguments = json.dumps([runtime, str(path), [*inputs], [*outputs]])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self._folder.name,
            env={**os.environ, "PYTHONPATH": search_path, "OMP_NUM_THREADS": "1"},
        )
        try:
            self._exchange(lambda: None)
        except NoAnswerError:
            self.close()
            raise

    def __call__(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """The outputs in the order of `outputs`.

        Raises:
            NoAnswerError: no answer; after the process has ended, every call raises this.
        """
        if self._failed:
            raise NoAnswerError(self._failed)
        assert self._process.stdin is not None
        pipe = self._process.stdin
        found = self._exchange(lambda: _send(pipe, inputs))
        return [found[name] for name in sorted(found)]

    def close(self) -> None:
        """End the process, and remove what it wrote."""
        self._process.kill()
        self._process.communicate()
        self._log.close()
        self._folder.cleanup()

    def _exchange(self, ask: Callable[[], None]) -> dict[str, npt.NDArray[Any]]:
        timer = Timer(self._limit, self._process.kill)
        timer.start()
        try:
            ask()
            assert self._process.stdout is not None
            found = _receive(self._process.stdout)
        except (OSError, EOFError) as error:
            self._failed = self._ending(timer.finished.is_set())
            raise NoAnswerError(self._failed) from error
        finally:
            timer.cancel()
        if "error" in found:
            raise NoAnswerError(str(found["error"]))
        return found

    def _ending(self, late: bool) -> str:
        """Why the process ended."""
        code = self._process.wait()
        if late:
            return f"no answer within {self._limit:g} s"
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        lines = Path(self._log.name).read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process ended ({how}) {last[:200]}".strip()


def serve() -> None:
    """Load the file that the arguments name, and answer the inputs on standard input."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what runtimes print goes to the log
    runtime, path, inputs, outputs = json.loads(sys.argv[1])
    file = File(Path(path), tuple(inputs), tuple(outputs), Path(path).parent)
    try:
        run = RUNTIMES[runtime].open(file)
    except BaseException as error:  # a panic in Rust is no Exception
        _send(answers, {"error": np.array(headline(error))})
        return
    _send(answers, {})
    while True:
        try:
            asked = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            found = {f"{index:03}": np.asarray(value) for index, value in enumerate(run(asked))}
        except BaseException as error:  # as above
            found = {"error": np.array(headline(error))}
        _send(answers, found)


def _send(pipe: IO[bytes], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    header = json.dumps([(name, value.dtype.str, value.shape) for name, value in arrays.items()])
    parts = [len(header).to_bytes(SIZE, "big"), header.encode("ascii")]
    pipe.write(b"".join((*parts, *(value.tobytes() for value in arrays.values()))))
    pipe.flush()


def _receive(pipe: IO[bytes]) -> dict[str, npt.NDArray[Any]]:
    header = json.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, SIZE), "big")))
    found = {}
    for name, kind, shape in header:
        dtype = np.dtype(kind)
        data = bytearray(_exactly(pipe, dtype.itemsize * math.prod(shape)))
        found[name] = np.ndarray(shape, dtype, data)
    return found


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data
