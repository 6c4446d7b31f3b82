"""From what torch.onnx writes to the portable form: passes over the graph of one model."""

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants

from lstm_compile.errors import RunError
from lstm_compile.export.names import IR_VERSION, OPSET_VERSION, PRODUCER

NO_LIMIT = 1 << 62
REDUCTIONS_WITH_AXES_INPUT_SINCE_18 = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")


def to_portable(
    model: ir.Model, names: Mapping[str, str], nodes: list[str], metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Bring a model that torch.onnx has just built into the portable form.

    Args:
        model: changed in place; its inputs and outputs already have their names and shapes.
        names: the tensor names to write, by the names that torch.onnx gave to the weights.
        nodes: a name for each LSTM node, in the order of computation.
        metadata: what goes into metadata_props.

    Returns:
        a model of opset 17 and IR 8 in which all that depends on weights alone is computed.

    Raises:
        RunError: an operator that opset 17 does not know in this form.
    """
    graph = model.graph
    passes.InlinePass()(model)
    _read_sizes_from_inputs(graph)
    fold_constants(model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    ir.passes.Sequential(
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )(model)
    _share_constants(graph, names)
    ir.passes.Sequential(
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
    )(model)
    for node in graph:
        _lower(node)
    _rename(graph, names, nodes)
    return _serialized(model, metadata)


def _read_sizes_from_inputs(graph: ir.Graph) -> None:
    """Let every dynamic size be the size of a graph input, whatever tensor it was read off.

    Masks and reversal indices of all layers then come from the same nodes and are computed once.
    """
    for node in list(graph):
        if node.op_type != "Shape" or node.attributes.get_int("start", 0) is None:
            continue
        source = _same_size_in_inputs(graph, node)
        if source:
            value, axis = source
            node.replace_input_with(0, value)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)


def _same_size_in_inputs(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, int] | None:
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 0)
    shape = node.inputs[0].shape if node.inputs[0] else None
    if shape is None or end != start + 1 or isinstance(shape[start], int):
        return None
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if size == shape[start]:
                return value, axis
    return None


def _share_constants(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Let equal constants be one initializer; weights keep their own, equal or not."""
    operands = {value for node in graph if node.op_type == "LSTM" for value in node.inputs}
    known: dict[Any, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or name in names or value in operands:
            continue
        first = known.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[name]


def _lower(node: ir.Node) -> None:
    """Write `node` as opset 17 has it; torch.onnx writes opset 18 and newer."""
    if node.op_type in REDUCTIONS_WITH_AXES_INPUT_SINCE_18 and len(node.inputs) == 2:
        axes = node.inputs[1]
        values = None if axes is None or axes.const_value is None else axes.const_value.numpy()
        if values is None:
            raise RunError(f"ONNX export: {node.op_type} over computed axes is not in opset 17")
        node.resize_inputs(1)
        node.attributes["axes"] = ir.AttrInt64s("axes", values.tolist())
        node.attributes.pop("noop_with_empty_axes", None)
    elif node.domain or not _is_unchanged_since_17(node.op_type):
        raise RunError(
            f"ONNX export: operator {node.domain or 'ai.onnx'}::{node.op_type} is not one that "
            f"opset {OPSET_VERSION} has in this form; write the model with other operations"
        )


def _is_unchanged_since_17(op_type: str) -> bool:
    if not onnx.defs.has(op_type, OPSET_VERSION):
        return False
    written = onnx.defs.get_schema(op_type, 18).since_version
    return bool(onnx.defs.get_schema(op_type, OPSET_VERSION).since_version == written)


def _rename(graph: ir.Graph, names: Mapping[str, str], nodes: list[str]) -> None:
    """Give all nodes and tensors short names that do not change from one export to the next."""
    kept = {*graph.inputs, *graph.outputs}
    counts: dict[str, int] = {}
    lstm_nodes = iter(nodes)
    for node in graph:
        if node.op_type == "LSTM":
            _rename_lstm(node, next(lstm_nodes), names)
            continue
        number = counts[node.op_type] = counts.get(node.op_type, -1) + 1
        node.name = f"{node.op_type}_{number}"
        for value in node.outputs:
            value.shape = value.shape if value in kept else None
            value.name = value.name if value in kept else node.name
    _rename_initializers(graph, names)
