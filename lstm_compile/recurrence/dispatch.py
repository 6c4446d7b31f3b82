"""The recurrence in plain eager code, where the forward may keep what the backward needs.

Backends other than `reference` have first-order reverse-mode derivatives only, and say so.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.recurrence import compiled, vendor
from lstm_compile.recurrence.autotune import choose, work_of
from lstm_compile.recurrence.first_order import differentiates, once, refuse, refuse_forward_mode
from lstm_compile.recurrence.inductor import can_compile
from lstm_compile.recurrence.lengths import extremes, reverse_within_length
from lstm_compile.recurrence.packed_rows import Packing, pack_rows
from lstm_compile.recurrence.reference import reference
from lstm_compile.recurrence.resets import Segments, begin, cut_rows
from lstm_compile.recurrence.weights import Direction
from lstm_compile.recurrence.whole_rows import Whole, whole_rows

Layers = Sequence[Sequence[Direction]]
Outputs = tuple[Tensor, Tensor, Tensor]
Cut = Callable[[Sequence[int]], list[tuple[int, int]]]


def run_eager(
    x: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    reverse: bool,
    backend: str,
    chunk: int,
) -> Outputs:
    """One layer and direction on plain tensors; arguments as in `recurrence.operator`."""
    layers = [[Direction(weight_ih, weight_hh, bias)]]
    h0, c0 = h0[None], c0[None]
    y, h, c = run_layers(layers, x, lengths, resets, h0, c0, (reverse,), 0.0, backend, chunk)
    return y, h[0], c[0]


def run_layers(
    layers: Layers,
    x: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    backwards: Sequence[bool],
    dropout: float,
    backend: str,
    chunk: int,
) -> Outputs:
    """A stack of layers on plain tensors.

    Args:
        layers: the weights by layer and direction.
        x: (batch, time, input_size).
        lengths: (batch,) int64 on any device, or None.
        resets: (batch, time) bool on any device, or None; then for one direction only.
        h0: (num_layers * num_directions, batch, hidden_size); with `resets` twice the batch, as
            `recurrence.resets.both_states` gives them.
        c0: likewise.
        backwards: for each direction of a layer whether it reads from the end.
        dropout: probability of dropping a value between layers.
        backend: `reference`, `compiled`, `vendor` or `auto`.
        chunk: of `compiled`.

    Returns:
        output (batch, time, num_directions * hidden_size) and the final state, each
        (num_layers * num_directions, batch, hidden_size).
    """
    with _without_autocast(x.device.type):
        if backend == "reference":
            return _by_steps(layers, x, lengths, resets, h0, c0, backwards, dropout)
        on_host = None if lengths is None else _on_host(lengths, x.shape[1])
        shortest, longest = _extremes(on_host, x)
        if longest == 0:
            resets = None if resets is None else resets[:, :1]
            y, h, c = _by_steps(layers, x[:, :1], lengths, resets, h0, c0, backwards, dropout)
            return pad(y, (0, 0, 0, x.shape[1] - y.shape[1])), h, c
        segments = None
        if resets is not None:
            segments = cut_rows(_or_full(on_host, x), resets.cpu())
            h0, c0, on_host = begin(h0, segments), begin(c0, segments), segments.lengths
            shortest, longest = extremes(on_host)
        rows = h0.shape[1]  # that run side by side
        tensors = (x, h0, c0, *_tensors(layers))
        training = differentiates(tensors)
        if backend == "auto":
            first = layers[0][0].weight_hh
            ragged = shortest != longest
            work = work_of(first, x.shape[2], rows, longest, ragged=ragged, training=training)
            backend, chunk, *_ = choose(work, first, chunk)
        if backend == "compiled" and can_compile(x.device.type):
            return _by_chunks(
                layers, x, on_host, segments, (shortest, longest), h0, c0, backwards, dropout, chunk
            )
        refuse_forward_mode(tensors, backend)
        return _by_vendor(
            layers, x, on_host, segments, (shortest, longest), h0, c0, backwards, dropout, training
        )


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    # to enter and leave torch.autocast takes as long as two small operations
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _on_host(lengths: Tensor, time: int) -> Tensor:
    """The lengths on the CPU; those that come from a device are not checked, and so clamped."""
    return lengths if lengths.device.type == "cpu" else lengths.cpu().clamp(0, time)


def _or_full(lengths: Tensor | None, x: Tensor) -> Tensor:
    return torch.full((x.shape[0],), x.shape[1]) if lengths is None else lengths


def _extremes(lengths: Tensor | None, x: Tensor) -> tuple[int, int]:
    """The shortest and the longest row of a batch."""
    if x.shape[0] == 0:
        return 0, 0
    return (x.shape[1], x.shape[1]) if lengths is None else extremes(lengths)


def _by_steps(
    layers: Layers,
    x: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    backwards: Sequence[bool],
    dropout: float,
) -> Outputs:
    """The plain loop over steps, any dtype and any derivative."""
    lengths = None if lengths is None else lengths.to(x.device)
    resets = None if resets is None else resets.to(x.device)

    def run(x: Tensor, weights: Direction, h0: Tensor, c0: Tensor) -> Outputs:
        matrices = weights.weight_ih, weights.weight_hh, weights.bias
        return reference(x, lengths, resets, *matrices, h0, c0)

    reverse = partial(reverse_within_length, lengths=lengths)
    return _stack(run, reverse, layers, x, h0, c0, backwards, dropout)


def _stack(
    run: Callable[[Tensor, Direction, Tensor, Tensor], Outputs],
    reverse: Callable[[Tensor], Tensor],
    layers: Layers,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    backwards: Sequence[bool],
    dropout: float,
) -> Outputs:
    """Layer after layer, direction beside direction, whatever `run` makes of one of them."""
    states: list[list[Tensor]] = []
    for depth, layer in enumerate(layers):
        x = torch.nn.functional.dropout(x, dropout) if depth and dropout else x
        outputs = []
        for weights, backward in zip(layer, backwards, strict=True):
            row = len(states)
            y, *state = run(reverse(x) if backward else x, weights, h0[row], c0[row])
            outputs.append(reverse(y) if backward else y)
            states.append(state)
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
    h, c = zip(*states, strict=True)
    return x, torch.stack(h), torch.stack(c)


def _dense(
    layers: Layers,
    x: Tensor,
    longest: int,
    h0: Tensor,
    c0: Tensor,
    backwards: Sequence[bool],
    dropout: float,
) -> Outputs:
    """Rows of one length in one call of the vendor's kernel."""
    time = x.shape[1]
    x = x if longest == time else x[:, :longest]
    alone = tuple(backwards) == (True,)
    y, h, c = vendor.run_dense(layers, x.flip(1) if alone else x, h0, c0, dropout)
    y = y.flip(1) if alone else y
    return y if longest == time else pad(y, (0, 0, 0, time - longest)), h, c


