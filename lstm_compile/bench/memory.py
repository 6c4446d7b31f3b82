"""Peak memory of one step, in a process of its own: a high-water mark hides what came before."""

import ctypes
import gc
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import current_thread, main_thread
from typing import NamedTuple

import torch

from lstm_compile.bench.cases import Case, Mode
from lstm_compile.bench.problem import Contestant, Step, build, step_of
from lstm_compile.devices import cpu_threads, tf32
from lstm_compile.errors import RunError

STATUS = Path("/proc/self/status")


class Peak(NamedTuple):
    """MiB of one step at its highest, weights and batch not counted."""

    cold: float  # the first step of the process: libraries that it loads are in it
    step: float  # the first step after a small one of the same sizes
    steady: float  # a later step


def peak(
    contestant: Contestant, name: str, case: Case, mode: Mode, device: str, threads: int, seed: int
) -> Peak:
    """The peak of one step of this case, in a fresh process.

    On the CPU it is the process's high-water mark above its size before the step; on CUDA what
    PyTorch's allocator gave out. `contestant` can be pickled.

    Raises:
        RunError: the process was ended from outside, as it is where memory runs out.
    """
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            with _ctrl_c_ignored():
                future = pool.submit(_peak, contestant, name, case, mode, device, threads, seed)
            return future.result()
    except BrokenProcessPool as error:
        raise RunError(
            f"{name}, {mode}, {case.name}: its process was killed as memory was measured; "
            "take a smaller case"
        ) from error


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """A process started in here ignores Ctrl-C; the process that waits for it handles it."""
    if current_thread() is not main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _peak(
    contestant: Contestant, name: str, case: Case, mode: Mode, device: str, threads: int, seed: int
) -> Peak:
    where = torch.device(device)
    small = replace(case, batch=2, time=2, lengths="full" if case.lengths == "full" else "uniform")
    with cpu_threads(threads), tf32(case.precision == "tf32"):
        problems = [build(one, where, mode, seed) for one in (small, case)]
        steps = [step_of(contestant, name, problem, mode) for problem in problems]
        marks = [_high_water(step, where) for step in (steps[0], steps[1], steps[1])]
    cold = max(highest for _, highest in marks) - marks[0][0]
    return Peak(cold, *(highest - idle for idle, highest in marks[1:]))


def _high_water(step: Step, device: torch.device) -> tuple[float, float]:
    """MiB before the step, and at its highest."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        step()
        return allocated / 2**20, torch.cuda.max_memory_allocated(device) / 2**20
    _give_back()
    idle = _status("VmRSS")
    step()
    return idle, _status("VmHWM")


def _give_back() -> None:
    """Return freed memory to the system, and reset the high-water mark."""
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # not permitted: the mark then covers the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    # not getrusage: a new process inherits ru_maxrss from the process that started it
    match = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return int(match[1]) / 1024 if match else 0.0


def supported(device_type: str) -> bool:
    """Whether this system tells a process its own high-water mark."""
    return device_type == "cuda" or STATUS.exists()
