"""Backend `vendor` for the cell `gru`: PyTorch's own GRU operator, which is cuDNN's on CUDA."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lstm_compile.recurrence.dispatch import begun, dense, in_layout, packed
from lstm_compile.recurrence.first_order import mark_kernels, refuse_forward_mode
from lstm_compile.recurrence.layout import CarriedState, Layout, joined
from lstm_compile.recurrence.rows import Rows, pack_rows
from lstm_compile.recurrence.stack import is_jit_tracing
from lstm_compile.recurrence.vendor import GRAIN, layer_by_layer, one_buffer

NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def run_gru(call: Any, rows: Rows | None) -> Sequence[Tensor]:
    """A stack of GRU layers from a `CellCall`: one call of the operator for all rows."""
    if rows is None:  # sizes are tensors, and there are no lengths
        return dense(call, call.x.shape[1], call.x.shape[1], _run_at_once)
    call = call._replace(state=begun(call, rows))
    weights = [one[name] for layer in call.layers for one in layer for name in NAMES]
    refuse_forward_mode((call.x, *call.state, *weights), "vendor")
    if rows.shortest == rows.longest and rows.segments is None:
        return dense(call, rows.shape[1], rows.longest, _run_at_once)
    if call.x.device.type == "cuda":
        return packed(call, rows, _run_at_once)
    return in_layout(call, pack_rows(rows, _spans_of), _run_layer)  # type: ignore[no-any-return]


def _spans_of(active: Sequence[int]) -> list[tuple[int, int]]:
    """Spans (start, steps): ATen's steps are calls of their own, so that more spans cost little."""
    steps = range(0, len(active), GRAIN)
    cuts = [step for step in steps if not step or active[step] < active[step - GRAIN]]
    return [(begin, end - begin) for begin, end in zip(cuts, [*cuts[1:], len(active)], strict=True)]


def _run_layer(
    layout: Layout, x: Tensor, weights: Mapping[str, Tensor], h0: Tensor
) -> Sequence[Tensor]:
    """One layer, forward in time, one call for each span, as `vendor.run_layer`.

    The state is the output, so that rows that have ended may go on to the end of their span.
    """
    # the state of rows without a step may be anything, and would reach the weights' gradients
    empty = layout.empty if layout.spans[0].rows == len(h0) else None
    carried = CarriedState(h0 if empty is None else torch.where(empty, 0.0, h0))
    flat, outputs = [weights[name] for name in NAMES], list[Tensor]()
    for span, part in zip(layout.spans, layout.pieces(x), strict=True):
        (h,) = carried.active(span.rows)
        y, h = torch.gru(part, h[None], flat, True, 1, 0.0, torch.is_grad_enabled(), False, False)
        carried.state = [h[0]]
        outputs.append(y.flatten(0, 1))
    y = joined(outputs)
    return y, layout.last(y, h0)


def _run_at_once(call: Any, state: Sequence[Tensor], *inputs: Tensor) -> Sequence[Tensor]:
    """As `vendor.run_stack_at_once`."""
    on_cuda, (h0,) = call.x.device.type == "cuda", state
    if call.dropout and on_cuda:
        return layer_by_layer(_run_at_once, call, state, *inputs)
    weights = [one[name] for layer in call.layers for one in layer for name in NAMES]
    if on_cuda:
        weights = one_buffer(weights)
    train = call.dropout > 0 or torch.is_grad_enabled() or is_jit_tracing()
    options = [True, len(call.layers), call.dropout, train, len(call.layers[0]) == 2]
    options += [True] if len(inputs) == 1 else []  # batch_first
    run: Any = torch.gru  # its stub knows no unpacked arguments
    y, h = run(*inputs, h0.contiguous(), weights, *options)
    mark_kernels(y, int(on_cuda))
    return y, h
