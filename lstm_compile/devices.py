"""What the work runs on: device, threads of the CPU, precision, versions of packages."""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import metadata

import torch

from lstm_compile.errors import InputError

# Below so many floating-point operations a step of the recurrence, threads wait for each other
# longer than they work; on a busy machine the waiting takes all the time there is.
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
    """`count` CPU threads for torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where operations that gain from it run in bfloat16, for `bf16`; nothing changes for `fp32`.

    Source: https://docs.pytorch.org/docs/stable/amp.html
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let CUDA's matrix products and cuDNN use TF32, or not; cuDNN uses it by default."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def package_versions(*packages: str) -> dict[str, str]:
    """The versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def keep_freed_memory() -> None:
    """Have the C library reuse what a step frees, instead of asking the system for it every step.

    glibc hands freed memory back beyond a threshold that grows with the largest block freed so far;
    small models stay above its start value, and fault their pages in anew each step. One block that
    is never written to raises it and costs nothing; other C libraries do not mind.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html, M_MMAP_THRESHOLD
    """
    torch.empty(LARGEST_LEARNED, dtype=torch.uint8)
