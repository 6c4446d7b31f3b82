"""Measuring which backend is fastest for a workload, so that `auto` can take it."""

import time
from collections.abc import Callable
from functools import cache
from statistics import median

import torch
from torch import Tensor

from lstm_compile.devices import cpu_threads
from lstm_compile.recurrence.any_cell import Cell
from lstm_compile.recurrence.autotune import CLEARLY, Measured, Workload, measurements, remember
from lstm_compile.recurrence.function import lstm
from lstm_compile.recurrence.operator import DEFAULT_CHUNK
from lstm_compile.recurrence.recurrent import layer_shapes, recurrent
from lstm_compile.recurrence.stack import weight_shapes

ROUNDS = 7
SECONDS = 2.0  # after which no further round begins
LEAST_ROUNDS = 3
FEW = 16  # steps, whose time is that of many
SHORT = 32  # steps: enough to measure how long threads wait for each other in each step

Step = Callable[[str], None]


def calibrate(
    hidden_size: int,
    input_size: int,
    batch: int,
    time_steps: int,
    *,
    ragged: bool,
    training: bool,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    chunk: int = DEFAULT_CHUNK,
) -> Measured:
    """Measure one layer and direction on both backends, in turns, and remember it for `auto`.

    It compiles, which takes some 20 seconds the first time on a machine. A measurement made before
    is returned without measuring again, once this process has compiled.

    The batch has `time_steps` steps. Lengths are uniform from 1 to that if `ragged`, else all are
    full. A step is forward and backward in `training`, else a forward without gradients. `device`
    and `dtype` are those of weights and data; `chunk` is that of `compiled`.
    """
    workload = Workload(
        hidden_size, input_size, batch, time_steps, ragged, training, torch.device(device), dtype
    )
    step, bucket = _step(workload, chunk), workload.bucket
    began = time.perf_counter()
    step("compiled")
    first = time.perf_counter() - began
    if (known := measurements().get(bucket)) and known.chunk == chunk:
        return known
    vendor, compiled = map(median, _in_turns(step).values())
    measured = Measured(1e3 * vendor, 1e3 * compiled, chunk, max(0.0, first - compiled))
    remember(bucket, measured)
    return measured


def vendor_seconds(workload: Workload) -> float:
    """Median seconds of the backend `vendor`, of three calls after one to warm up."""
    step = _step(workload)
    step("vendor")
    return median(_timed(lambda: step("vendor")) for _ in range(LEAST_ROUNDS))


def loop_seconds(
    cell: Cell, hidden_size: int, batch: int, device: torch.device, *, training: bool
) -> float:
    """Median seconds that the plain loop takes for one step of one layer of any cell."""
    generator, params = torch.Generator().manual_seed(0), dict[str, Tensor]()
    for name, shape in layer_shapes(cell, hidden_size, hidden_size, bidirectional=False).items():
        tensor = torch.empty(shape, device="cpu")
        cell.initialise(name.removesuffix("_l0"), tensor, generator)
        params[name] = tensor.to(device).requires_grad_()
    x = torch.zeros(batch, FEW, hidden_size, device=device)

    def step() -> None:
        with torch.set_grad_enabled(training):
            y, _ = recurrent(cell, params, x, backend="reference")
        if training:
            torch.autograd.grad(y.sum(), list(params.values()), allow_unused=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    step()
    return median(_timed(step) for _ in range(LEAST_ROUNDS)) / FEW


@cache
def fastest_threads(hidden_size: int, input_size: int, batch: int, most: int) -> int:
    """The number of CPU threads, 1 or `most`, with which a layer of `vendor` trains faster.

    Both are measured in turns. More threads must be clearly faster, as other programs need the
    processor too. Within one process the answer stays the same.
    """
    sizes = hidden_size, input_size, batch, SHORT
    step = _step(Workload(*sizes, ragged=False, training=True, device=torch.device("cpu")))
    times: dict[int, list[float]] = {1: [], most: []}
    for _ in range(ROUNDS):
        for count, seconds in times.items():
            with cpu_threads(count):
                step("vendor")
                seconds.append(_timed(lambda: step("vendor")))
    return most if median(times[most]) <= CLEARLY * median(times[1]) else 1


def _in_turns(step: Step) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"vendor": [], "compiled": []}
    for backend in times:
        step(backend)
    began = time.perf_counter()
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - began > SECONDS:
            break
        for backend, seconds in times.items():
            seconds.append(_timed(lambda backend=backend: step(backend)))  # type: ignore[misc]
    return times


def _timed(step: Callable[[], None]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _step(workload: Workload, chunk: int = DEFAULT_CHUNK) -> Step:
    """One step of the workload, on random weights and data, with the backend it is called with."""
    hidden_size, input_size, batch, time_steps, ragged, training, device, dtype = workload
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(device, dtype)

    shapes = weight_shapes(input_size, hidden_size, bidirectional=False, bias=True)
    params = {
        name: (draw(*shape) * hidden_size**-0.5).requires_grad_(training)
        for name, shape in shapes.items()
    }
    x, lengths = draw(batch, time_steps, input_size), None
    if ragged:
        lengths = torch.randint(1, time_steps + 1, (batch,), generator=generator, device="cpu")
        lengths[0] = time_steps

    def step(backend: str) -> None:
        with torch.set_grad_enabled(training):
            y, _ = lstm(params, x, lengths, backend=backend, chunk=chunk)  # type: ignore[arg-type]
        if training:
            torch.autograd.grad(y.sum(), list(params.values()))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step
