"""From a sequence of vectors to one vector, over valid steps only.

`steps` is (batch, time, width) with zeros in the padding; every function gives (batch, width), and
zeros for a row of length 0.
"""

import torch
from torch import Tensor

from lstm_compile.config import Pooling
from lstm_compile.lengths import last_valid, valid_mask


def pool(steps: Tensor, lengths: Tensor, kind: Pooling, weight: Tensor | None = None) -> Tensor:
    """Pool by `kind`; `weight` (width,) scores the steps of `attention`."""
    valid = valid_mask(lengths, steps.shape[1])
    if kind == "last":
        return _last(steps, lengths)
    if kind == "mean":
        return steps.sum(1) / lengths.clamp(min=1)[:, None].to(steps.dtype)
    if kind == "max":
        return _max(steps, valid)
    query = _last(steps, lengths) if weight is None else weight.expand(steps.shape[0], -1)
    return _attend(steps, valid, query)


def _last(steps: Tensor, lengths: Tensor) -> Tensor:
    return last_valid(steps, lengths, torch.zeros_like(steps[:, :1]).sum(1))


def _max(steps: Tensor, valid: Tensor) -> Tensor:
    lowest = torch.finfo(steps.dtype).min
    highest = torch.where(valid[..., None], steps, lowest).amax(1)
    return torch.where(valid.any(1, keepdim=True), highest, 0.0)


def _attend(steps: Tensor, valid: Tensor, query: Tensor) -> Tensor:
    """Dot-product attention of one query a row, scaled by the square root of the width.

    Source: Vaswani et al. 2017, equation 1; Luong et al. 2015, section 3.1, `dot`.
    """
    scores = (steps @ query[..., None]).squeeze(-1) / steps.shape[-1] ** 0.5
    scores = torch.where(valid, scores, torch.finfo(steps.dtype).min)
    # padded steps are zeros: in a row with no valid step the uniform weights meet nothing else
    return (torch.softmax(scores, 1)[:, None] @ steps).squeeze(1)
