"""Which backend runs a call in plain eager code, and in which layout of the rows.

In eager code the forward may keep what the backward needs. Backends other than `reference` have
first-order reverse-mode derivatives only, and raise beyond.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.recurrence import compiled, vendor
from lstm_compile.recurrence.autotune import Workload, choose
from lstm_compile.recurrence.cell import Outputs
from lstm_compile.recurrence.first_order import differentiates, refuse_forward_mode
from lstm_compile.recurrence.forked import check_threads
from lstm_compile.recurrence.inductor import can_compile
from lstm_compile.recurrence.layout import Layout
from lstm_compile.recurrence.lengths import (
    check_lengths,
    check_range,
    extremes,
    reverse_within_length,
)
from lstm_compile.recurrence.reference import reference
from lstm_compile.recurrence.resets import begin, cut_rows
from lstm_compile.recurrence.rows import Rows, pack_rows, whole_rows
from lstm_compile.recurrence.stack import Call, Direction, both_ways, is_jit_tracing, run_stack

# one layer, forward in time: from the layout, packed x, weights, h0 and c0
RunPacked = Callable[[Layout, Tensor, Direction, Tensor, Tensor], Outputs]
# a whole stack: from the call, the state, and x (batch, time, features), or packed x (steps,
# features) and the number of rows at each step, int64 on the CPU
RunAtOnce = Callable[..., Sequence[Tensor]]


class OperatorInputs(NamedTuple):
    """The inputs of `torch.ops.lstm_compile.recurrence`: one layer and direction."""

    x: Tensor  # (batch, time, input_size)
    lengths: Tensor | None  # (batch,) int64; None: every step is valid
    resets: Tensor | None  # (batch, time) bool, where the state is set back before the step
    weight_ih: Tensor  # (4 * hidden_size, input_size), gates in the order i, f, g, o
    weight_hh: Tensor  # (4 * hidden_size, hidden_size)
    bias: Tensor  # (4 * hidden_size,), the sum of nn.LSTM's two
    h0: Tensor  # (batch, hidden_size); with resets (2 * batch, hidden_size), see `Call`
    c0: Tensor  # likewise; not the same tensor as h0
    reverse: bool  # read each row from its last valid step to its first; not with resets
    backend: str
    chunk: int  # steps unrolled in one graph by `compiled`


def run_eager(*inputs: Any) -> Outputs:
    """One layer and direction on plain tensors, from `OperatorInputs`."""
    one = OperatorInputs(*inputs)
    layers, backwards = [[Direction(one.weight_ih, one.weight_hh, one.bias)]], (one.reverse,)
    state = one.h0[None], one.c0[None]
    options: dict[str, Any] = {"dropout": 0.0, "backend": one.backend, "chunk": one.chunk}
    y, h, c = run_layers(Call(layers, one.x, one.lengths, one.resets, state, backwards, **options))
    return y, h[0], c[0]


def run_layers(call: Call) -> Outputs:
    """The stack on plain tensors.

    Returns:
        output (batch, time, num_directions * hidden_size) and the final state, each
        (num_layers * num_directions, batch, hidden_size).
    """
    with without_autocast(call.x.device.type):
        if is_jit_tracing():  # sizes are tensors, and there are no lengths
            return _dense(call, call.x.shape[1], call.x.shape[1])
        if call.x.is_cpu and not torch.compiler.is_compiling():
            check_threads()
        if call.backend == "reference":
            return _by_steps(call)
        rows = rows_of(call)
        if rows.longest == 0:
            y, h, c = without_valid_steps(call, _by_steps)
            return y, h, c
        if rows.segments is not None:
            call = call._replace(state=begun(call, rows))
        training = differentiates(call.tensors())
        backend, chunk = call.backend, call.chunk
        if backend == "auto":
            backend, chunk, *_ = choose(_workload(call, rows, training), chunk)
        if backend == "compiled" and can_compile(call.x.device.type):
            return _by_chunks(call, rows, chunk)
        refuse_forward_mode(call.tensors(), backend)
        return _by_vendor(call, rows, training)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast switched off, if it is on."""
    # to enter and leave torch.autocast takes as long as two small operations
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def rows_of(call: Any) -> Rows:
    """The rows or segments of a call; lengths on a device were not checked, and are clamped."""
    x, lengths = call.x, call.lengths
    batch, time, _ = x.shape
    if lengths is not None and lengths.device.type != "cpu":
        lengths = lengths.cpu().clamp(0, time)
    if batch == 0:
        shortest = longest = 0
    else:
        shortest, longest = (time, time) if lengths is None else extremes(lengths)
        check_range(shortest, longest, time)  # again: compiled code could not
    rows = Rows(lengths, shortest, longest, (batch, time), x.device, any(call.backwards))
    if call.resets is None or longest == 0:
        return rows
    segments = cut_rows(rows.ends(), call.resets.cpu())
    shortest, longest = extremes(segments.lengths)
    return rows._replace(
        lengths=segments.lengths, shortest=shortest, longest=longest, segments=segments
    )


def begun(call: Any, rows: Rows) -> Sequence[Tensor]:
    """The initial state of each row, or of each segment that resets cut."""
    if rows.segments is None:
        return call.state  # type: ignore[no-any-return]
    return [begin(part, rows.segments) for part in call.state]


