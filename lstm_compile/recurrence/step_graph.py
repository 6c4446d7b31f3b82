"""The graphs of one step of a cell, forward and backward, cut where the sequence allows it.

The backward of a step is the vjp of the step itself. Its operations fall into three parts:

    before   needs no gradient: one call for the rows of all steps of a chunk
    within   leads from the gradient of a step's state to that of the step before: step by step
    after    all else, the weights' gradients above all: one call for the rows of all steps again

So what is computed step by step is the least, and every product with a weight that can be one large
product is one. What depends on parameters alone is computed once for all chunks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize, vjp
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from lstm_compile.errors import InputError
from lstm_compile.recurrence.any_cell import Cell, masked_step
from lstm_compile.recurrence.gemm import ONEDNN_WIDTH, has_onednn

aten = torch.ops.aten
ROWS = 5  # of the example; no size of a cell may be taken for it
VIEWS = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.split.Tensor,
    aten.split_with_sizes.default, aten.slice.Tensor, aten.select.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.expand.default, aten.t.default, aten.transpose.int, aten.permute.default,
    aten.alias.default, aten.detach.default,
)  # fmt: skip


class Part:
    """A part of a graph: a function from some of its values to others."""

    def __init__(
        self, graph: Graph, rows: Sequence[Node], fixed: Sequence[Node], outputs: Sequence[Node]
    ) -> None:
        self.rows, self.fixed = list(rows), list(fixed)  # inputs that have rows, and others
        self.outputs = list(outputs)
        needed = _ancestors(outputs, [*rows, *fixed])
        self.nodes = [n for n in graph.nodes if n in needed and n not in {*rows, *fixed}]

    def copy_into(self, graph: Graph, values: Mapping[Node, Node]) -> dict[Node, Node]:
        """Add the part to a graph, with `values` for its inputs; its outputs there."""
        copies = dict(values)
        for node in self.nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return {node: copies[node] for node in self.outputs}


class Stages(NamedTuple):
    """A graph cut into stages that are computed one after the other."""

    inputs: list[Node]  # of the graph
    outputs: list[Node]  # likewise
    parts: list[Part]


def cut(graph: Graph, stage_of: Mapping[Node, int], outputs: Sequence[Node]) -> Stages:
    """Cut a graph at the tensors that a stage reads from earlier ones; it makes views anew."""
    count = 1 + max(stage_of.values())
    used = [node for node in graph.nodes if node in _ancestors(outputs)]
    reads = [dict[Node, None]() for _ in range(count)]
    for node in used:
        stage = stage_of[node]
        for each in node.all_input_nodes:
            if each.op == "placeholder" or stage_of[each] < stage:
                reads[stage] |= dict.fromkeys(_bases(each, stage_of))
    asked, parts = {node for stage in reads for node in stage} | set(outputs), []
    for stage, read in enumerate(reads):
        rows = [node for node in read if stage_of[node]]
        fixed = [node for node in read if not stage_of[node]]
        own = [n for n in used if n in asked and n.op != "placeholder" and stage_of[n] == stage]
        parts.append(Part(graph, rows, fixed, own))
    return Stages(_ends(graph)[0], list(outputs), parts)


def forward_stages(cell: Cell, params: Mapping[str, Tensor], rows: Sequence[Tensor]) -> Stages:
    """Stages of one step: what depends on parameters alone, and the rest.

    `params` and `rows` (share, valid and the parts of the state, each of `ROWS` rows) are examples.
    The inputs are all of these, the outputs those of `masked_step`.
    """
    names = list(params)

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        given, (share, valid, *state) = dict(zip(names, values, strict=False)), values[len(names) :]
        output, new = masked_step(cell, given, share, valid, state)
        return output, *new

    graph = _trace(step, list(params.values()), rows)
    inputs, outputs = _ends(graph)
    moving = _descendants(graph, inputs[len(names) :])
    return cut(graph, {node: int(node in moving) for node in graph.nodes}, outputs)


def backward_stages(cell: Cell, params: Mapping[str, Tensor], rows: Sequence[Tensor]) -> Stages:
    """Stages of the vjp of one step: parameters alone, before, within and after.

    The inputs are `params`, `rows` and the gradients of the output and of the parts of the state;
    the outputs the gradients of the parts of the state before, of the share and of the parameters.
    """
    names, parts = list(params), len(rows) - 2

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        weights, (share, valid, *rest) = values[: len(names)], values[len(names) :]
        state, (grad_output, *grad_state) = rest[:parts], rest[parts:]

        def run(state: Sequence[Tensor], share: Tensor, weights: Sequence[Tensor]) -> Any:
            given = dict(zip(names, weights, strict=True))
            output, new = masked_step(cell, given, share, valid, state)
            return output, tuple(new)

        pull: Any = vjp(run, tuple(state), share, tuple(weights))[1]
        before, grad_share, of_weights = pull((grad_output, tuple(grad_state)))
        return *before, grad_share, *of_weights

    gradients = [torch.zeros_like(part) for part in (rows[2], *rows[2:])]
    graph = _trace(step, list(params.values()), [*rows, *gradients])
    inputs, outputs = _ends(graph)
    moving = _descendants(graph, inputs[len(names) :])
    late = _descendants(graph, inputs[len(names) + len(rows) :])
    early = _ancestors(outputs[:parts])
    stage_of = {
        node: (2 if node in early else 3) if node in late else int(node in moving)
        for node in graph.nodes
    }
    return cut(graph, stage_of, outputs)


def _trace(function: Callable[..., Any], params: Sequence[Tensor], rows: Sequence[Tensor]) -> Graph:
    """The graph of a function of parameters and rows, for any number of rows."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes = [fake(mode, each, rows_at=None) for each in params]
    fakes += [fake(mode, each, rows_at=0) for each in rows]
    traced = make_fx(functionalize(function, remove="mutations"), tracing_mode="symbolic")
    graph: Graph = traced(*fakes).graph
    if not _is_free(fakes[-1].shape[0]):
        raise InputError(
            "the number of rows becomes a constant; ask for x.shape[0], not for len(x)"
        )
    _use_fast_products(graph, _descendants(graph, _ends(graph)[0][len(params) :]))
    graph.eliminate_dead_code()
    return graph


