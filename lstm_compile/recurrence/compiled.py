"""Backend `compiled`: packed rows as chunks of K unrolled steps under torch.compile.

A chunk is one graph for its hidden size, dtype and device, for any batch, time and input size. The
number of rows is a dynamic dimension. The products with the input weights stay outside the graph,
and so do the products that give the weight gradients: one for many steps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lstm_compile.recurrence.cell import Outputs, accumulator
from lstm_compile.recurrence.chunk import backward_chunk, infer_chunk, record_chunk
from lstm_compile.recurrence.first_order import differentiates, once, refuse, refuse_batched
from lstm_compile.recurrence.gemm import product
from lstm_compile.recurrence.inductor import compile_for
from lstm_compile.recurrence.layout import CarriedState, Layout, Span, joined
from lstm_compile.recurrence.stack import Direction

MIN_ROWS = 2  # a batch of 1 would specialise the graph's dynamic dimension


class LayerInputs(NamedTuple):
    """What one layer is computed from; the spans of its layout have at least MIN_ROWS rows."""

    x: Tensor  # (packed, input_size)
    weight_ih: Tensor  # (4 * hidden_size, input_size)
    weight_hh: Tensor  # (4 * hidden_size, hidden_size)
    bias: Tensor  # (4 * hidden_size,)
    h0: Tensor  # (rows, hidden_size), in packed order
    c0: Tensor  # likewise


class Tape(NamedTuple):
    """What the forward leaves for the backward, beside its output: lists over all chunks' steps.

    Their tensors have as many rows as their span.
    """

    gates: list[Tensor]  # for each step: (rows, 4H)
    cells: list[Tensor]  # K + 1 for each chunk: (rows, H), the first the one it began with


def chunks_of(active: Sequence[int], chunk: int) -> list[tuple[int, int]]:
    """The spans of `compiled`: (start, steps), all of `chunk` steps."""
    return [(start, chunk) for start in range(0, len(active), chunk)]


def run_layer(layout: Layout, x: Tensor, weights: Direction, h0: Tensor, c0: Tensor) -> Outputs:
    """One layer, forward in time.

    The arguments have the shapes of `LayerInputs`; the spans of `layout` all have one number of
    steps. Returns the output (packed, hidden_size), with anything in the padding, and the state h
    and c (batch, hidden_size) after each row's last valid step, in the order of the batch.
    """
    inputs = LayerInputs(x, *weights.summed(), h0, c0)
    if differentiates(inputs):
        y, h, c = _Chunks.apply(layout, *inputs)  # type: ignore[no-untyped-call]
    else:
        y, h, c = _forward(layout, inputs, None)
    return y, layout.restore(h), layout.restore(c)


class _Chunks(torch.autograd.Function):
    """The chunks in plain eager autograd: the forward keeps what the backward needs."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, *tensors: Tensor) -> Outputs:
        tape = Tape([], [])
        outputs = _forward(layout, LayerInputs(*tensors), tape)
        ctx.layout, ctx.counts = layout, [len(part) for part in tape]
        # gates and cells are saved, not kept: autograd lets go of them right after the backward
        ctx.save_for_backward(outputs[0], *tensors, *(step for part in tape for step in part))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(gradients)
        # reading saved_tensors also refuses weights that were changed in place since the forward
        y, *saved = ctx.saved_tensors
        inputs, steps = LayerInputs(*saved[:6]), iter(saved[6:])
        tape = Tape(*([next(steps) for _ in range(count)] for count in ctx.counts))
        of_x = ctx.needs_input_grad[1]
        results = _backward(ctx.layout, inputs, y, tape, gradients, of_x=of_x)
        return None, *once("compiled", results, (*inputs, *gradients))

    @staticmethod
    def jvp(*_: Any) -> NoReturn:
        refuse("compiled")


def _forward(layout: Layout, inputs: LayerInputs, tape: Tape | None) -> Outputs:
    """Output (packed, H), h and c (rows, H); a `tape` takes what `_backward` needs."""
    x, outputs = inputs.x, list[Tensor]()
    with plain_mode(x.device.type):
        run = _graph(infer_chunk if tape is None else record_chunk, layout, inputs.weight_hh)
        weight_hh = inputs.weight_hh.detach().contiguous()
        c0 = inputs.c0.to(accumulator(inputs.c0.dtype))
        carried = CarriedState(inputs.h0.contiguous(), c0.contiguous())
        for span, projected, masks in _walk(layout, inputs):
            h, c = carried.active(span.rows)
            if tape is None:
                y, last_c = run(projected, masks, h, c, weight_hh)
            else:
                y, gates, cells = run(projected, masks, h, c, weight_hh)
                tape.gates.extend(gates)
                tape.cells.extend([c, *cells])
                last_c = cells[-1]
            carried.state = [y[-1], last_c]
            outputs.append(y.flatten(0, 1))
        # copied, as the tape and y may share the memory of the state
        h, c = (part.to(x.dtype, copy=True) for part in carried.final())
        return joined(outputs), h, c