def _by_chunks(
    layers: Layers,
    x: Tensor,
    lengths: Tensor | None,
    segments: Segments | None,
    extremes: tuple[int, int],
    h0: Tensor,
    c0: Tensor,
    backwards: Sequence[bool],
    dropout: float,
    chunk: int,
) -> Outputs:
    """Compiled chunks: with rows left as they are where all end at once, or sorted by length."""
    cut: Cut = partial(compiled.chunks_of, chunk=chunk)
    (shortest, longest), least = extremes, compiled.MIN_ROWS
    if shortest == longest and segments is None and len(x) >= least:
        spans = cut([len(x)] * longest)
        plan = _as_it_stands(x, lengths, extremes, spans, backwards)
        return _planned(_chunked, plan, layers, x, h0, c0, backwards, dropout)
    return _packed(_chunked, cut, least, layers, x, lengths, segments, h0, c0, backwards, dropout)


def _by_vendor(
    layers: Layers,
    x: Tensor,
    lengths: Tensor | None,
    segments: Segments | None,
    extremes: tuple[int, int],
    h0: Tensor,
    c0: Tensor,
    backwards: Sequence[bool],
    dropout: float,
    training: bool,
) -> Outputs:
    """The vendor's kernel: in one call, with rows left as they are, or span by span."""
    (shortest, longest), (input_size, hidden_size) = extremes, (x.shape[2], h0.shape[2])
    is_cut = h0.shape[1] > len(x)
    if shortest == longest and not is_cut:
        if not training or vendor.fits_one_call(len(x), longest, hidden_size):
            return _dense(layers, x, longest, h0, c0, backwards, dropout)
    elif not is_cut:
        ends = _or_full(lengths, x)
        if vendor.keeps_ended_rows(ends, longest, input_size, hidden_size, training=training):
            plan = _as_it_stands(x, ends, extremes, [(0, longest)], backwards)
            return _planned(vendor.run_packed, plan, layers, x, h0, c0, backwards, dropout)
    cut = partial(vendor.spans_of, input_size=input_size, hidden_size=hidden_size)
    return _packed(
        vendor.run_packed, cut, 1, layers, x, lengths, segments, h0, c0, backwards, dropout
    )


