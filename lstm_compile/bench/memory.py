"""Peak memory of one step, measured in a process of its own: a high-water mark hides what was."""

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
from lstm_compile.bench.problem import Contestant, Step, build, step_of, tf32
from lstm_compile.devices import cpu_threads
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
    PyTorch's allocator gave out.

    Args:
        contestant: a function that can be pickled.
        name: its name.
        case: what to compute.
        mode: `inference` or `training`.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: of the CPU.
        seed: of weights, batch and lengths.

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
    """A process started in here leaves Ctrl-C to the one that waits for it."""
    if current_thread() is not main_thread():  # only that one may set handlers
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
    cold = max(mark.highest for mark in marks) - marks[0].idle
    return Peak(cold, *(mark.highest - mark.idle for mark in marks[1:]))


class _Mark(NamedTuple):
    idle: float  # MiB
    highest: float


def _high_water(step: Step, device: torch.device) -> _Mark:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        step()
        return _Mark(allocated / 2**20, torch.cuda.max_memory_allocated(device) / 2**20)
    _give_back()
    idle = _status("VmRSS")
    step()
    return _Mark(idle, _status("VmHWM"))


def _give_back() -> None:
    """Return freed memory to the system, and let the high-water mark begin anew."""
    gc.collect()
    with suppress(OSError, AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # not permitted: the mark is then that of the whole process
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    # not getrusage: a new process takes ru_maxrss over from the one that started it
    match = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    return int(match[1]) / 1024 if match else 0.0


def supported(device_type: str) -> bool:
    """Whether this system tells a process its own high-water mark."""
    return device_type == "cuda" or STATUS.exists()
