"""Which backend answers for a model."""

import torch

from lstm_compile.config import Backend, ModelConfig
from lstm_compile.recurrence.any_cell import find_cell
from lstm_compile.recurrence.calibrate import loop_seconds

# Compiling another cell takes some 10 seconds, to gain more than half of the plain loop's time.
LOOP_WORTH_COMPILING = 40.0


def evaluation_backend(
    config: ModelConfig, backend: Backend, steps: int, batch: int, device: torch.device
) -> Backend:
    """`backend`; in place of `auto` the plain loop of a cell that it does not pay to compile.

    `steps` are those of time that a layer takes in all, in batches of `batch` rows.
    """
    has_kernel = config.cell == "lstm" or "vendor" in find_cell(config.cell).kernels
    if backend != "auto" or (has_kernel and not config.zoneout):
        return backend
    cell = find_cell(config.cell)
    once = loop_seconds(cell, config.hidden_size, batch, device, training=False)
    total = once * steps * config.num_layers * config.num_directions
    return "reference" if total < LOOP_WORTH_COMPILING else "auto"
