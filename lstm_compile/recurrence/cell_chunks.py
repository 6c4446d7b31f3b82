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
from lstm_compile.recurrence.step_graph import ROWS, Part, fake, step_graph

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
        self.graph = graph = step_graph(cell, params, rows)
        share_and_valid, (_, *grad_after) = graph.rows[:2], graph.gradients
        _, forward, within, after = graph.train
        # what the gradients need of the forward pass, step by step
        self.kept = [
            node
            for node in dict.fromkeys([*within.rows, *after.rows])
            if node in forward.outputs or node in graph.rows[2:]
        ]
        # what is known of all steps before the gradients go from step to step, and what they leave
        self.known = [node for node in within.rows if node not in grad_after]
        left = dict.fromkeys([*after.rows, *graph.grad_inputs])
        self.left = [node for node in left if node in (*within.outputs, *grad_after)]
        self.given = [*share_and_valid, graph.gradients[0]]

    def fixed(self, parts: Sequence[Part], params: Sequence[Tensor]) -> Values:
        """The parameters, and what is computed from them alone."""
        values = dict(zip(self.graph.params, params, strict=True))
        run = self._fixed_to_train if parts is self.graph.train else self._fixed_to_infer
        return values | _run(parts[0], values, run)

    @cached_property
    def _fixed_to_infer(self) -> Run:
        return _plain(self.graph.infer[0])

    @cached_property
    def _fixed_to_train(self) -> Run:
        return _plain(self.graph.train[0])

    @cached_property
    def infer(self) -> Run:
        """K steps: share, valid, state, fixed -> outputs of all steps, state after the last."""
        return self._forward_chunk(self.graph.infer[1], [])

    @cached_property
    def record(self) -> Run:
        """The same, and between them `kept` of all steps."""
        return self._forward_chunk(self.graph.train[1], self.kept)

    def _forward_chunk(self, part: Part, kept: Sequence[Node]) -> Run:
        builder, (share, valid, *state) = Builder(), self.graph.rows
        steps, values = builder.steps([share, valid], self.steps), builder.inputs(state)
        fixed, found = builder.inputs(part.fixed, has_rows=False), []
        output, *new = self.graph.answers
        for one in steps:
            answers = one | values | part.copy_into(builder.graph, fixed | one | values)
            found.append([answers[node] for node in (output, *kept)])
            values = {before: answers[after] for before, after in zip(state, new, strict=True)}
        columns = [builder.joined(column) for column in zip(*found, strict=True)]
        return builder.compiled([*columns, *values.values()])

    @cached_property
    def within(self) -> Run:
        """K steps from the last to the first: known, gradients of the state after, fixed -> ..."""
        part, builder, grad_after = self.graph.train[2], Builder(), self.graph.gradients[1:]
        known, values = builder.steps(self.known, self.steps), builder.inputs(grad_after)
        fixed, found = builder.inputs(part.fixed, has_rows=False), []
        for one in reversed(known):
            answers = values | part.copy_into(builder.graph, fixed | one | values)
            found.append([answers[node] for node in self.left])
            new = [answers[node] for node in self.graph.grad_state]
            values = dict(zip(grad_after, new, strict=True))
        columns = [builder.joined(column) for column in zip(*found[::-1], strict=True)]
        return builder.compiled([*columns, *values.values()])

    @cached_property
    def after(self) -> Run:
        """The gradients that remain, of all steps: rows, fixed -> outputs of the part."""
        builder, part = Builder(), self.graph.train[3]
        inputs = builder.inputs(part.rows) | builder.inputs(part.fixed, has_rows=False)
        return builder.compiled(list(part.copy_into(builder.graph, inputs).values()))

    def go_back(self, values: Values, grad_state: Sequence[Tensor], span: Span) -> list[Tensor]:
        """The gradients of the state before a chunk from those after it; adds all to `values`."""
        _, _, within, after = self.graph.train
        found = self.within(
            *(values[node].unflatten(0, (span.steps, span.rows)) for node in self.known),
            *grad_state,
            *(values[node] for node in within.fixed),
        )
        values |= zip(self.left, found[: -self.parts], strict=True)
        values |= _run(after, values, self.after)
        return list(found[-self.parts :])


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
    """The chunks in plain eager autograd: the forward keeps what the gradients need."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, chunks: Chunks, *tensors: Tensor) -> tuple[Tensor, ...]:
        y, final, kept = _forward(layout, chunks, tensors, is_recorded=True)
        ctx.layout, ctx.chunks = layout, chunks
        ctx.save_for_backward(*tensors, *kept)
        return y, *final

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batched(gradients)
        count = len(ctx.saved_tensors) - len(ctx.layout.spans) * len(ctx.chunks.kept)
        tensors, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        results = _backward(ctx.layout, ctx.chunks, tensors, kept, gradients)
        return None, None, *once("compiled", results, (*tensors, *gradients))

    @staticmethod
    def jvp(*_: Any) -> NoReturn:
        refuse("compiled")


def _forward(
    layout: Layout, chunks: Chunks, tensors: Sequence[Tensor], *, is_recorded: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Output (packed, H), the final state (rows, size) each, and what is kept, span by span."""
    share, parts = tensors[0], chunks.parts
    outputs, kept = list[Tensor](), list[Tensor]()
    stages = chunks.graph.train if is_recorded else chunks.graph.infer
    run = chunks.record if is_recorded else chunks.infer
    with plain_mode(share.device.type):
        values = chunks.fixed(stages, tensors[1 + parts :])
        fixed = [values[node] for node in stages[1].fixed]
        carried = CarriedState(*(part.contiguous() for part in tensors[1 : 1 + parts]))
        shares, masks = layout.pieces(share), layout.pieces(~layout.padding)
        for span, one, mask in zip(layout.spans, shares, masks, strict=True):
            y, *rest = run(one, mask, *carried.active(span.rows), *fixed)
            carried.state = rest[-parts:]
            outputs.append(y)
            kept += rest[:-parts]
        final = [part.clone() for part in carried.final()]
    return joined(outputs), final, kept


def _backward(
    layout: Layout,
    chunks: Chunks,
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Gradients of share, state and params, from those of the outputs."""
    share, params = tensors[0], tensors[1 + chunks.parts :]
    with plain_mode(share.device.type):
        fixed = chunks.fixed(chunks.graph.train, params)
        final = [part.contiguous() for part in gradients[1:]]
        carried = [part[:0] for part in final]
        rows = [share, ~layout.padding, gradients[0].contiguous()]
        pieces = [layout.pieces(each) for each in rows]
        grad_share, totals = torch.empty_like(share), [torch.zeros_like(p) for p in params]
        end, count = len(share), len(chunks.kept)
        for number, span in reversed(list(enumerate(layout.spans))):
            begin = end - span.size
            given = [piece[number].flatten(0, 1) for piece in pieces]
            values = fixed | dict(zip(chunks.given, given, strict=True))
            values |= zip(chunks.kept, kept[number * count :][:count], strict=True)
            carried = chunks.go_back(values, with_joining(carried, final, span.rows), span)
            grad_share[begin:end], *of_params = (values[node] for node in chunks.graph.grad_inputs)
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
    graph = step_graph(cell, params, rows)
    read = {node for part in graph.infer for node in part.fixed}
    return tuple(name for name, node in zip(params, graph.params, strict=True) if node in read)


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
