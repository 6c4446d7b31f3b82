"""Which backend a training run takes: settled once, before its first step."""

from dataclasses import replace
from math import ceil

import torch

from lstm_compile.config import ModelConfig
from lstm_compile.data.examples import Examples
from lstm_compile.data.stream import Stream
from lstm_compile.recurrence.autotune import CLEARLY, Workload
from lstm_compile.recurrence.calibrate import calibrate, vendor_seconds
from lstm_compile.recurrence.inductor import can_compile
from lstm_compile.training.settings import TrainingConfig

# Compiling takes some 20 seconds, measuring a few, and what they find is a gain of tenths at most.
WORTH_COMPILING = 300.0  # seconds in the recurrence


def settle_backend(
    config: ModelConfig, training: TrainingConfig, train: Examples | Stream, device: torch.device
) -> tuple[TrainingConfig, str]:
    """`training` with a backend in place of `auto`, and why it is that one.

    Args:
        config: the architecture.
        training: how to train; any backend but `auto` stays.
        train: what it is trained on.
        device: where.
    """
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
        why = f"at most {total:.0f} s in the recurrence do not pay for compiling"
        return replace(training, backend="vendor"), why
    found = calibrate(*sizes, ragged=ragged, training=True, device=device, chunk=training.chunk)
    why = f"measured {found.compiled:.3g} ms compiled, {found.vendor:.3g} ms vendor"
    faster = found.compiled <= CLEARLY * found.vendor
    return replace(training, backend="compiled" if faster else "vendor"), why
