"""Backend `reference`: a plain loop over time in any dtype, to which all others are compared."""

import torch
from torch import Tensor

from lstm_compile.recurrence.cell import Outputs, accumulator, lstm_step
from lstm_compile.recurrence.lengths import valid_mask, zero_padding
from lstm_compile.recurrence.stack import Direction


def reference(
    x: Tensor,
    weights: Direction,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> Outputs:
    """One layer, forward in time. Shapes as in `lstm_compile.recurrence.dispatch.OperatorInputs`.

    Differentiable to any order and in any mode, since it is nothing but PyTorch operations.
    """
    projected = zero_padding(x, lengths) @ weights.weight_ih.t() + weights.bias
    c0 = c0.to(accumulator(x.dtype))
    if resets is not None:
        resets = resets if lengths is None else resets & valid_mask(lengths, x.shape[1])
        (h0, reset_h), (c0, reset_c) = h0.chunk(2), c0.chunk(2)
    h, c = h0, c0
    outputs = []
    for t in range(x.shape[1]):
        if resets is not None:
            is_set_back = resets[:, t, None]
            h, c = torch.where(is_set_back, reset_h, h), torch.where(is_set_back, reset_c, c)
        if lengths is None:
            h, c = lstm_step(projected[:, t], h, c, weights.weight_hh)
            output = h
        else:
            valid = (t < lengths)[:, None]
            # no gradient goes through an ended row: its state may be NaN
            running_h, running_c = torch.where(valid, h, 0.0), torch.where(valid, c, 0.0)
            new_h, new_c = lstm_step(projected[:, t], running_h, running_c, weights.weight_hh)
            h, c = torch.where(valid, new_h, h), torch.where(valid, new_c, c)
            output = torch.where(valid, new_h, 0.0)
        outputs.append(output)
    if not outputs:
        return _no_steps(projected, h, c, weights, x.dtype)
    return torch.stack(outputs, 1), h, c.to(x.dtype)


def _no_steps(
    projected: Tensor, h: Tensor, c: Tensor, weights: Direction, dtype: torch.dtype
) -> Outputs:
    """Outputs of no step, which still lead a gradient (of zeros) to all that was given."""
    gates = projected + (h @ weights.weight_hh.t() + c.sum())[:, None]
    y = gates[..., : h.shape[1]]
    zeros = y.sum(1)
    return y.to(dtype), h + zeros, c.to(dtype) + zeros
