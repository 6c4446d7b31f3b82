"""K steps of the cell unrolled, forward and backward: the pure functions that get compiled.

All steps look the same to the compiler, which then generates and compiles the code of one. For
this, the data of each step are tensors of their own, never slices at the step's offset. Lists hold
K tensors of n rows: `projected` (n, 4H) is the input's share of the gates, `masks` (n, 1) is True
where a step is valid. `h` and `c` (n, H) are the state before the chunk, `c` in the accumulator's
dtype; `weight` is W_hh (4H, H). The backward is derived by hand from the equations of
`lstm_compile.recurrence.cell`.
"""

import torch
from torch import Tensor

from lstm_compile.recurrence.gemm import add_step_product, step_product

Steps = list[Tensor]


def _tanh(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(2 * x) - 1  # half the cost of tanh on CPU, within 1e-7 of it


def _unroll(
    projected: Steps, masks: Steps, h: Tensor, c: Tensor, weight: Tensor
) -> tuple[Steps, Steps, Steps]:
    """The chunk's steps: hidden states, activated gates and cell states, K of each."""
    hidden, gates, cells = [], [], []
    for share, mask in zip(projected, masks, strict=True):
        i, f, g, o = add_step_product(share, h, weight).to(c.dtype).chunk(4, -1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), _tanh(g), torch.sigmoid(o)
        c = torch.where(mask, f * c + i * g, c)
        h = torch.where(mask, (o * _tanh(c)).to(h.dtype), h)
        hidden.append(h)
        gates.append(torch.cat([i, f, g, o], -1))
        cells.append(c)
    return hidden, gates, cells


def infer_chunk(
    projected: Steps, masks: Steps, h: Tensor, c: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """K steps: the hidden states (K, n, H) and the last cell state (n, H)."""
    hidden, _, cells = _unroll(projected, masks, h, c, weight)
    return torch.stack(hidden), cells[-1]


def record_chunk(
    projected: Steps, masks: Steps, h: Tensor, c: Tensor, weight: Tensor
) -> tuple[Tensor, Steps, Steps]:
    """K steps with all that the backward needs: hidden states (K, n, H), gates, cell states."""
    hidden, gates, cells = _unroll(projected, masks, h, c, weight)
    return torch.stack(hidden), gates, cells


def backward_chunk(
    grad_y: Steps,
    grad_h: Tensor,
    grad_c: Tensor,
    masks: Steps,
    gates: Steps,
    cells: Steps,
    weight: Tensor,
) -> tuple[Steps, Tensor, Tensor]:
    """Gradients of the K pre-activations (n, 4H) and of the state before the chunk.

    `grad_y` are K times (n, H); `grad_h` and `grad_c` (n, H) are those of the state after the
    chunk, in the accumulator's dtype. `gates` are K times (n, 4H), activated; `cells` are K + 1
    times (n, H), the first one before the chunk. `weight` is W_hh transposed, (H, 4H).
    """
    out: Steps = []
    for t in reversed(range(len(masks))):
        mask = masks[t]
        i, f, g, o = gates[t].chunk(4, -1)
        tanh_c = _tanh(cells[t + 1])
        total_h = torch.where(mask, grad_y[t] + grad_h, 0.0)
        total_c = torch.where(mask, grad_c + total_h * o * (1 - tanh_c * tanh_c), 0.0)
        parts = (
            total_c * g * i * (1 - i),
            total_c * cells[t] * f * (1 - f),
            total_c * i * (1 - g * g),
            total_h * tanh_c * o * (1 - o),
        )
        grad_gates = torch.cat(parts, -1).to(weight.dtype)
        grad_h = torch.where(mask, step_product(grad_gates, weight).to(grad_h.dtype), grad_h)
        grad_c = torch.where(mask, total_c * f, grad_c)
        out.append(grad_gates)
    return out[::-1], grad_h, grad_c
