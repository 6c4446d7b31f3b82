"""One layer and direction of any cell as ONNX nodes, made from the functions of the cell itself.

torch.onnx translates `project` and `step`. `project` runs once over all steps. `step` becomes the
body of one Scan, in which rows that have ended keep their state; the rest of the masks, and the
reversal, stay outside as in `translation`.

Source: https://onnx.ai/onnx/operators/onnx__Scan.html
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnx import ModelProto, numpy_helper
from onnxscript import evaluator, optimizer
from onnxscript import opset17 as op
from torch import Tensor, nn

from lstm_compile.export.write.functions import function_table
from lstm_compile.export.write.tracing import translated
from lstm_compile.export.write.translation import (
    RowHelpers,
    Value,
    flip,
    ints,
    is_zeros,
    row_helpers,
    time_of,
    zero,
    zeros,
)
from lstm_compile.recurrence.any_cell import EXAMPLE_SIZE, Cell, find_cell, run_step
from lstm_compile.recurrence.cell_operator import CellInputs

Shapes = tuple[tuple[int, ...], ...]
IN_BODY = "step/"  # no name outside begins like this
TRUE = numpy_helper.from_array(np.ones(1, np.bool_))
ROWS = 3  # of an example; torch.export takes a size of 1 for a constant


class CellProgram(nn.Module):
    """A function of a cell, with the parameters of a layer as inputs."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def named(self, weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """The parameters by their names."""
        return dict(zip(self.cell.shapes(1, EXAMPLE_SIZE), weights, strict=True))


class ProjectProgram(CellProgram):
    """The input's share of steps."""

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """`Cell.project`."""
        return self.cell.project(self.named(weights), x)


class StepProgram(CellProgram):
    """One step; rows that are not valid keep their state."""

    def forward(
        self, state: Sequence[Tensor], share: Tensor, valid: Tensor | None, weights: list[Tensor]
    ) -> list[Tensor]:
        """The new state and the output."""
        output, new = run_step(self.cell, self.named(weights), share, state)
        if valid is not None:
            # tract is wrong where the body reads its own output, so that is masked here
            new = [torch.where(valid, *parts) for parts in zip(new, state, strict=True)]
            output = torch.where(valid, output, 0.0)
        return [*new, output]


def scanned(call: CellInputs) -> list[Value]:
    """The output and the state after the last valid step of each row."""
    x: Value = call.x
    rows = None
    if call.lengths is not None:
        rows = row_helpers(x, call.lengths)
        x = op.Where(rows.valid, x, zero())
        valid = op.Transpose(rows.valid, perm=[1, 0, 2])
    else:
        # masked all the same: where two results of a body are one value, ONNX Runtime is wrong
        valid = op.ConstantOfShape(op.Concat(time_of(x), ints(1, 1), axis=0), value=TRUE)
    x = op.Transpose(_reversed(x, rows) if call.reverse else x, perm=[1, 0, 2])
    share, size = projected(call, x, len(call.x.shape))
    state = [rows_of_state(part, call.x) for part in call.state]
    sizes = tuple(map(_size, call.state))
    body = _step_graph(find_cell(call.cell), sizes, size, True, _shapes(call.weights))
    *state, y = _scan(body, [*state, share, valid], call.weights)
    y = op.Transpose(y, perm=[1, 0, 2])
    return [_reversed(y, rows) if call.reverse else y, *state]


def one_step(call: CellInputs) -> list[Value]:
    """The output and the state after the only step of each row, without loop or lengths."""
    x: Value = call.x
    share, size = projected(call, op.Squeeze(x, ints(1)), len(call.x.shape) - 1)
    sizes = tuple(map(_size, call.state))
    body = _step_graph(find_cell(call.cell), sizes, size, False, _shapes(call.weights))
    *state, y = _inlined(body, [*call.state, share, *call.weights])
    return [op.Unsqueeze(y, ints(1)), *state]


def projected(call: CellInputs, x: Value, rank: int) -> tuple[Value, int]:
    """The input's share of steps (..., any), for x (..., input_size) of a rank, and its size."""
    graph = _project_graph(find_cell(call.cell), rank, _size(call.x), _shapes(call.weights))
    size = _size(graph.outputs[0])
    return _inlined(graph, [x, *call.weights])[0], size


def rows_of_state(state: Value, batched: Value) -> Value:
    """`state` (batch, size) itself; zeros are made again, with their value written out."""
    if not is_zeros(state):
        return state
    batch = op.Shape(batched, start=0, end=1)
    return op.ConstantOfShape(op.Concat(batch, ints(_size(state)), axis=0), value=zeros(1))


def _reversed(x: Value, rows: RowHelpers | None) -> Value:
    return flip(x) if rows is None else op.GatherND(x, rows.reversal, batch_dims=1)


