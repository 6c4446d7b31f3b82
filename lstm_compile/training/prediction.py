"""A model over a whole data set, batch by batch."""

import torch
from torch import Tensor

from lstm_compile.config import STEPWISE, ModelConfig
from lstm_compile.data.batches import ordered_batches
from lstm_compile.data.examples import Examples
from lstm_compile.data.sequences import Batch, Sequences
from lstm_compile.lengths import valid_mask
from lstm_compile.model import Params, complete
from lstm_compile.recurrence import DEFAULT_CHUNK, Backend


def predict_all(
    params: Params,
    config: ModelConfig,
    data: Examples,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
    batch_size: int = 256,
) -> Tensor:
    """`complete` over a whole data set, (rows, ...), in the data's order.

    Where steps are answered, the rows are all steps of all sequences, one after another.
    """
    lengths = data.lengths.cpu()
    batches = ordered_batches(lengths, batch_size)
    with torch.inference_mode():
        parts = []
        for indices in batches:
            batch = gather_rows(data, lengths, indices)
            found = complete(
                params, config, batch.x, batch.lengths,
                given=batch.given, backend=backend, chunk=chunk,
            )  # fmt: skip
            if config.task in STEPWISE:
                found = found[valid_mask(batch.lengths, found.shape[1])]
            parts.append(found)
        order = torch.cat(batches)
        if config.task in STEPWISE:
            assert isinstance(data, Sequences)
            order = data.steps_of(order.to(data.x.device)).cpu()
        return torch.cat(parts)[torch.argsort(order).to(parts[0].device)]


def gather_rows(data: Examples, lengths: Tensor, indices: Tensor) -> Batch:
    """The batch at `indices`, int64 on the CPU; `lengths` are the data's, on the CPU too.

    Known there, the longest need not be asked of the device, which would wait for it.
    """
    return data.gather(indices.to(data.x.device), time=max(1, int(lengths[indices].max())))
