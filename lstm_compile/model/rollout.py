"""The recursive decoder: one step ahead, appended to the window, until the horizon is reached."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.config import ModelConfig
from lstm_compile.model.batch import Given

Step = Callable[[Tensor, Tensor, Given], Tensor]  # x, lengths, given -> (batch, 1, targets)


def roll_out(step: Step, config: ModelConfig, x: Tensor, lengths: Tensor, given: Given) -> Tensor:
    """Forecast step by step, each forecast a step of the next window.

    Args:
        step: the model, one step ahead.
        config: gives the horizon; every feature is a target or known.
        x: (batch, time, features).
        lengths: (batch,) int64.
        given: `known_future` of the whole horizon.

    Returns:
        (batch, horizon, targets).
    """
    rows = torch.arange(len(x), device=x.device)
    x = torch.cat([x, x.new_zeros(len(x), config.horizon, x.shape[2])], 1)
    parts = []
    for ahead in range(config.horizon):
        known = given.known_future
        now = None if known is None else known[:, ahead : ahead + 1]
        time = x.shape[1] - config.horizon + ahead
        y = step(x[:, :time], lengths + ahead, given._replace(known_future=now))
        parts.append(y)
        row = torch.cat([y[:, 0], *([] if now is None else [now[:, 0]])], 1)
        # what is left is the indicator of gaps
        x[rows, lengths + ahead] = pad(row, (0, x.shape[2] - row.shape[1]))
    return torch.cat(parts, 1)
