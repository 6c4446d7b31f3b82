"""Where the work runs, and how: the device, CPU threads, precision and memory."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import metadata
from typing import Any, TypeVar

import torch

from lstm_compile.errors import InputError

Setting = TypeVar("Setting")

# In a step of the recurrence with fewer floating-point operations, threads wait for each other
# longer than they work; on a busy machine nearly all of the time is waiting.
SMALL_STEP = 2e6

LARGEST_LEARNED = 31 << 20  # glibc learns from no block above 32 MiB on 64-bit systems


def find_device(name: str) -> torch.device:
    """The device that `name` means: cpu, cuda, cuda:N, or auto, which is CUDA where there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu, cuda, cuda:N or auto; got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name} is not here: torch sees {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu"
        )
    return device


def fitting_threads(batch_size: int, hidden_size: int) -> int:
    """How many CPU threads a recurrence of this size can use: 1, or as many as torch has."""
    operations = 2 * batch_size * hidden_size * 4 * hidden_size
    return 1 if operations < SMALL_STEP else torch.get_num_threads()


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Give torch `count` CPU threads, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """For `bf16`: operations that gain from it run in bfloat16. Nothing changes for others.

    Source: https://docs.pytorch.org/docs/stable/amp.html
    """
    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 in matrix products and in cuDNN, or not; by default cuDNN uses it.

    PyTorch has older and newer settings for this. Both are set, as it raises errors at some reads
    where they differ, and both are restored.
    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html, TensorFloat-32
    """
    backends: Any = torch.backends  # the stubs do not know the newer settings
    cudnn = backends.cudnn
    places = (backends.cuda.matmul, backends.mkldnn.matmul, cudnn.rnn, cudnn.conv)
    before = [place.fp32_precision for place in places]
    precision, in_cudnn = _or_none(torch.get_float32_matmul_precision), _or_none(_cudnn_tf32)
    with _thawed():
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        cudnn.allow_tf32 = allowed
        cudnn.rnn.fp32_precision = cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        with _thawed():
            if precision is not None:
                torch.set_float32_matmul_precision(precision)
            if in_cudnn is not None:
                cudnn.allow_tf32 = in_cudnn
            for place, value in zip(places, before, strict=True):
                if place.fp32_precision != value:
                    place.fp32_precision = value


def _thawed() -> AbstractContextManager[Any]:
    """Settings that `torch.backends.disable_global_flags()` froze may be changed within.

    PyTorch's own context managers do the same; torch.testing's helpers freeze the settings.
    """
    thaw = getattr(torch.backends, "__allow_nonbracketed_mutation", nullcontext)
    return thaw()


def _cudnn_tf32() -> bool:
    return torch.backends.cudnn.allow_tf32


def _or_none(read: Callable[[], Setting]) -> Setting | None:
    """An older setting, None where newer ones differ from it."""
    try:
        return read()
    except RuntimeError:
        return None


def keep_freed_memory() -> None:
    """Make the C library reuse the memory that a step frees, in place of asking the system again.

    glibc gives freed blocks back to the system if they are larger than a threshold, which grows
    with the largest block freed so far. Small models free blocks above its first value, so their
    pages would be mapped anew in each step. One large block that is never written to raises the
    threshold at no cost. Other C libraries are not affected.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html, M_MMAP_THRESHOLD
    """
    torch.empty(LARGEST_LEARNED, dtype=torch.uint8, device="cpu")


def package_versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
