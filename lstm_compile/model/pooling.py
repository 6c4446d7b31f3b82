"""Pooling: from a sequence of vectors to one vector, over valid steps only.

`steps` is (batch, time, width) with zeros in the padding; every function gives (batch, width), and
zeros for a row of length 0.
"""

import torch
from torch import Tensor

from lstm_compile.config import Pooling
from lstm_compile.recurrence.lengths import valid_mask


def pool(
    steps: Tensor, lengths: Tensor | None, kind: Pooling, weight: Tensor | None = None
) -> Tensor:
    """Pool by `kind`; `weight` (width,) scores the steps of `attention`.

    Without `lengths` every step is valid, and there is no mask.
    """
    if steps.shape[1] == 0:
        return steps.new_zeros(steps.shape[0], steps.shape[2])
    if kind == "last":
        return _last(steps, lengths)
    if kind == "mean":
        count = steps.shape[1] if lengths is None else _counts(steps, lengths)
        return steps.sum(1) / count
    if kind == "max":
        return steps.amax(1) if lengths is None else _max(steps, lengths)
    query = _last(steps, lengths).unsqueeze(-1) if weight is None else weight.unsqueeze(-1)
    return _attend(steps, lengths, query)


def _counts(steps: Tensor, lengths: Tensor) -> Tensor:
    return lengths.to(steps.dtype).clamp(min=1).unsqueeze(1)


def _last(steps: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return steps[:, -1]
    # a sum over a mask: an index would be exported as a gather, which few runtimes load
    step = torch.arange(steps.shape[1], device=steps.device)
    is_last = step == lengths.unsqueeze(1) - 1
    return torch.where(is_last.unsqueeze(2), steps, 0.0).sum(1)


def _max(steps: Tensor, lengths: Tensor) -> Tensor:
    lowest, valid = torch.finfo(steps.dtype).min, valid_mask(lengths, steps.shape[1])
    highest = torch.where(valid.unsqueeze(2), steps, lowest).amax(1)
    return torch.where((lengths > 0).unsqueeze(1), highest, 0.0)


def _attend(steps: Tensor, lengths: Tensor | None, query: Tensor) -> Tensor:
    """Dot-product attention of `query` (width, 1) or (batch, width, 1), scaled by sqrt(width).

    Source: Vaswani et al. 2017, equation 1; Luong et al. 2015, section 3.1, `dot`.
    """
    scores = (steps @ query).squeeze(2) / steps.shape[-1] ** 0.5
    if lengths is not None:
        valid = valid_mask(lengths, steps.shape[1])
        scores = torch.where(valid, scores, torch.finfo(steps.dtype).min)
    # a row with no valid step has uniform weights, but all its steps are zeros
    return (torch.softmax(scores, 1).unsqueeze(1) @ steps).squeeze(1)
