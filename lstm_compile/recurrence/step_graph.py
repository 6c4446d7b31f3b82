"""The graph of one step of a cell, forward and backward, cut where the sequence allows it.

The backward of a step is the vjp of the step itself. The operations of both fall into four parts:

    fixed    depends on parameters alone: computed once for all chunks
    forward  needs no gradient; what the others read of it is kept
    within   leads from the gradient of a step's state to that of the step before: step by step
    after    all else, the weights' gradients above all: one call for the rows of all steps

So what is computed step by step is the least, and every product with a weight that can be one large
product is one.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
DEAR = (  # pointwise operations that cost more than to read what they gave
    aten.sigmoid.default, aten.tanh.default, aten.exp.default, aten.exp2.default,
    aten.expm1.default, aten.log.default, aten.log1p.default, aten.log2.default, aten.erf.default,
    aten.pow.Tensor_Tensor, aten.sin.default, aten.cos.default, aten.gelu.default,
    aten.silu.default, aten.mish.default, aten.softplus.default, aten.elu.default,
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


class StepGraph(NamedTuple):
    """The graph of one step and of its vjp, cut into parts."""

    params: list[Node]  # inputs
    rows: list[Node]  # inputs: share, valid and the parts of the state
    gradients: list[Node]  # inputs: of the output and of the parts of the state after
    answers: list[Node]  # the output and the parts of the state after
    grad_state: list[Node]  # the gradients of the parts of the state before
    grad_inputs: list[Node]  # the gradients of the share and of the parameters
    infer: list[Part]  # fixed and forward, of the answers alone
    train: list[Part]  # fixed, forward, within, after


def step_graph(cell: Cell, params: Mapping[str, Tensor], rows: Sequence[Tensor]) -> StepGraph:
    """The graph of `masked_step` and its vjp, for any number of rows.

    `params` and `rows` (share, valid and the parts of the state, each of `ROWS` rows) are examples.
    """
    names, parts = list(params), len(rows) - 2

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        weights, (share, valid, *rest) = values[: len(names)], values[len(names) :]
        state, (grad_output, *grad_state) = rest[:parts], rest[parts:]

        def run(state: Sequence[Tensor], share: Tensor, weights: Sequence[Tensor]) -> Any:
            given = dict(zip(names, weights, strict=True))
            output, new = masked_step(cell, given, share, valid, state)
            return output, tuple(new)

        answers_and_pull: Any = vjp(run, tuple(state), share, tuple(weights))
        (output, new), pull = answers_and_pull
        before, grad_share, of_weights = pull((grad_output, tuple(grad_state)))
        return output, *new, *before, grad_share, *of_weights

    like = [torch.zeros_like(part) for part in (rows[2], *rows[2:])]
    graph = _trace(step, list(params.values()), [*rows, *like])
    inputs, outputs = _ends(graph)
    given, gradients = inputs[len(names) :][: len(rows)], inputs[-1 - parts :]
    answers, grad_state = outputs[: 1 + parts], outputs[1 + parts :][:parts]
    moving, late = _descendants(graph, [*given, *gradients]), _descendants(graph, gradients)
    early = _ancestors(grad_state)
    stage_of = {
        node: (2 if node in early else 3) if node in late else int(node in moving)
        for node in graph.nodes
    }
    return StepGraph(
        inputs[: len(names)], given, gradients, answers, grad_state, outputs[1 + 2 * parts :],
        _cut(graph, stage_of, answers)[:2], _cut(graph, stage_of, outputs),
    )  # fmt: skip


def _cut(graph: Graph, stage_of: Mapping[Node, int], outputs: Sequence[Node]) -> list[Part]:
    """Cut a graph at tensors that a stage reads from earlier ones; it computes the others anew."""
    needed = _ancestors(outputs)
    used = [node for node in graph.nodes if node in needed]
    whole = {node for node in used if stage_of[node] != 1 and _is_whole(node, stage_of[node])}
    whole |= _kept(used, stage_of)
    reads = [dict[Node, None]() for _ in range(4)]
    for node in used:
        stage = stage_of[node]
        for each in node.all_input_nodes:
            if each.op == "placeholder" or stage_of[each] < stage:
                reads[stage] |= dict.fromkeys(_bases(each, whole))
    asked, parts = {node for stage in reads for node in stage} | set(outputs), []
    for stage, read in enumerate(reads):
        rows = [node for node in read if stage_of[node]]
        fixed = [node for node in read if not stage_of[node]]
        own = [n for n in used if n in asked and n.op != "placeholder" and stage_of[n] == stage]
        parts.append(Part(graph, rows, fixed, own))
    return parts


def _kept(used: Sequence[Node], stage_of: Mapping[Node, int]) -> set[Node]:
    """What to keep of the forward part, so that the later parts can compute the rest cheaply.

    It is the minimum cut between what is dear to compute and what is read, by the sizes of the
    tensors, as keeping one costs a copy.
    """
    from networkx import DiGraph, minimum_cut  # torch depends on it

    flow = DiGraph()
    flow.add_nodes_from(("dear", "read"))
    for node in used:
        forward = [e for e in node.all_input_nodes if stage_of[e] == 1 and list(_tensors(e))]
        if stage_of[node] > 1:
            flow.add_edges_from(((each, "out"), "read") for each in forward)
        elif stage_of[node] == 1:
            joins = all(_joins(value, 1) for value in _tensors(node))
            can_keep = joins and isinstance(node.meta.get("val"), Tensor)
            cost = {"capacity": node.meta["val"][:1].numel()} if can_keep else {}
            flow.add_edge((node, "in"), (node, "out"), **cost)  # without a capacity: never cut
            flow.add_edges_from(((each, "out"), (node, "in")) for each in forward)
            if joins and not _is_cheap(node):
                flow.add_edge("dear", (node, "in"))
    _, (known, _) = minimum_cut(flow, "dear", "read")
    return {
        n for n in used if (n, "in") in known and (n, "out") in flow and (n, "out") not in known
    }


def _is_cheap(node: Node) -> bool:
    """Whether a value costs no more to compute than to read."""
    if node.op == "placeholder":
        return False
    if getattr(node.target, "__name__", "") == "getitem" or not node.all_input_nodes:
        return True
    tags = getattr(node.target, "tags", ())
    return node.target in VIEWS or (torch.Tag.pointwise in tags and node.target not in DEAR)


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


def _bases(node: Node, whole: Collection[Node]) -> Iterator[Node]:
    """The inputs and the tensors of `whole` that a value is computed from."""
    if node.op == "placeholder" or node in whole:
        yield node
    else:
        for each in node.all_input_nodes:
            yield from _bases(each, whole)


def _is_whole(node: Node, stage: int) -> bool:
    """Whether later stages read a value as it is: a tensor, but no view and no constant.

    A tensor whose first dimension is not that of rows is computed anew too: steps join there.
    """
    target: Any = node.target
    if getattr(target, "__name__", "") == "getitem":
        target = node.all_input_nodes[0].target
    has_inputs = bool(node.all_input_nodes)
    return has_inputs and target not in VIEWS and _joins(node.meta.get("val"), stage)


def _tensors(node: Node) -> Iterator[Tensor]:
    """The tensors that a node gives."""
    value = node.meta.get("val")
    yield from (v for v in (value if isinstance(value, tuple | list) else [value])
                if isinstance(v, Tensor))  # fmt: skip


def _is_free(size: int | torch.SymInt) -> bool:
    """Whether a size is any number, and neither a certain one nor computed from another."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.is_symbol)


def _joins(value: Any, stage: int) -> bool:
    """Whether a value is a tensor of parameters alone, or one with rows in dimension 0 alone."""
    if not isinstance(value, Tensor) or stage == 0:
        return isinstance(value, Tensor)
    first, *others = value.shape or (0,)
    return _is_free(first) and not any(isinstance(size, torch.SymInt) for size in others)