def fake(mode: FakeTensorMode, tensor: Tensor, *, rows_at: int | None) -> Tensor:
    """A tensor without numbers; its size at `rows_at` is that of all others, and any number."""
    sizes = [DimDynamic.STATIC] * tensor.dim()
    if rows_at is not None:
        sizes[rows_at] = DimDynamic.DUCK
    context: Any = StatelessSymbolicContext(sizes)
    return mode.from_tensor(tensor, symbolic_context=context)


def _use_fast_products(graph: Graph, moving: set[Node]) -> None:
    """Products of large matrices by `lstm_compile.recurrence.gemm.product`.

    It takes the second matrix transposed. Where that is not `moving`, so that it is computed once,
    it is laid out anew.
    """
    for node in list(graph.nodes):
        if node.target is not aten.mm.default or not _pays(node):
            continue
        x, y = node.args
        with graph.inserting_before(node):
            is_turned = y.target is aten.t.default
            weight = y.args[0] if is_turned else _add(graph, aten.t.default, y, y.meta["val"].t())
            if y not in moving and not weight.meta["val"].is_contiguous():
                value = weight.meta["val"].contiguous()
                weight = _add(graph, aten.clone.default, weight, value)
                weight.kwargs = {"memory_format": torch.contiguous_format}
            new = graph.call_function(torch.ops.lstm_compile.product.default, (x, weight))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _add(graph: Graph, operator: Any, node: Node, value: Tensor) -> Node:
    new = graph.call_function(operator, (node,))
    new.meta["val"] = value
    return new


def _pays(node: Node) -> bool:
    value = node.meta["val"]
    if value.device.type != "cpu" or value.dtype != torch.float32 or not has_onednn():
        return False
    sizes = [size for each in node.all_input_nodes for size in each.meta["val"].shape]
    return all(size >= ONEDNN_WIDTH for size in sizes if isinstance(size, int))


def _ends(graph: Graph) -> tuple[list[Node], list[Node]]:
    """The inputs and the outputs of a graph."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    (last,) = (node for node in graph.nodes if node.op == "output")
    return inputs, list(last.args[0])


def _ancestors(nodes: Iterable[Node], stop: Iterable[Node] = ()) -> set[Node]:
    """The nodes and all that they are computed from, up to and with those of `stop`."""
    found, waiting, ends = set[Node](), list(nodes), set(stop)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [] if node in ends else node.all_input_nodes
    return found


def _descendants(graph: Graph, nodes: Iterable[Node]) -> set[Node]:
    """The nodes and all that is computed from them."""
    found = set(nodes)
    for node in graph.nodes:
        if any(each in found for each in node.all_input_nodes):
            found.add(node)
    return found


def _bases(node: Node, stage_of: Mapping[Node, int]) -> Iterator[Node]:
    """The tensors that a value is read from: itself, unless it is a view, a size or a constant.

    A tensor whose first dimension is not that of rows is computed anew too: steps join there.
    """
    target: Any = node.target
    if getattr(target, "__name__", "") == "getitem":
        target = node.all_input_nodes[0].target
    is_whole = target not in VIEWS and _joins(node.meta.get("val"), stage_of[node])
    if node.op == "placeholder" or (is_whole and node.all_input_nodes):
        yield node
    else:
        for each in node.all_input_nodes:
            yield from _bases(each, stage_of)


def _is_free(size: int | torch.SymInt) -> bool:
    """Whether a size is any number, and neither a certain one nor computed from another."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.is_symbol)


def _joins(value: Any, stage: int) -> bool:
    """Whether a value is a tensor of parameters alone, or one with rows in dimension 0 alone."""
    if not isinstance(value, Tensor) or stage == 0:
        return isinstance(value, Tensor)
    first, *others = value.shape or (0,)
    return _is_free(first) and not any(isinstance(size, torch.SymInt) for size in others)
