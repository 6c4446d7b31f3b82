"""Which backend and how many threads a training run takes: chosen once, before its first step."""

from dataclasses import replace
from math import ceil

import torch

from lstm_compile.config import Backend, ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.stream import Stream
from lstm_compile.devices import cpu_threads, fitting_threads
from lstm_compile.recurrence.any_cell import find_cell
from lstm_compile.recurrence.autotune import CLEARLY, Workload
from lstm_compile.recurrence.calibrate import (
    calibrate,
    fastest_threads,
    loop_seconds,
    vendor_seconds,
)
from lstm_compile.recurrence.inductor import can_compile
from lstm_compile.training.settings import TrainingConfig

# Compiling takes some 20 seconds and measuring a few more, to gain some ten per cent.
WORTH_COMPILING = 300.0  # seconds in the recurrence
# A cell without a kernel takes up to 40 seconds, to gain more than half of the plain loop's time.
LOOP_WORTH_COMPILING = 90.0


def threads_of(config: ModelConfig, training: TrainingConfig) -> int:
    """How many CPU threads a training takes: those asked for, or what suits its size.

    Large steps take all threads. For small steps a rule says that one is enough; on an idle CPU
    several may still be faster, which is measured once in a process.
    """
    most, batch = torch.get_num_threads(), training.batch_size
    if training.threads or fitting_threads(batch, config.hidden_size) == most:
        return training.threads or most
    return fastest_threads(config.hidden_size, config.input_size, batch, most)


def settle(
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Stream | Corpus,
    device: torch.device,
) -> tuple[TrainingConfig, str]:
    """`training` with the final number of threads and backend, and a line about that backend."""
    training, why = replace(training, threads=threads_of(config, training)), "as asked for"
    is_own = config.cell != "lstm" or config.changes_step
    if is_own and training.backend == "auto":
        backend, why = backend_of_cell(config, training, train, device)
        training = replace(training, backend=backend)
    elif not isinstance(train, Corpus):
        with cpu_threads(training.threads):
            training, why = settle_backend(config, training, train, device)
    elif training.backend == "auto":
        training, why = replace(training, backend="vendor"), "all rows of text have the same length"
    return training, f"{training.backend}, {why}"


def backend_of_cell(
    config: ModelConfig,
    training: TrainingConfig,
    train: Examples | Stream | Corpus,
    device: torch.device,
) -> tuple[Backend, str]:
    """The backend that `auto` means for another cell or step than that of `lstm`, and why."""
    cell = find_cell(config.cell)
    if "vendor" in cell.kernels and not config.changes_step:
        return "vendor", f"which has a kernel of cell {config.cell}"
    if not can_compile(device.type):
        return "reference", "there is no compiler here"
    sizes = config.hidden_size, training.batch_size
    with cpu_threads(training.threads):
        once = loop_seconds(cell, *sizes, device, training=True)
    steps = training.epochs * _time_steps(train, training.batch_size)
    total = once * steps * config.num_layers * config.num_directions
    if total < LOOP_WORTH_COMPILING:
        return "reference", f"its loop takes {total:.0f} s at most, too little for compiling to pay"
    what = " with zoneout or hidden_dropout" * config.changes_step
    return "compiled", f"no vendor has a kernel of cell {config.cell}{what}"


def _time_steps(train: Examples | Stream | Corpus, batch: int) -> int:
    """The steps of time that one layer takes in an epoch, at most."""
    if isinstance(train, Corpus):
        return ceil(len(train) / batch)
    return ceil(len(train) / batch) * int(train.lengths.max())


def settle_backend(
    config: ModelConfig, training: TrainingConfig, train: Examples | Stream, device: torch.device
) -> tuple[TrainingConfig, str]:
    """`training` with a backend in place of `auto`, and why; any other backend stays."""
    if training.backend != "auto":
        return training, "as asked for"
    if not can_compile(device.type):
        return replace(training, backend="vendor"), "there is no compiler here"
    longest = int(train.lengths.max())
    sizes = config.hidden_size, config.input_size, training.batch_size, longest
    ragged = int(train.lengths.min()) != longest
    once = vendor_seconds(Workload(*sizes, ragged=ragged, training=True, device=device))
    steps = training.epochs * ceil(len(train) / training.batch_size)
    total = once * steps * config.num_layers * config.num_directions
    if total < WORTH_COMPILING:
        why = f"the LSTM takes {total:.0f} s at most, too little for compiling to pay"
        return replace(training, backend="vendor"), why
    found = calibrate(*sizes, ragged=ragged, training=True, device=device, chunk=training.chunk)
    why = f"measured {found.compiled:.3g} ms compiled, {found.vendor:.3g} ms vendor"
    faster = found.compiled <= CLEARLY * found.vendor
    return replace(training, backend="compiled" if faster else "vendor"), why
