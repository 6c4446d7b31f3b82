"""A model over a whole data set, batch by batch."""

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import ordered_batches
from lstm_compile.data.sequences import Sequences
from lstm_compile.model import Params, forward
from lstm_compile.recurrence import DEFAULT_CHUNK, Backend
from lstm_compile.training.feeding import feed


def predict_all(
    params: Params,
    config: ModelConfig,
    data: Sequences,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
    batch_size: int = 256,
) -> Tensor:
    """`forward` over a whole data set, (rows, output_size), in the data's order."""
    lengths = data.lengths.cpu()
    batches = ordered_batches(lengths, batch_size)
    groups = [[indices] for indices in batches]
    with torch.inference_mode():
        parts = [
            forward(params, config, batch.x, batch.lengths, backend=backend, chunk=chunk)[0]
            for (batch,) in feed(data, lengths, groups, params["head.weight"].device)
        ]
        return torch.cat(parts)[torch.argsort(torch.cat(batches)).to(parts[0].device)]
