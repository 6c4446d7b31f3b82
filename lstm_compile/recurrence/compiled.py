"""Backend `compiled`: packed rows as chunks of K unrolled steps under torch.compile.

A chunk is one graph for its hidden size, dtype and device, whatever the batch, time and input size
are: the rows are a dynamic dimension, and the products with the input weights stay outside, as do
those of the weight gradients, one for the whole sequence.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_compile.recurrence.cell import accumulator
from lstm_compile.recurrence.chunk import backward_chunk, infer_chunk, record_chunk
from lstm_compile.recurrence.gemm import product
from lstm_compile.recurrence.inductor import compiled
from lstm_compile.recurrence.packed_rows import Carried, Packing, Span, joined
from lstm_compile.recurrence.whole_rows import Whole

Outputs = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor]

MIN_ROWS = 2  # a batch of 1 would specialise the graph's dynamic dimension


class Tape(NamedTuple):
    """What the forward leaves for the backward, beside its output: lists over all chunks' steps.

    Their tensors have as many rows as their span.
    """

    gates: list[Tensor]  # a step each: (rows, 4H)
    cells: list[Tensor]  # K + 1 a chunk: (rows, H), the first the one it began with


def chunks_of(active: Sequence[int], chunk: int) -> list[tuple[int, int]]:
    """The spans of `compiled`: (start, steps), all of `chunk` steps."""
    return [(start, chunk) for start in range(0, len(active), chunk)]


def infer(
    packing: Packing | Whole,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
) -> Outputs:
    """One layer, forward in time, saving nothing.

    Args:
        packing: of spans that all have one number of steps and at least MIN_ROWS rows.
        x: (packed, input_size).
        weight_ih: (4 * hidden_size, input_size).
        weight_hh: (4 * hidden_size, hidden_size).
        bias: (4 * hidden_size,).
        h0: (rows, hidden_size), in packed order.
        c0: likewise.

    Returns:
        y (packed, hidden_size), anything in the padding, and the state after each row's last valid
        step, h and c (rows, hidden_size).
    """
    outputs = list[Tensor]()
    with _plain_mode(x.device.type):
        run = _compiled(infer_chunk, packing, weight_hh)
        weight_hh = weight_hh.detach().contiguous()
        carried = _carried(h0, c0)
        for span, projected, masks in _walk(packing, x, weight_ih, bias):
            y, c = run(projected, masks, *carried.active(span.rows), weight_hh)
            carried.state = [y[-1], c]
            outputs.append(y.flatten(0, 1))
        return joined(outputs), *_final(carried, x.dtype)


def record(
    packing: Packing | Whole,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
) -> tuple[Outputs, Tape]:
    """The same outputs as `infer`, and what `pull_back` needs."""
    outputs, tape = list[Tensor](), Tape([], [])
    with _plain_mode(x.device.type):
        run = _compiled(record_chunk, packing, weight_hh)
        weight_hh = weight_hh.detach().contiguous()
        carried = _carried(h0, c0)
        for span, projected, masks in _walk(packing, x, weight_ih, bias):
            h, c = carried.active(span.rows)
            y, gates, cells = run(projected, masks, h, c, weight_hh)
            carried.state = [y[-1], cells[-1]]
            tape.gates.extend(gates)
            tape.cells.extend([c, *cells])
            outputs.append(y.flatten(0, 1))
        return (joined(outputs), *_final(carried, x.dtype)), tape


def pull_back(
    packing: Packing | Whole,
    tape: Tape,
    y: Tensor,
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    grad_y: Tensor,
    grad_h: Tensor,
    grad_c: Tensor,
    *,
    of_x: bool,
) -> Gradients:
    """Gradients of x, weight_ih, weight_hh, bias, h0 and c0 from those of `record`'s outputs.

    That of x is None without `of_x`.
    """
    with _plain_mode(x.device.type):
        sums = _Sums(packing.spans, x, y, weight_ih, weight_hh, h0, of_x=of_x)
        last = [part.to(accumulator(x.dtype)).contiguous() for part in (grad_h, grad_c)]
        found = [part[:0] for part in last]
        run = _compiled(backward_chunk, packing, weight_hh)
        transposed = weight_hh.t().contiguous()
        chunk = packing.spans[0].steps
        masks = packing.pieces(~packing.padding)
        upstream = packing.pieces(grad_y.detach().contiguous())
        for number in reversed(range(len(packing.spans))):
            first = number * chunk
            steps, *found = run(
                list(upstream[number].unbind()),
                *_grown(found, last, packing.spans[number].rows),
                list(masks[number].unbind()),
                tape.gates[first : first + chunk],
                tape.cells[first + number : first + number + chunk + 1],
                transposed,
            )
            sums.add(number, steps)
        grad_h, grad_c = _grown(found, last, len(grad_h))
        return (*sums.total(), grad_h.to(x.dtype), grad_c.to(x.dtype))


def _grown(found: list[Tensor], last: list[Tensor], rows: int) -> list[Tensor]:
    """The first `rows` gradients (rows, H): as found, and at their last step of those that join."""
    begin = len(found[0])
    if begin == rows:
        return found
    return [torch.cat([one, other[begin:rows]]) for one, other in zip(found, last, strict=True)]


class _Sums:
    """Gradients of the input and the weights, in one product for as many chunks as fit a block.

    Long sequences take several: the gradients of all gates at once would be the largest tensor of
    a training step, and memory that is new each time.
    """

    BLOCK = 1 << 21  # numbers

    def __init__(
        self,
        spans: Sequence[Span],
        x: Tensor,
        y: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        h0: Tensor,
        *,
        of_x: bool,
    ) -> None:
        self.spans, self.x, self.y, self.weight_ih, self.h0 = spans, x, y, weight_ih, h0
        self.grad_x = torch.empty_like(x) if of_x else None
        self.grad_ih, self.grad_hh = torch.zeros_like(weight_ih), torch.zeros_like(weight_hh)
        self.grad_bias = weight_ih.new_zeros(weight_ih.shape[0])
        self.begin = self.end = len(x)
        self.gates: list[Tensor] = []
        self.before: list[Tensor] = []  # the hidden state before each step

    def add(self, number: int, steps: list[Tensor]) -> None:
        """Take in the gradients of chunk `number`'s gates; the last chunk first."""
        span = self.spans[number]
        end, self.begin = self.begin, self.begin - span.size
        self.gates[:0] = steps
        self.before[:0] = [self._start(number), self.y[self.begin : end - span.rows]]
        if (self.end - self.begin) * len(self.weight_ih) >= self.BLOCK:
            self._flush()

    def _start(self, number: int) -> Tensor:
        """The hidden state (rows, H) that the chunk beginning at `begin` began with."""
        rows = self.spans[number].rows
        if number == 0:
            return self.h0[:rows]
        last = self.begin - self.spans[number - 1].rows
        return self.y[last : last + rows]

    def total(self) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Gradients of x, weight_ih, weight_hh and bias."""
        self._flush()
        return self.grad_x, self.grad_ih, self.grad_hh, self.grad_bias

    def _flush(self) -> None:
        if not self.gates:
            return
        gates, block = torch.cat(self.gates), slice(self.begin, self.end)
        if self.grad_x is not None:
            self.grad_x[block] = product(gates, self.weight_ih.t())
        self.grad_ih += product(self.x[block].t(), gates.t()).t()
        self.grad_hh += product(torch.cat(self.before).t(), gates.t()).t()
        self.grad_bias += gates.sum(0)
        self.gates, self.before, self.end = [], [], self.begin


@contextmanager
def _plain_mode(device_type: str) -> Iterator[None]:
    """The one global mode under which chunks run, as they were compiled for it."""
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        torch.autograd.forward_ad._set_fwd_grad_enabled(False),
        torch.autocast(device_type, enabled=False),
    ):
        yield


def _carried(h0: Tensor, c0: Tensor) -> Carried:
    return Carried(h0.contiguous(), c0.to(accumulator(c0.dtype)).contiguous())


def _final(carried: Carried, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The state as the caller gets it, in memory of its own: the tape and y may share the other."""
    h, c = carried.final()
    return h.to(dtype, copy=True), c.to(dtype, copy=True)


def _walk(
    packing: Packing | Whole, x: Tensor, weight_ih: Tensor, bias: Tensor
) -> Iterator[tuple[Span, list[Tensor], list[Tensor]]]:
    """Each span with its steps' shares of the gates, from one product, and their masks."""
    parts = x.split([span.size for span in packing.spans])
    masks = packing.pieces(~packing.padding)
    for span, part, mask in zip(packing.spans, parts, masks, strict=True):
        shares = product(part, weight_ih, bias).view(span.steps, span.rows, -1)
        yield span, list(shares.unbind()), list(mask.unbind())


def _compiled(function: Any, packing: Packing | Whole, weight_hh: Tensor) -> Callable[..., Any]:
    """The chunk's one graph, for any number of rows."""
    steps = packing.spans[0].steps
    return compiled(function, weight_hh.shape[1], weight_hh.dtype, weight_hh.device, steps)