def _packed(
    run: Callable[..., Outputs],
    cut: Cut,
    min_rows: int,
    layers: Layers,
    x: Tensor,
    lengths: Tensor | None,
    segments: Segments | None,
    h0: Tensor,
    c0: Tensor,
    backwards: Sequence[bool],
    dropout: float,
) -> Outputs:
    """Rows ordered by length; each span of time runs those that are still active."""
    packing = pack_rows(
        _or_full(lengths, x), x.shape[1], x.device, cut, min_rows=min_rows, mirror=any(backwards),
        segments=segments,
    )  # fmt: skip
    return _planned(run, packing, layers, x, h0, c0, backwards, dropout)


def _as_it_stands(
    x: Tensor,
    lengths: Tensor | None,
    extremes: tuple[int, int],
    spans: Sequence[tuple[int, int]],
    backwards: Sequence[bool],
) -> Whole:
    """Rows left in their own order, all of them through all steps."""
    lengths, mirror = _or_full(lengths, x), any(backwards)
    return whole_rows(lengths, *extremes, x.shape[1], x.device, spans, mirror=mirror)


def _planned(
    run: Callable[..., Outputs],
    packing: Packing | Whole,
    layers: Layers,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    backwards: Sequence[bool],
    dropout: float,
) -> Outputs:
    """The stack over a batch as it was planned."""
    h0, c0 = packing.arrange(h0), packing.arrange(c0)
    once = partial(run, packing)
    y, h, c = _stack(once, packing.reverse, layers, packing.pack(x), h0, c0, backwards, dropout)
    return packing.unpack(y), h, c


def _tensors(layers: Layers) -> list[Tensor]:
    return [tensor for layer in layers for one in layer for tensor in one.tensors()]


def _chunked(
    packing: Packing | Whole, x: Tensor, weights: Direction, h0: Tensor, c0: Tensor
) -> Outputs:
    """One layer, forward in time, by compiled chunks; shapes as in `recurrence.compiled.infer`."""
    tensors = (x, weights.weight_ih, weights.weight_hh, weights.bias, h0, c0)
    if differentiates(tensors):
        y, h, c = _Chunked.apply(packing, *tensors)  # type: ignore[no-untyped-call]
    else:
        y, h, c = compiled.infer(packing, *tensors)
    return y, packing.restore(h), packing.restore(c)


class _Chunked(torch.autograd.Function):
    """The compiled chunks in plain eager autograd: the forward keeps what the backward needs."""

    @staticmethod
    def forward(ctx: Any, packing: Packing | Whole, *tensors: Tensor) -> Outputs:
        outputs, tape = compiled.record(packing, *tensors)
        ctx.packing, ctx.counts = packing, [len(part) for part in tape]
        # gates and cells are saved, not kept: autograd lets go of them right after the backward
        ctx.save_for_backward(outputs[0], *tensors, *(step for part in tape for step in part))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # reading saved_tensors also refuses weights that were changed in place since the forward
        y, *saved = ctx.saved_tensors
        tensors, steps = saved[:6], iter(saved[6:])
        tape = compiled.Tape(*([next(steps) for _ in range(count)] for count in ctx.counts))
        x, weight_ih, weight_hh, _, h0, _ = tensors
        found = compiled.pull_back(
            ctx.packing, tape, y, x, weight_ih, weight_hh, h0, *gradients,
            of_x=ctx.needs_input_grad[1],
        )  # fmt: skip
        return None, *once("compiled", found, (*tensors, *gradients))

    @staticmethod
    def jvp(*_: Any) -> NoReturn:
        refuse("compiled")
