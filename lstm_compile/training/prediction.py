"""A model over a whole data set, batch by batch."""

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import ordered_batches
from lstm_compile.data.examples import Examples
from lstm_compile.model import Params, complete
from lstm_compile.recurrence import DEFAULT_CHUNK, Backend
from lstm_compile.training.feeding import feed


def predict_all(
    params: Params,
    config: ModelConfig,
    data: Examples,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
    batch_size: int = 256,
) -> Tensor:
    """`complete` over a whole data set, (rows, ...), in the data's order."""
    lengths = data.lengths.cpu()
    batches = ordered_batches(lengths, batch_size)
    groups = [[indices] for indices in batches]
    with torch.inference_mode():
        parts = [
            complete(
                params, config, batch.x, batch.lengths,
                given=batch.given, backend=backend, chunk=chunk,
            )
            for (batch,) in feed(data, lengths, groups, params["head.weight"].device)
        ]  # fmt: skip
        return torch.cat(parts)[torch.argsort(torch.cat(batches)).to(parts[0].device)]
