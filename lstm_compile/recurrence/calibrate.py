"""Measuring which backend is fastest for a kind of call: what `auto` goes by."""

import time
from collections.abc import Callable
from functools import cache
from statistics import median

import torch
from torch import Tensor

from lstm_compile.devices import cpu_threads
from lstm_compile.recurrence.autotune import (
    CLEARLY,
    Measured,
    Work,
    measurements,
    remember,
    work_of,
)
from lstm_compile.recurrence.function import lstm
from lstm_compile.recurrence.operator import DEFAULT_CHUNK
from lstm_compile.recurrence.vendor import Outputs

ROUNDS = 7
SECONDS = 2.0  # after which no further round begins
LEAST_ROUNDS = 3
SHORT = 32  # steps, enough to tell how threads wait for each other at each

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

    Compiles, and so takes some 20 seconds the first time on a machine; what was measured before
    comes at once, but for the compilation where this process has not done it.

    Args:
        hidden_size: of the layer.
        input_size: of the layer.
        batch: sequences.
        time_steps: of the longest.
        ragged: lengths uniform from 1 to `time_steps`; else all are full.
        training: forward, backward; else a forward without gradients.
        device: of weights and data.
        dtype: of weights and data.
        chunk: of `compiled`.
    """
    step, work = _step(
        hidden_size, input_size, batch, time_steps, ragged, training, device, dtype, chunk
    )
    began = time.perf_counter()
    step("compiled")
    first = time.perf_counter() - began
    if (known := measurements().get(work)) and known.chunk == chunk:
        return known
    times = _in_turns(step)
    measured = Measured(
        median(times["vendor"]) * 1e3,
        median(times["compiled"]) * 1e3,
        chunk,
        max(0.0, first - median(times["compiled"])),
    )
    remember(work, measured)
    return measured


def vendor_seconds(
    hidden_size: int,
    input_size: int,
    batch: int,
    time_steps: int,
    *,
    ragged: bool,
    training: bool,
    device: torch.device | str = "cpu",
) -> float:
    """Median seconds of the backend `vendor` on the same, of three calls after one to warm up."""
    sizes = hidden_size, input_size, batch, time_steps, ragged, training
    step, _ = _step(*sizes, device, torch.float32, DEFAULT_CHUNK)
    step("vendor")
    return median(_timed(lambda: step("vendor")) for _ in range(LEAST_ROUNDS))


@cache
def fastest_threads(hidden_size: int, input_size: int, batch: int, most: int) -> int:
    """1 or `most`: with how many CPU threads a layer of `vendor` trains faster, measured in turns.

    More threads must be clearly faster, as other programs will want the processor too. Asked again
    in the same process, the answer is the same.
    """
    sizes = hidden_size, input_size, batch, SHORT
    step, _ = _step(*sizes, False, True, "cpu", torch.float32, DEFAULT_CHUNK)
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


def _step(
    hidden_size: int,
    input_size: int,
    batch: int,
    time_steps: int,
    ragged: bool,
    training: bool,
    device: torch.device | str,
    dtype: torch.dtype,
    chunk: int,
) -> tuple[Step, Work]:
    device = torch.device(device)
    generator = torch.Generator().manual_seed(0)
    gates, scale = 4 * hidden_size, hidden_size**-0.5
    shapes: dict[str, tuple[int, ...]]
    shapes = {"weight_ih_l0": (gates, input_size), "weight_hh_l0": (gates, hidden_size)}
    shapes |= {"bias_ih_l0": (gates,), "bias_hh_l0": (gates,)}

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    params = {
        name: (draw(*shape) * scale).requires_grad_(training) for name, shape in shapes.items()
    }
    x, lengths = draw(batch, time_steps, input_size), None
    if ragged:
        lengths = torch.randint(1, time_steps + 1, (batch,), generator=generator)
        lengths[0] = time_steps

    def run(backend: str) -> Outputs:
        with torch.set_grad_enabled(training):
            y, (h, c) = lstm(params, x, lengths, backend=backend, chunk=chunk)  # type: ignore[arg-type]
        return y, h, c

    def step(backend: str) -> None:
        y, *_ = run(backend)
        if training:
            torch.autograd.grad(y.sum(), list(params.values()))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    first = params["weight_hh_l0"]
    return step, work_of(first, input_size, batch, time_steps, ragged=ragged, training=training)