def _walk(layout: Layout, inputs: LayerInputs) -> Iterator[tuple[Span, list[Tensor], list[Tensor]]]:
    """Each span with its steps' shares of the gates, from one product, and their masks."""
    parts = inputs.x.split([span.size for span in layout.spans])
    masks = layout.pieces(~layout.padding)
    for span, part, mask in zip(layout.spans, parts, masks, strict=True):
        shares = product(part, inputs.weight_ih, inputs.bias).view(span.steps, span.rows, -1)
        yield span, list(shares.unbind()), list(mask.unbind())


def _backward(
    layout: Layout,
    inputs: LayerInputs,
    y: Tensor,
    tape: Tape,
    gradients: Sequence[Tensor],
    *,
    of_x: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of `inputs` from those of the outputs; that of x is None without `of_x`."""
    weight_hh, dtype, spans = inputs.weight_hh, inputs.x.dtype, layout.spans
    grad_y, *grad_state = gradients
    with plain_mode(inputs.x.device.type):
        sums = _Sums(spans, inputs, y, of_x=of_x)
        final = [part.to(accumulator(dtype)).contiguous() for part in grad_state]
        state = [part[:0] for part in final]
        run = _graph(backward_chunk, layout, weight_hh)
        transposed = weight_hh.t().contiguous()
        chunk = spans[0].steps
        masks = layout.pieces(~layout.padding)
        upstream = layout.pieces(grad_y.detach().contiguous())
        for number in reversed(range(len(spans))):
            first = number * chunk
            steps, *state = run(
                list(upstream[number].unbind()),
                *with_joining(state, final, spans[number].rows),
                list(masks[number].unbind()),
                tape.gates[first : first + chunk],
                tape.cells[first + number : first + number + chunk + 1],
                transposed,
            )
            sums.add(number, steps)
        grad_h0, grad_c0 = with_joining(state, final, len(final[0]))
        return *sums.total(), grad_h0.to(dtype), grad_c0.to(dtype)


def with_joining(state: list[Tensor], final: list[Tensor], rows: int) -> list[Tensor]:
    """Gradients of the state of the first `rows`; rows that end here join with their `final`."""
    begin = len(state[0])
    if begin == rows:
        return state
    return [torch.cat([one, last[begin:rows]]) for one, last in zip(state, final, strict=True)]


class _Sums:
    """Gradients of the input and the weights, in one product for as many chunks as fit a block.

    Long sequences take several: the gradients of all gates at once would be the largest tensor of
    a training step, and memory that is new each time.
    """

    BLOCK = 1 << 21  # numbers

    def __init__(
        self, spans: Sequence[Span], inputs: LayerInputs, y: Tensor, *, of_x: bool
    ) -> None:
        self.spans, self.inputs, self.y = spans, inputs, y
        self.grad_x = torch.empty_like(inputs.x) if of_x else None
        self.grad_ih = torch.zeros_like(inputs.weight_ih)
        self.grad_hh = torch.zeros_like(inputs.weight_hh)
        self.grad_bias = inputs.weight_ih.new_zeros(inputs.weight_ih.shape[0])
        self.begin = self.end = len(inputs.x)
        self.gates: list[Tensor] = []
        self.before: list[Tensor] = []  # the hidden state before each step

    def add(self, number: int, steps: list[Tensor]) -> None:
        """Add the gradients of chunk `number`'s gates; the last chunk comes first."""
        span = self.spans[number]
        end, self.begin = self.begin, self.begin - span.size
        # the hidden state before the chunk, whose first packed step is `begin`
        start = self.inputs.h0[: span.rows]
        if number:
            last = self.begin - self.spans[number - 1].rows
            start = self.y[last : last + span.rows]
        self.gates[:0] = steps
        self.before[:0] = [start, self.y[self.begin : end - span.rows]]
        if (self.end - self.begin) * len(self.inputs.weight_ih) >= self.BLOCK:
            self._flush()

    def total(self) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Gradients of x, weight_ih, weight_hh and bias."""
        self._flush()
        return self.grad_x, self.grad_ih, self.grad_hh, self.grad_bias

    def _flush(self) -> None:
        if not self.gates:
            return
        gates, block = torch.cat(self.gates), slice(self.begin, self.end)
        if self.grad_x is not None:
            self.grad_x[block] = product(gates, self.inputs.weight_ih.t())
        self.grad_ih += product(self.inputs.x[block].t(), gates.t()).t()
        self.grad_hh += product(torch.cat(self.before).t(), gates.t()).t()
        self.grad_bias += gates.sum(0)
        self.gates, self.before, self.end = [], [], self.begin


@contextmanager
def plain_mode(device_type: str) -> Iterator[None]:
    """The one global mode under which chunks run, as they were compiled for it."""
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        torch.autograd.forward_ad._set_fwd_grad_enabled(False),
        torch.autocast(device_type, enabled=False),
    ):
        yield


def _graph(function: Any, layout: Layout, weight_hh: Tensor) -> Callable[..., Any]:
    """The chunk's one graph, for any number of rows."""
    steps = layout.spans[0].steps
    return compile_for(function, weight_hh.shape[1], weight_hh.dtype, weight_hh.device, steps)
