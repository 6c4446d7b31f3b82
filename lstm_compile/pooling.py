"""From a sequence of vectors to one vector, over valid steps only.

`steps` is (batch, time, width) with zeros in the padding; every function gives (batch, width), and
zeros for a row of length 0.
"""

import torch
from torch import Tensor

from lstm_compile.config import Pooling
from lstm_compile.lengths import valid_mask


def pool(steps: Tensor, lengths: Tensor, kind: Pooling, weight: Tensor | None = None) -> Tensor:
    """Pool by `kind`; `weight` (width,) scores the steps of `attention`."""
    if steps.shape[1] == 0:
        return steps.new_zeros(steps.shape[0], steps.shape[2])
    valid = valid_mask(lengths, steps.shape[1])
    if kind == "last":
        return _last(steps, lengths)
    if kind == "mean":
        return steps.sum(1) / lengths.to(steps.dtype).clamp(min=1).unsqueeze(1)
    if kind == "max":
        return _max(steps, lengths, valid)
    query = _last(steps, lengths).unsqueeze(-1) if weight is None else weight.unsqueeze(-1)
    return _attend(steps, valid, query)


def _last(steps: Tensor, lengths: Tensor) -> Tensor:
    # a sum over a mask, not an index: an indexed read exports to a gather that few runtimes load
    step = torch.arange(steps.shape[1], device=steps.device)
    is_last = step == lengths.unsqueeze(1) - 1
    return torch.where(is_last.unsqueeze(2), steps, 0.0).sum(1)


def _max(steps: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
    lowest = torch.finfo(steps.dtype).min
    highest = torch.where(valid.unsqueeze(2), steps, lowest).amax(1)
    return torch.where((lengths > 0).unsqueeze(1), highest, 0.0)


def _attend(steps: Tensor, valid: Tensor, query: Tensor) -> Tensor:
    """Dot-product attention of `query` (width, 1) or (batch, width, 1), scaled by sqrt(width).

    Source: Vaswani et al. 2017, equation 1; Luong et al. 2015, section 3.1, `dot`.
    """
    scores = (steps @ query).squeeze(2) / steps.shape[-1] ** 0.5
    scores = torch.where(valid, scores, torch.finfo(steps.dtype).min)
    # padded steps are zeros: in a row with no valid step the uniform weights meet nothing else
    return (torch.softmax(scores, 1).unsqueeze(1) @ steps).squeeze(1)
