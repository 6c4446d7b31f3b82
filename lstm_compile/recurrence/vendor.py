"""Backend `vendor`: oneDNN or cuDNN through PyTorch's own LSTM operator, on dense rows."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lstm_compile.recurrence.cell import Outputs
from lstm_compile.recurrence.first_order import mark_kernels
from lstm_compile.recurrence.gemm import has_onednn
from lstm_compile.recurrence.layout import CarriedState, Layout, joined
from lstm_compile.recurrence.rows import Rows
from lstm_compile.recurrence.stack import Call, Direction, is_jit_tracing

# Saturates a sigmoid to exactly 0 or 1 in every dtype, float16 included.
SATURATED = 1e4

# What one more call of the kernel costs on each thread, as packed steps (the weights are laid out
# anew at each call) and as multiply-adds of the forward. Fitted with 1 and 2 threads of an AVX-512
# CPU, where one call costs the same, and a step of one row half as much with two.
CALL_STEPS = 50
CALL_PRODUCTS = 3e6

# The gates of one call in training on the CPU, in numbers: beyond this size, what the kernel keeps
# thrashes the caches.
LARGEST_CALL = 1 << 22
# What ordering the rows of a batch costs, in calls of the kernel.
ORDERING_CALLS = 3.0

LSTM_MODE = 2  # ATen's number for this kind of recurrent network
GRAIN = 8  # steps; a span ends at a multiple


def spans_of(active: Sequence[int], input_size: int, hidden_size: int) -> list[tuple[int, int]]:
    """Spans (start, steps): time is cut where ended rows would cost more than another call."""
    bearable = _call_cost(input_size, hidden_size)
    largest = LARGEST_CALL / (4 * hidden_size)
    cuts, wasted = [0], 0
    for step in range(GRAIN, len(active), GRAIN):
        rows = active[cuts[-1]]
        wasted += sum(rows - count for count in active[step - GRAIN : step])
        saved = (rows - active[step]) * (len(active) - step)
        if min(wasted, saved) >= bearable or (step - cuts[-1]) * rows >= largest:
            cuts, wasted = [*cuts, step], 0
    return [(begin, end - begin) for begin, end in zip(cuts, [*cuts[1:], len(active)], strict=True)]


def keeps_ended_rows(rows: Rows, input_size: int, hidden_size: int, *, training: bool) -> bool:
    """Whether it costs less to run ended rows to the end than to order rows and leave them out.

    In training the kernel keeps what the backward needs, and all must fit one call.
    """
    lengths: list[int] = rows.ends().tolist()
    if training and not fits_one_call(len(lengths), rows.longest, hidden_size):
        return False
    wasted = len(lengths) * rows.longest - sum(lengths)
    return wasted < ORDERING_CALLS * _call_cost(input_size, hidden_size)


def _call_cost(input_size: int, hidden_size: int) -> float:
    """What one more call of the kernel costs, in packed steps."""
    products = 4 * hidden_size * (hidden_size + input_size)  # of one row's step
    return torch.get_num_threads() * (CALL_STEPS + CALL_PRODUCTS / products)


def fits_one_call(batch: int, time: int, hidden_size: int) -> bool:
    """Whether all steps of a dense batch go into one call."""
    return batch * time * 4 * hidden_size <= LARGEST_CALL


def run_stack_at_once(call: Call, state: Sequence[Tensor], *inputs: Tensor) -> Sequence[Tensor]:
    """A whole stack in one call from `state`, over `inputs` in place of `call.x`.

    They are x (batch, time, input_size) of rows of one length, at least 1; or, packed, x (steps,
    input_size) and the number of rows at each step, int64 on the CPU, which cuDNN takes.

    On CUDA a stack with dropout takes one call a layer. cuDNN's own dropout keeps random numbers
    that cannot be saved, so that a resumed training would draw others.
    """
    if call.dropout and call.x.device.type == "cuda":
        return layer_by_layer(run_stack_at_once, call, state, *inputs)
    layers, sizes = call.layers, (len(call.layers), len(call.layers[0]) == 2)
    flat = [weight for layer in layers for one in layer for weight in one.flat()]
    h0, c0 = state
    return _call(flat, inputs, h0, c0, *sizes, call.dropout)


def layer_by_layer(
    run: Callable[..., Sequence[Tensor]],
    call: Any,
    state: Sequence[Tensor],
    x: Tensor,
    *sizes: Tensor,
) -> Sequence[Tensor]:
    """`run`, such as `run_stack_at_once`, one layer after the other, with dropout between them."""
    directions, states = len(call.layers[0]), []
    for depth, layer in enumerate(call.layers):
        x = torch.nn.functional.dropout(x, call.dropout) if depth else x
        rows = slice(depth * directions, (depth + 1) * directions)
        alone = call._replace(layers=[layer], dropout=0.0)
        x, *after = run(alone, [part[rows] for part in state], x, *sizes)
        states.append(after)
    return x, *(torch.cat(part) for part in zip(*states, strict=True))


def run_layer(layout: Layout, x: Tensor, weights: Direction, h0: Tensor, c0: Tensor) -> Outputs:
    """One layer, forward in time, one call for each span. Shapes as in `compiled.run_layer`.

    The library knows no lengths. One more input column, which is 1 in the padding, closes the input
    gate and opens the forget gate there. So the cell state stays as it is after a row's last valid
    step; the hidden state is read from the output at that step.
    """
    if layout.ragged:
        x = torch.cat([x, layout.padding], -1)
        matrix = weights.weight_ih
        column = _freezing_column(len(matrix) // 4, matrix.dtype, matrix.device)
        weights = weights._replace(weight_ih=torch.cat([matrix, column], 1))
    # rows without a step: their state may be anything, and would not stay as it is
    empty = layout.empty if layout.spans[0].rows == len(h0) else None
    start = [part if empty is None else torch.where(empty, 0.0, part) for part in (h0, c0)]
    flat, carried, outputs = weights.flat(), CarriedState(*start), list[Tensor]()
    for span, part in zip(layout.spans, layout.pieces(x), strict=True):
        y, *carried.state = _layer(flat, part, *carried.active(span.rows))
        outputs.append(y.flatten(0, 1))
    y = joined(outputs)
    h, c = map(layout.restore, carried.final())
    if empty is not None:
        c = torch.where(empty, c0, c)
    return y, layout.last(y, h0) if layout.ragged else h, c


@cache
def _freezing_column(hidden_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):
        column = torch.zeros(4, hidden_size, dtype=dtype, device=device)
        column[0], column[1] = -SATURATED, SATURATED
        return column.view(-1, 1)


def _layer(weights: list[Tensor], x: Tensor, h0: Tensor, c0: Tensor) -> Outputs:
    """One layer and direction over x (steps, rows, width) from h0 and c0 (rows, H)."""
    if not _is_onednns(weights, x):
        y, h, c = _call(weights, (x.transpose(0, 1),), h0[None], c0[None], 1, False, 0.0)
        return y.transpose(0, 1), h[0], c[0]
    # the call that torch.lstm ends in, without its overhead
    tensors = (tensor.contiguous() for tensor in (x, *weights, h0, c0))
    hidden, train = h0.shape[1], torch.is_grad_enabled()
    run: Any = torch.mkldnn_rnn_layer  # its stub knows no unpacked arguments
    y, h, c, _ = run(*tensors, False, [], LSTM_MODE, hidden, 1, True, False, False, train)
    mark_kernels(y, 1)
    return y, h, c


def _is_onednns(weights: list[Tensor], x: Tensor) -> bool:
    """Whether torch.lstm would compute the layer with oneDNN."""
    fits = x.is_cpu and x.dtype == torch.float32 and len(weights) == 4 and x.numel() > 0
    return fits and has_onednn() and torch._C._get_mkldnn_enabled()


def _call(
    weights: list[Tensor],
    inputs: tuple[Tensor, ...],
    h0: Tensor,
    c0: Tensor,
    num_layers: int,
    bidirectional: bool,
    dropout: float,
) -> Outputs:
    """PyTorch's own LSTM over x (batch, time, features), or over packed x and its sizes."""
    on_cuda, directions = h0.device.type == "cuda", num_layers * (2 if bidirectional else 1)
    if on_cuda:  # cuDNN refuses a state that is not contiguous
        weights, h0, c0 = one_buffer(weights), h0.contiguous(), c0.contiguous()
    has_biases = len(weights) == 4 * directions
    # a traced program keeps the flag, and may be trained later
    train = dropout > 0 or torch.is_grad_enabled() or is_jit_tracing()
    options = [has_biases, num_layers, dropout, train, bidirectional]
    options += [True] if len(inputs) == 1 else []  # batch_first
    run: Any = torch.lstm  # its stub knows no unpacked arguments
    y, h, c = run(*inputs, (h0, c0), weights, *options)
    mark_kernels(y, 1 if on_cuda else directions)
    return y, h, c


def one_buffer(weights: list[Tensor]) -> list[Tensor]:
    """Views of one contiguous buffer in cuDNN's own layout, so that it need not copy and warn.

    All weight matrices come first, in the order of layers and directions, then all biases. Without
    biases there is room for them, which cuDNN reads as zeros.
    """
    ordered = sorted(range(len(weights)), key=lambda index: weights[index].dim() == 1)
    parts = [weights[index].reshape(-1) for index in ordered]
    if all(weight.dim() > 1 for weight in weights):  # each matrix has as many rows as its bias
        parts.append(weights[0].new_zeros(sum(map(len, weights))))
    views = torch.cat(parts).split([len(part) for part in parts])
    by_index = dict(zip(ordered, views, strict=False))
    return [by_index[index].view(weight.shape) for index, weight in enumerate(weights)]
