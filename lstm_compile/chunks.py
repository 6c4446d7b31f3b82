"""K steps of the cell unrolled, forward and backward: the pure functions that get compiled.

Time-major, n rows: `projected` (K, n, 4H) is the input's share of the gates, `mask` (K, n, 1) is
True where a step is valid, `h` and `c` (n, H) are the state the chunk begins with, `weight` (H, 4H)
is W_hh transposed. The backward is derived by hand from the equations of `lstm_compile.cell`.
"""

import torch
from torch import Tensor


def _tanh(x: Tensor) -> Tensor:
    return 2 * torch.sigmoid(2 * x) - 1  # half the cost of tanh on CPU, within 1e-7 of it


def _unroll(
    projected: Tensor, mask: Tensor, h: Tensor, c: Tensor, weight: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The chunk's steps: hidden states, activated gates and cell states, K of each."""
    hidden, gates, cells = [], [], []
    for t in range(mask.shape[0]):
        i, f, g, o = torch.addmm(projected[t], h, weight).to(c.dtype).chunk(4, -1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), _tanh(g), torch.sigmoid(o)
        c = torch.where(mask[t], f * c + i * g, c)
        h = torch.where(mask[t], (o * _tanh(c)).to(h.dtype), h)
        hidden.append(h)
        gates.append(torch.cat([i, f, g, o], -1))
        cells.append(c)
    return hidden, gates, cells


def infer_chunk(
    projected: Tensor, mask: Tensor, h: Tensor, c: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """K steps: the hidden states (K, n, H) and the last cell state (n, H)."""
    hidden, _, cells = _unroll(projected, mask, h, c, weight)
    return torch.stack(hidden), cells[-1]


def record_chunk(
    projected: Tensor, mask: Tensor, h: Tensor, c: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """K steps with all that the backward needs: hidden states, gates, cell states."""
    hidden, gates, cells = _unroll(projected, mask, h, c, weight)
    return torch.stack(hidden), torch.stack(gates), torch.stack(cells)


def backward_chunk(
    grad_y: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    mask: Tensor,
    gates: Tensor,
    cells: Tensor,
    c: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the pre-activations (K, n, 4H) and of the state the chunk began with."""
    out: list[Tensor] = []
    for t in reversed(range(mask.shape[0])):
        i, f, g, o = gates[t].chunk(4, -1)
        tanh_c = _tanh(cells[t])
        c_before = cells[t - 1] if t else c
        total_h = torch.where(mask[t], grad_y[t], 0.0) + grad_h
        total_c = grad_c + total_h * o * (1 - tanh_c * tanh_c)
        grad_gates = torch.cat(
            [
                total_c * g * i * (1 - i),
                total_c * c_before * f * (1 - f),
                total_c * i * (1 - g * g),
                total_h * tanh_c * o * (1 - o),
            ],
            -1,
        )
        grad_gates = torch.where(mask[t], grad_gates, 0.0).to(weight.dtype)
        grad_h = torch.where(mask[t], (grad_gates @ weight.t()).to(grad_h.dtype), grad_h)
        grad_c = torch.where(mask[t], total_c * f, grad_c)
        out.append(grad_gates)
    return torch.stack(out[::-1]), grad_h, grad_c