def _workload(call: Call, rows: Rows, training: bool) -> Workload:
    weight = call.layers[0][0].weight_hh
    sizes = weight.shape[1], call.x.shape[2], call.state[0].shape[1], rows.longest
    ragged = rows.shortest != rows.longest
    return Workload(*sizes, ragged, training, weight.device, weight.dtype)


def without_valid_steps(call: Any, by_steps: Callable[..., Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """The loop over the first step alone, if there is one: no row has a valid step."""
    resets = None if call.resets is None else call.resets[:, :1]
    y, *state = by_steps(call._replace(x=call.x[:, :1], resets=resets))
    return pad(y, (0, 0, 0, call.x.shape[1] - y.shape[1])), *state


def _by_steps(call: Call) -> Outputs:
    """The plain loop over steps, any dtype and any derivative."""
    device, time = call.x.device, call.x.shape[1]
    if call.lengths is not None:
        check_lengths(call.lengths, call.x.shape[0], time)  # again: compiled code could not
    lengths = None if call.lengths is None else call.lengths.to(device)
    resets = None if call.resets is None else call.resets.to(device)
    run = partial(reference, lengths=lengths, resets=resets)
    y, h, c = run_stack(call, both_ways(run, partial(reverse_within_length, lengths=lengths)))
    return y, h, c


def _by_chunks(call: Call, rows: Rows, chunk: int) -> Outputs:
    """Compiled chunks."""
    y, h, c = in_layout(call, chunked_layout(rows, chunk), compiled.run_layer)
    return y, h, c


def chunked_layout(rows: Rows, chunk: int) -> Layout:
    """The layout of chunks: rows in their order where all end at once, else ordered by length."""
    cut, batch = partial(compiled.chunks_of, chunk=chunk), rows.shape[0]
    all_end_at_once = rows.shortest == rows.longest and rows.segments is None
    if all_end_at_once and batch >= compiled.MIN_ROWS:
        return whole_rows(rows, cut([batch] * rows.longest))
    return pack_rows(rows, cut, min_rows=compiled.MIN_ROWS)


def _by_vendor(call: Call, rows: Rows, training: bool) -> Outputs:
    """The vendor's kernel: one call for the stack, one call a layer, or one call a span of time.

    cuDNN takes rows of different lengths, and a call of any size: there is always one.
    """
    (batch, time), longest = rows.shape, rows.longest
    _, states, hidden_size = call.state[0].shape
    input_size, is_cut, on_cuda = call.x.shape[2], states > batch, call.x.device.type == "cuda"
    if rows.shortest == longest and not is_cut:
        if not training or on_cuda or vendor.fits_one_call(batch, longest, hidden_size):
            return _dense(call, time, longest)
    elif on_cuda:
        y, h, c = packed(call, rows, vendor.run_stack_at_once)
        return y, h, c
    elif not is_cut and vendor.keeps_ended_rows(rows, input_size, hidden_size, training=training):
        y, h, c = in_layout(call, whole_rows(rows, [(0, longest)]), vendor.run_layer)
        return y, h, c
    cut = partial(vendor.spans_of, input_size=input_size, hidden_size=hidden_size)
    y, h, c = in_layout(call, pack_rows(rows, cut), vendor.run_layer)
    return y, h, c


def _dense(call: Call, time: int, longest: int) -> Outputs:
    y, h, c = dense(call, time, longest, vendor.run_stack_at_once)
    return y, h, c


def dense(call: Any, time: int, longest: int, run: RunAtOnce) -> Sequence[Tensor]:
    """Rows of one length in one call of a kernel."""
    x = call.x if longest == time else call.x[:, :longest]
    alone = tuple(call.backwards) == (True,)
    y, *state = run(call, call.state, x.flip(1) if alone else x)
    y = y.flip(1) if alone else y
    return y if longest == time else pad(y, (0, 0, 0, time - longest)), *state


def packed(call: Any, rows: Rows, run: RunAtOnce) -> Sequence[Tensor]:
    """Rows of any lengths in one call of a kernel, which is told the rows of each step.

    Such a kernel takes no row without a step: those keep their state.
    """
    layout = pack_rows(rows, lambda active: [(step, 1) for step in range(len(active))])
    active = layout.spans[0].rows
    sizes = torch.tensor([span.rows for span in layout.spans], device="cpu")
    before = [layout.arrange(part) for part in call.state]
    alone, x = tuple(call.backwards) == (True,), layout.pack(call.x)
    x = layout.reverse(x) if alone else x
    y, *after = run(call, [part[:, :active] for part in before], x, sizes)
    state = [torch.cat([new, old[:, active:]], 1) for new, old in zip(after, before, strict=True)]
    y = layout.unpack(layout.reverse(y) if alone else y)
    return y, *map(layout.restore, state)


def in_layout(call: Any, layout: Layout, run: Callable[..., Sequence[Tensor]]) -> Any:
    """The stack over packed rows; `run` computes one layer, forward in time."""
    x, state = layout.pack(call.x), [layout.arrange(part) for part in call.state]
    run_either = both_ways(partial(run, layout), layout.reverse)
    # not _replace, which takes longer
    alike = type(call)(call.layers, x, None, None, state, *call[5:])
    y, *final = run_stack(alike, run_either)
    return layout.unpack(y), *final
