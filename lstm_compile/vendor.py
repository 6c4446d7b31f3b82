"""Backend `vendor`: oneDNN or cuDNN through PyTorch's own LSTM operator, on dense rows."""

import torch
from torch import Tensor

from lstm_compile.lengths import last_valid, valid_mask

# Saturates a sigmoid to exactly 0 or 1 in every dtype, float16 included.
SATURATED = 1e4


def vendor(
    x: Tensor,
    lengths: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer, forward in time. Shapes as in `lstm_compile.recurrence`.

    The library knows no lengths. A further input column that is 1 in the padding closes the input
    gate and opens the forget gate there, so that the cell state stands still after a row's last
    valid step; the hidden state is read off the output at that step.
    """
    if x.shape[0] == 0 or x.shape[1] == 0:
        return x.new_zeros(*x.shape[:2], h0.shape[1]), h0.clone(), c0.clone()
    if lengths is None or (lengths.device.type == "cpu" and bool((lengths >= x.shape[1]).all())):
        return _dense(x, weight_ih, weight_hh, bias, h0, c0)
    valid = valid_mask(lengths, x.shape[1])[..., None]
    flagged = torch.cat([torch.where(valid, x, 0.0), (~valid).to(x.dtype)], -1)
    frozen = torch.cat([weight_ih, _freezing_column(weight_ih)], 1)
    y, _, c = _dense(flagged, frozen, weight_hh, bias, h0, c0)
    return torch.where(valid, y, 0.0), last_valid(y, lengths, h0), c


def _freezing_column(weight_ih: Tensor) -> Tensor:
    input_gate, forget_gate, cell_gate, output_gate = weight_ih.new_zeros(
        weight_ih.shape[0], 1
    ).chunk(4)
    return torch.cat([input_gate - SATURATED, forget_gate + SATURATED, cell_gate, output_gate])


def _dense(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, h0: Tensor, c0: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    weights = [weight_ih, weight_hh, bias, torch.zeros_like(bias)]
    if x.device.type == "cuda":
        weights = _one_buffer(weights)
    y, h, c = torch.lstm(
        x, (h0[None], c0[None]), weights, True, 1, 0.0, torch.is_grad_enabled(), False, True
    )
    return y, h[0], c[0]


def _one_buffer(weights: list[Tensor]) -> list[Tensor]:
    """Views of one contiguous buffer in cuDNN's own layout, so that it need not copy and warn."""
    flat = torch.cat([weight.reshape(-1) for weight in weights])
    parts = flat.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