def _scan(body: ir.Graph, inputs: Sequence[Value], weights: Sequence[Value]) -> Sequence[Value]:
    _bind(body, [None] * len(inputs) + [*weights])
    _hoist(body)
    for index, value in enumerate([*body.inputs, *(v for node in body for v in node.outputs)]):
        value.name = f"{IN_BODY}{index}"
    for value in (*body.inputs, *body.outputs):  # tract takes two names of a size for two sizes
        value.shape = ir.Shape([None, _size(value)])
    attributes: Any = {"body": body, "num_scan_inputs": 2}
    node = ir.node("Scan", [*inputs], attributes, num_outputs=len(body.outputs))
    _record([node])
    return node.outputs


@lru_cache
def _project_proto(cell: Cell, rank: int, input_size: int, weights: Shapes) -> bytes:
    x = torch.zeros(*range(ROWS, ROWS + rank - 1), input_size, device="cpu")
    dynamic: Any = {axis: torch.export.Dim(f"axis{axis}", min=1) for axis in range(rank - 1)}
    return _proto(ProjectProgram(cell), (x, _zeros_of(weights)), (dynamic, [{}] * len(weights)))


@lru_cache
def _step_proto(
    cell: Cell, state: tuple[int, ...], share: int, masked: bool, weights: Shapes
) -> bytes:
    rows = {0: torch.export.Dim("rows", min=1)}
    parts = [torch.zeros(ROWS, size, device="cpu") for size in state]
    valid = torch.ones(ROWS, 1, dtype=torch.bool, device="cpu") if masked else None
    given = parts, torch.zeros(ROWS, share, device="cpu"), valid, _zeros_of(weights)
    dynamic: Any = [rows] * len(parts), rows, rows if masked else None, [{}] * len(weights)
    return _proto(StepProgram(cell), given, dynamic)


def _project_graph(*key: Any) -> ir.Graph:
    return _read_graph(_project_proto(*key))


def _step_graph(*key: Any) -> ir.Graph:
    return _read_graph(_step_proto(*key))


def _read_graph(data: bytes) -> ir.Graph:
    """A graph that may be changed."""
    graph: ir.Graph = ir.from_proto(ModelProto.FromString(data)).graph
    return graph


def _proto(program: nn.Module, inputs: tuple[Any, ...], dynamic: tuple[Any, ...]) -> bytes:
    with torch.no_grad():
        model = translated(program, inputs, dynamic, function_table())
    passes.InlinePass()(model)
    optimizer.optimize(model)
    _slice_weights(model.graph, {*model.graph.inputs[-len(inputs[-1]) :]})
    return bytes(ir.to_proto(model).SerializeToString())


def _slice_weights(graph: ir.Graph, fixed: set[Value]) -> None:
    """Slices in place of each Split of what depends on weights alone.

    Only nodes with one output are folded, and in OpenVINO a body reads only constants from outside.
    """
    fixed |= {*graph.initializers.values(), None}
    for node in [*graph]:
        if not fixed.issuperset(node.inputs):
            continue
        fixed |= {*node.outputs}
        if node.op_type == "Split":
            tape, axis, start = ir.tape.Tape(), int(node.attributes.get_int("axis", 0)), 0
            for output in node.outputs:
                end = start + int(output.shape[axis])
                limits = [tape.op("Constant", [], {"value_ints": [n]}) for n in (start, end, axis)]
                start = end
                part = tape.op("Slice", [node.inputs[0], *limits])
                part.shape, part.dtype = output.shape, output.dtype
                ir.convenience.replace_all_uses_with(output, part)
            graph.insert_after(node, tape.nodes)


def _zeros_of(shapes: Shapes) -> list[Tensor]:
    return [torch.zeros(shape, device="cpu") for shape in shapes]


def _inlined(graph: ir.Graph, inputs: Sequence[Value]) -> list[Value]:
    """Record the nodes of a graph with these inputs; its outputs."""
    _bind(graph, inputs)
    outputs, nodes = list(graph.outputs), list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    _record(nodes)
    return outputs


def _bind(graph: ir.Graph, inputs: Sequence[Value | None]) -> None:
    """Replace inputs of a graph by values outside; those of None stay."""
    for old, new in zip(list(graph.inputs), inputs, strict=True):
        if new is not None:
            ir.convenience.replace_all_uses_with(old, new)
            graph.inputs.remove(old)
    for name, value in list(graph.initializers.items()):
        node = ir.node("Constant", [], {"value": value.const_value})
        _record([node])
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        del graph.initializers[name]


def _hoist(body: ir.Graph) -> None:
    """Move what is the same at every step out of the body."""
    inner = set(body.inputs)
    for node in list(body):
        if inner.isdisjoint(node.inputs):
            body.remove(node)
            _record([node])
        else:
            inner |= set(node.outputs)


def _record(nodes: Sequence[ir.Node]) -> None:
    """Add nodes to the graph under construction, which gives them names."""
    for node in nodes:
        node.name = None
        for value in node.outputs:
            value.name = None
    evaluator.default().nodes.extend(nodes)  # type: ignore[attr-defined]


def _shapes(values: Sequence[Value]) -> Shapes:
    return tuple(tuple(map(int, value.shape)) for value in values)


def _size(value: Value) -> int:
    return int(value.shape[-1])
