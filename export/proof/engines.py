"""Who can answer for a model: torch's backends and the runtimes that load its ONNX file."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from lstm_compile.errors import InputError
from lstm_compile.export import names
from lstm_compile.export.proof import runtimes
from lstm_compile.export.proof.isolated import Apart
from lstm_compile.export.runtime import Inputs, ask, open_session
from lstm_compile.model.batch import Given
from lstm_compile.model.checkpoint import Model, to_device
from lstm_compile.model.model import predict
from lstm_compile.recurrence.inductor import can_compile
from lstm_compile.recurrence.operator import Backend

Answers = npt.NDArray[Any]
Answer = Callable[[Inputs], Answers]

# a short chunk compiles fast; the arithmetic of a longer one is the same
CHUNK = 2
RUNTIMES = (
    "eager",
    "compiled",
    "onnxruntime",
    "openvino",
    "eager-cuda",
    "compiled-cuda",
    "onnxruntime-cuda",
)  # of every export
EVERYWHERE = tuple(runtimes.RUNTIMES)  # that load the file, for `verify --runtimes`
KNOWN = tuple(dict.fromkeys((*RUNTIMES, *EVERYWHERE)))


def choose_runtimes(
    wanted: Sequence[str] | None, among: Sequence[str] = RUNTIMES, only: str = "any"
) -> tuple[list[str], dict[str, str]]:
    """The runtimes to compare, and why others on this machine are not.

    Args:
        wanted: their names; None is all of `among` that are there.
        among: those to choose from.
        only: `runtimes` of the file's metadata: `onnxruntime` leaves others out if none is wanted.

    Raises:
        InputError: a wanted runtime is unknown or cannot run here.
    """
    missing = {name: why for name in KNOWN if (why := _why_missing(name))}
    if wanted is None:
        skipped = {n: missing[n] for n in among if n in missing and not n.endswith("-cuda")}
        if only == names.RIGHT_IN["ort"] and among == RUNTIMES:
            missing = skipped = {**missing, "openvino": "the file is for ONNX Runtime only"}
            skipped = {n: why for n, why in skipped.items() if n in among and "-cuda" not in n}
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
    if name == "onnxruntime-cuda" and "CUDAExecutionProvider" not in _providers():
        return "onnxruntime has no CUDA provider; install onnxruntime-gpu in its place"
    if name.startswith("compiled") and not can_compile("cuda" if "cuda" in name else "cpu"):
        return "no C++ compiler (or, on CUDA, no Triton); install g++ or set CXX"
    if name in EVERYWHERE and not runtimes.RUNTIMES[name].installed:
        return f"not installed; pip install {runtimes.RUNTIMES[name].package}"
    return ""


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def reference(model: Model) -> Answer:
    """The oracle: a plain loop over steps in float64, on the CPU."""
    params = {name: value.detach().cpu().double() for name, value in model.params.items()}
    return _torch_answer(model._replace(params=params), "reference")


@contextmanager
def answer_of(runtime: str, model: Model, data: bytes) -> Iterator[Answer]:
    """How `runtime` answers: from the model's own weights, or from the file's bytes `data`."""
    if runtime in EVERYWHERE and runtime != "onnxruntime":
        outputs = [model.config.traits.output]
        with closing(Apart(runtime, data, list(names.inputs_of(model.config)), outputs)) as apart:
            yield lambda inputs: apart(inputs)[0]
    else:
        yield _own_answer(runtime, model, data)


def _own_answer(runtime: str, model: Model, data: bytes) -> Answer:
    device = "cuda" if runtime.endswith("-cuda") else "cpu"
    if runtime.startswith("onnxruntime"):
        cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
        session = open_session(data, [cuda] if device == "cuda" else None)
        return lambda inputs: _ask(session, **inputs)
    backend: Backend = "compiled" if runtime.startswith("compiled") else "vendor"
    return _torch_answer(model._replace(params=to_device(model.params, device)), backend)


def _ask(session: Any, **inputs: Answers) -> Answers:
    first, lengths, *given = inputs.items()
    return ask(session, first[1], lengths[1], **dict(given))


def _torch_answer(model: Model, backend: Backend) -> Answer:
    some = next(iter(model.params.values()))

    def answer(inputs: Inputs) -> Answers:
        found = {name: _like(torch.from_numpy(value), some) for name, value in inputs.items()}
        x, lengths = found.pop(next(iter(inputs))), found.pop(names.LENGTHS)
        with torch.no_grad(), full_precision():
            result = predict(
                model.params, model.config, x, lengths,
                given=Given(**found), backend=backend, chunk=CHUNK,
            )  # fmt: skip
        return result.cpu().numpy()

    return answer


def _like(value: Tensor, some: Tensor) -> Tensor:
    """On the device of `some`, and numbers with a fraction in its dtype."""
    return value.to(some) if value.is_floating_point() else value.to(some.device)


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32: cuDNN uses it by default, with errors of 1e-3."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32
    matmul.allow_tf32 = False
    kept = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    try:
        with cudnn.flags(**kept, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32 = before
