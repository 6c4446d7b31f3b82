"""The engines that can answer for a model: torch's backends and the runtimes that load its file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from lstm_compile.config import Backend
from lstm_compile.devices import tf32
from lstm_compile.errors import InputError
from lstm_compile.export import names
from lstm_compile.export.proof.onnx_file import OnnxFile
from lstm_compile.export.proof.runtimes import RUNTIMES, IsolatedRuntime
from lstm_compile.export.runtime import Inputs, open_session
from lstm_compile.model.batch import Given
from lstm_compile.model.checkpoint import Model, to_device
from lstm_compile.model.model import predict_on
from lstm_compile.recurrence.any_cell import find_cell
from lstm_compile.recurrence.inductor import can_compile

Array = npt.NDArray[Any]
Answers = tuple[Array, ...]  # the answers; of a streaming file also the state after them
Engine = Callable[[Inputs], Answers]

# a short chunk compiles fast; the arithmetic of a longer one is the same
CHUNK = 2
# compared whenever a streaming file is written, and whenever a sequence file is
AT_STREAMING_EXPORT = ("eager", "compiled", "onnxruntime", "openvino")
AT_EXPORT = (*AT_STREAMING_EXPORT, "eager-cuda", "compiled-cuda", "onnxruntime-cuda")
EVERYWHERE = tuple(RUNTIMES)  # the runtimes that load the file, for `verify --runtimes`
KNOWN = tuple(dict.fromkeys((*AT_EXPORT, *EVERYWHERE)))


def choose_runtimes(
    wanted: Sequence[str] | None, among: Sequence[str] = AT_EXPORT, only: str = "any"
) -> tuple[list[str], dict[str, str]]:
    """The engines to compare, and why others are skipped on this machine.

    `wanted` are their names; None means all of `among` that can run here. `only` is `runtimes` of
    the file's metadata: for `onnxruntime` no other runtime is chosen unless it is wanted.

    Raises:
        InputError: a wanted engine is unknown or cannot run here.
    """
    missing = {name: why for name in KNOWN if (why := _why_missing(name))}
    if wanted is None:
        if only == names.RIGHT_IN["ort"] and among == AT_EXPORT:
            missing["openvino"] = "the file is for ONNX Runtime only"
        skipped = {n: missing[n] for n in among if n in missing and not n.endswith("-cuda")}
        return [name for name in among if name not in missing], skipped
    for name in wanted:
        if name not in KNOWN:
            raise InputError(f"runtime must be one of {', '.join(KNOWN)}; got {name!r}")
        if name in missing:
            raise InputError(f"runtime {name}: {missing[name]}")
    return list(wanted), {}


def _why_missing(name: str) -> str:
    if name.endswith("-cuda") and not torch.cuda.is_available():
        return "torch finds no CUDA device"
    providers = onnxruntime.get_available_providers()
    if name == "onnxruntime-cuda" and "CUDAExecutionProvider" not in providers:
        return "onnxruntime has no CUDA provider; install onnxruntime-gpu in its place"
    if name.startswith("compiled") and not can_compile("cuda" if "cuda" in name else "cpu"):
        return "no C++ compiler (or, on CUDA, no Triton); install g++ or set CXX"
    if name in EVERYWHERE and not RUNTIMES[name].installed:
        return f"not installed; pip install {RUNTIMES[name].package}"
    return ""


@contextmanager
def engine_of(name: str, model: Model, file: OnnxFile) -> Iterator[Engine]:
    """The engine of this name: torch computes with the model's weights, others load the file."""
    device = "cuda" if name.endswith("-cuda") else "cpu"
    if name.startswith("onnxruntime"):
        yield onnxruntime_engine(file.data, device)
    elif name in EVERYWHERE:
        tensors = list(file.interface.inputs), list(file.interface.outputs)
        with closing(IsolatedRuntime(name, file.data, *tensors)) as isolated:
            yield lambda inputs: tuple(isolated(inputs))
    else:
        yield (
            torch_engine(model, "compiled", device)
            if name.startswith("compiled")
            else eager_engine(model, device)
        )


def onnxruntime_engine(data: bytes, device: str = "cpu") -> Engine:
    """ONNX Runtime in this process, in full float32 precision on CUDA too."""
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
    session = open_session(data, [cuda] if device == "cuda" else None)
    return lambda inputs: tuple(session.run(None, inputs))


def reference(model: Model) -> Engine:
    """What all others are compared with: a plain loop over steps in float64, on the CPU."""
    params = {name: value.detach().double() for name, value in model.params.items()}
    return torch_engine(model._replace(params=params), "reference")


def eager_engine(model: Model, device: str = "cpu") -> Engine:
    """Eager PyTorch: the vendor's kernel, or the plain loop of a cell that has none."""
    has_kernel = model.config.cell == "lstm" or "vendor" in find_cell(model.config.cell).kernels
    return torch_engine(model, "vendor" if has_kernel else "reference", device)


def torch_engine(model: Model, backend: Backend, device: str = "cpu") -> Engine:
    """A backend of this package; inputs that hold a state get the state after them too."""
    params = to_device(model.params, device)
    some = next(iter(params.values()))

    def answer(inputs: Inputs) -> Answers:
        tensors = {}
        for name, array in inputs.items():
            value = torch.from_numpy(np.ascontiguousarray(array))
            tensors[name] = value.to(some) if value.is_floating_point() else value.to(device)
        x, lengths = tensors.pop(next(iter(inputs))), tensors.pop(names.LENGTHS, None)
        parts = model.config.state_parts if names.LENGTHS not in inputs else ()
        state = tuple(tensors.pop(name) for name in parts if name in tensors) or None
        with torch.no_grad(), tf32(False):
            result, after = predict_on(
                params, model.config, x, lengths, state,
                given=Given(**tensors), backend=backend, chunk=CHUNK,
            )  # fmt: skip
        return tuple(part.cpu().numpy() for part in (result, *(after if state else ())))

    return answer
