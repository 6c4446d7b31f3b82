"""Backend `compiled` for any cell: packed rows as chunks of K unrolled steps under torch.compile.

Forward and backward come from the cell's step alone, see `lstm_compile.recurrence.step_graph`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lstm_compile.recurrence.any_cell import Cell, Shapes
from lstm_compile.recurrence.compiled import plain_mode, with_joining
from lstm_compile.recurrence.first_order import differentiates, once, refuse, refuse_batched
from lstm_compile.recurrence.inductor import compile_graph
from lstm_compile.recurrence.layout import CarriedState, Layout, Span, joined
from lstm_compile.recurrence.step_graph import (
    ROWS,
    Part,
    Stages,
    backward_stages,
    fake,
    forward_stages,
)

aten = torch.ops.aten
Values = dict[Node, Tensor]
Copies = dict[Node, Node]  # by the nodes that they are copies of
Run = Callable[..., Sequence[Tensor]]  # tensors in, tensors out


class Chunks:
    """The chunks of one cell in one size, dtype and device, of `steps` steps each."""

    def __init__(
        self, cell: Cell, params: Mapping[str, Tensor], rows: Sequence[Tensor], steps: int
    ) -> None:
        self.steps, self.parts = steps, len(rows) - 2
        self.forward = forward_stages(cell, params, rows)
        self.backward = backward_stages(cell, params, rows)
        inputs = self.backward.inputs[len(params) :]
        self.rows, (self.grad_output, *self.grad_state) = inputs[: len(rows)], inputs[len(rows) :]
        within, after = self.backward.parts[2:]
        # what is known of all steps before the gradients go from step to step, and what they leave
        self.known = [node for node in within.rows if node not in self.grad_state]
        left = [*after.rows, *self.backward.outputs[self.parts :]]
        self.left = [n for n in dict.fromkeys(left) if n in (*within.outputs, *self.grad_state)]

    def fixed(self, stages: Stages, params: Sequence[Tensor]) -> Values:
        """The parameters, and what is computed from them alone."""
        values = dict(zip(stages.inputs, params, strict=False))
        run = self._fixed_forward if stages is self.forward else self._fixed_backward
        return values | _run(stages.parts[0], values, run)

    @cached_property
    def _fixed_forward(self) -> Run:
        return _plain(self.forward.parts[0])

    @cached_property
    def _fixed_backward(self) -> Run:
        return _plain(self.backward.parts[0])

    @cached_property
    def infer(self) -> Run:
        """K steps: shares, masks, state, fixed -> outputs of all steps, state after the last."""
        return self._forward_chunk(is_recorded=False)

    @cached_property
    def record(self) -> Run:
        """The same, and between them the state after all steps, part by part."""
        return self._forward_chunk(is_recorded=True)

    def _forward_chunk(self, *, is_recorded: bool) -> Run:
        stages, part, builder = self.forward, self.forward.parts[1], Builder()
        share, valid, *state = stages.inputs[-2 - self.parts :]
        steps, values = builder.steps([share, valid], self.steps), builder.inputs(state)
        fixed = builder.inputs(part.fixed, has_rows=False)
        outputs, states = [], []
        for one in steps:
            answers = part.copy_into(builder.graph, fixed | one | values)
            output, *new = (answers[node] for node in stages.outputs)
            values = dict(zip(state, new, strict=True))
            outputs.append(output)
            states.append(new)
        columns = [builder.joined(column) for column in zip(*states, strict=True)]
        recorded = columns if is_recorded else []
        return builder.compiled([builder.joined(outputs), *recorded, *states[-1]])

    @cached_property
    def within(self) -> Run:
        """K steps from the last to the first: known, gradients of the state after, fixed -> ..."""
        part, builder, grad_state = self.backward.parts[2], Builder(), self.grad_state
        known, values = builder.steps(self.known, self.steps), builder.inputs(grad_state)
        fixed = builder.inputs(part.fixed, has_rows=False)
        found = []
        for one in reversed(known):
            answers = values | part.copy_into(builder.graph, fixed | one | values)
            found.append([answers[node] for node in self.left])
            new = [answers[node] for node in self.backward.outputs[: self.parts]]
            values = dict(zip(grad_state, new, strict=True))
        columns = [builder.joined(column) for column in zip(*found[::-1], strict=True)]
        return builder.compiled([*columns, *values.values()])

    @cached_property
    def before(self) -> Run:
        """What the gradients need of all steps: rows, fixed -> outputs of the part."""
        return self._all_rows(self.backward.parts[1])

    @cached_property
    def after(self) -> Run:
        """The gradients that remain, of all steps: rows, fixed -> outputs of the part."""
        return self._all_rows(self.backward.parts[3])

    def go_back(self, values: Values, grad_state: Sequence[Tensor], span: Span) -> list[Tensor]:
        """The gradients of the state before a chunk from those after it; adds all `values`."""
        _, before, within, after = self.backward.parts
        values |= _run(before, values, self.before)
        found = self.within(
            *(values[node].unflatten(0, (span.steps, span.rows)) for node in self.known),
            *grad_state,
            *(values[node] for node in within.fixed),
        )
        values |= zip(self.left, found[: -self.parts], strict=True)
        values |= _run(after, values, self.after)
        return list(found[-self.parts :])

    def _all_rows(self, part: Part) -> Run:
        builder = Builder()
        inputs = builder.inputs(part.rows) | builder.inputs(part.fixed, has_rows=False)
        return builder.compiled(list(part.copy_into(builder.graph, inputs).values()))


class Builder:
    """A graph in the making."""

    def __init__(self) -> None:
        self.graph, self.mode = Graph(), FakeTensorMode(shape_env=ShapeEnv())
        self.examples: list[Tensor] = []

    def inputs(self, nodes: Sequence[Node], *, has_rows: bool = True) -> Copies:
        """Add inputs like the values of `nodes`."""
        return {node: self._input(node, has_rows=has_rows) for node in nodes}

    def steps(self, nodes: Sequence[Node], count: int) -> list[Copies]:
        """Add inputs (count, rows, any), one for each of `nodes`; their values at each step."""
        whole, select = {node: self._input(node, count) for node in nodes}, aten.select.int
        return [
            {node: self.graph.call_function(select, (each, 0, k)) for node, each in whole.items()}
            for k in range(count)
        ]

    def _input(self, node: Node, count: int | None = None, *, has_rows: bool = True) -> Node:
        value = node.meta["val"]
        sizes = [ROWS, *map(int, value.shape[1:])] if has_rows else [*map(int, value.shape)]
        sizes[:0] = [] if count is None else [count]
        example = torch.zeros(sizes, dtype=value.dtype, device=value.device)
        rows_at = None if not has_rows else 0 if count is None else 1
        self.examples.append(fake(self.mode, example, rows_at=rows_at))
        return self.graph.placeholder(f"input_{len(self.examples)}")

    def joined(self, nodes: Sequence[Node]) -> Node:
        """The values of `nodes`, one after the other."""
        return self.graph.call_function(aten.cat.default, (list(nodes),))

    def compiled(self, outputs: Sequence[Node]) -> Run:
        """The graph as a compiled function."""
        self.graph.output(tuple(outputs))
        return compile_graph(self.graph, self.examples)


def run_layer(
    chunks: Chunks, layout: Layout, share: Tensor, state: Sequence[Tensor], params: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """One layer, forward in time.

    `share` is (packed, any), the parts of `state` are (rows, size) in packed order, `params` those
    that the step reads. Returns the output (packed, hidden_size), with anything in the padding, and
    the state after each row's last valid step, in the order of the batch.
    """
    tensors = share, *state, *params
    if differentiates(tensors):
        y, *final = _CellChunks.apply(layout, chunks, *tensors)  # type: ignore[no-untyped-call]
    else:
        y, final, _ = _forward(layout, chunks, tensors, is_recorded=False)
    return y, [layout.restore(part) for part in final]


class _CellChunks(torch.autograd.Function):
    """The chunks in plain eager autograd: the forward keeps the state after each step."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, chunks: Chunks, *tensors: Tensor) -> tuple[Tensor, ...]:
        y, final, states = _forward(layout, chunks, tensors, is_recorded=True)
        ctx.layout, ctx.chunks = layout, chunks
        ctx.save_for_backward(*tensors, *states)
        return y, *final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(gradients)
        count = len(ctx.saved_tensors) - ctx.chunks.parts
        tensors, states = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        results = _backward(ctx.layout, ctx.chunks, tensors, states, gradients)
        return None, None, *once("compiled", results, (*tensors, *gradients))

    @staticmethod
    def jvp(*_: Any) -> NoReturn:
        refuse("compiled")


def _forward(
    layout: Layout, chunks: Chunks, tensors: Sequence[Tensor], *, is_recorded: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output (packed, H), the final state (rows, size) each, and the states after all steps."""
    share, parts = tensors[0], chunks.parts
    outputs, columns = list[Tensor](), [list[Tensor]() for _ in range(parts)]
    with plain_mode(share.device.type):
        values = chunks.fixed(chunks.forward, tensors[1 + parts :])
        fixed = [values[node] for node in chunks.forward.parts[1].fixed]
        run = chunks.record if is_recorded else chunks.infer
        carried = CarriedState(*(part.contiguous() for part in tensors[1 : 1 + parts]))
        shares, masks = layout.pieces(share), layout.pieces(~layout.padding)
        for span, one, mask in zip(layout.spans, shares, masks, strict=True):
            y, *rest = run(one, mask, *carried.active(span.rows), *fixed)
            carried.state = rest[-parts:]
            outputs.append(y)
            for column, part in zip(columns, rest[:-parts], strict=is_recorded):
                column.append(part)
        final = [part.clone() for part in carried.final()]
    return joined(outputs), final, [joined(column) for column in columns if column]


def _backward(
    layout: Layout,
    chunks: Chunks,
    tensors: Sequence[Tensor],
    states: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Gradients of share, state and params, from those of the outputs."""
    (share, *state), params = tensors[: 1 + chunks.parts], tensors[1 + chunks.parts :]
    spans, outputs = layout.spans, chunks.backward.outputs[chunks.parts :]
    with plain_mode(share.device.type):
        fixed = chunks.fixed(chunks.backward, params)
        final = [part.contiguous() for part in gradients[1:]]
        carried = [part[:0] for part in final]
        masks, grad_y = layout.pieces(~layout.padding), layout.pieces(gradients[0].contiguous())
        grad_share, totals = torch.empty_like(share), [torch.zeros_like(p) for p in params]
        end = len(share)
        for number, span in reversed(list(enumerate(spans))):
            begin = end - span.size
            # the state with which the chunk begins
            last = begin - spans[number - 1].rows if number else 0
            starts = [part[last : last + span.rows] for part in (states if number else state)]
            before = [
                torch.cat([start, part[begin : end - span.rows]])
                for start, part in zip(starts, states, strict=True)
            ]
            rows = share[begin:end], masks[number].flatten(0, 1), *before
            values = fixed | dict(zip(chunks.rows, rows, strict=True))
            values[chunks.grad_output] = grad_y[number].flatten(0, 1)
            carried = chunks.go_back(values, with_joining(carried, final, span.rows), span)
            grad_share[begin:end], *of_params = (values[node] for node in outputs)
            for total, one in zip(totals, of_params, strict=True):
                total += one
            end = begin
        grad_state = with_joining(carried, final, len(final[0]))
    return grad_share, *grad_state, *totals


def _plain(part: Part) -> Run:
    """A part of what is computed from parameters alone, uncompiled."""
    graph = Graph()
    inputs = {node: graph.placeholder(node.name) for node in part.fixed}
    graph.output(tuple(part.copy_into(graph, inputs).values()))
    return GraphModule(torch.nn.Module(), graph)


def _run(part: Part, values: Mapping[Node, Tensor], run: Run) -> Values:
    """The outputs of a part, from `values` of all rows."""
    if not part.outputs:
        return {}
    answers = run(*(values[node] for node in (*part.rows, *part.fixed)))
    return dict(zip(part.outputs, answers, strict=True))


@cache
def read_params(cell: Cell, shapes: Shapes, sizes: tuple[int, ...]) -> tuple[str, ...]:
    """The names of the parameters that the step reads; arguments as for `chunks_for`."""
    params, rows = _examples(shapes, sizes, torch.float32, torch.device("cpu"))
    stages = forward_stages(cell, params, rows)
    read = {node for part in stages.parts for node in part.fixed}
    names = zip(params, stages.inputs, strict=False)
    return tuple(name for name, node in names if node in read)


@cache
def chunks_for(
    cell: Cell,
    shapes: Shapes,
    sizes: tuple[int, ...],
    steps: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Chunks:
    """Chunks for parameters of these shapes; `sizes` are those of a share and the state's parts."""
    return Chunks(cell, *_examples(shapes, sizes, dtype, device), steps)


def _examples(
    shapes: Shapes, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Parameters, and share, valid and state of `ROWS` rows."""
    params = {name: torch.zeros(shape, dtype=dtype, device=device) for name, shape in shapes}
    share, *state = (torch.zeros(ROWS, size, dtype=dtype, device=device) for size in sizes)
    return params, [share, torch.ones(ROWS, 1, dtype=torch.bool, device=device), *state]
