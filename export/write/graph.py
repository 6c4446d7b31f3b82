"""Passes over the graph that torch.onnx builds: everything is computed once, and weights never."""

from collections.abc import Collection
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import fold_constants

from lstm_compile.export.write.sequence_lens import merge_directions

NO_LIMIT = 1 << 62


def simplify(model: ir.Model, weights: Collection[str], merge: bool = False) -> onnx.ModelProto:
    """Compute what needs no input, and let equal nodes and equal constants be one.

    Args:
        model: as torch.onnx has just built it; changed in place.
        weights: names of the initializers that keep their names; no two of them become one.
        merge: whether the two LSTM nodes of a bidirectional layer become one.
    """
    passes.InlinePass()(model)
    _read_sizes_from_inputs(model.graph)
    _skip_what_changes_nothing(model.graph)
    if merge:
        passes.CommonSubexpressionEliminationPass()(model)
        merge_directions(model)
    fold_constants(model, input_size_limit=NO_LIMIT, output_size_limit=NO_LIMIT)
    ir.passes.Sequential(
        passes.IdentityEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )(model)
    _share_constants(model.graph, weights)
    ir.passes.Sequential(
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.ClearMetadataAndDocStringPass(),
    )(model)
    return ir.to_proto(model)


def _read_sizes_from_inputs(graph: ir.Graph) -> None:
    """Let every dynamic size be the size of a graph input, whatever tensor it was read off.

    Masks and reversal indices of all layers then have the same sources and become the same nodes.
    """
    for node in graph:
        source = _same_size_in_inputs(graph, node) if node.op_type == "Shape" else None
        if source:
            value, axis = source
            node.replace_input_with(0, value)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)


def _skip_what_changes_nothing(graph: ir.Graph) -> None:
    """A Max or Min of one tensor is that tensor; MNN does not know this form."""
    for node in graph:
        if node.op_type in ("Max", "Min") and len(node.inputs) == 1:
            (value,) = node.inputs
            assert value is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], value)


def _same_size_in_inputs(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, int] | None:
    size = _only_size(node)
    if size is None or isinstance(size, int):
        return None
    for value in graph.inputs:
        for axis, candidate in enumerate(value.shape or ()):
            if candidate == size:
                return value, axis
    return None


def _only_size(node: ir.Node) -> Any:
    """The one size that a Shape node reads, None where it reads several or unknown ones."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or not {"start", "end"} <= set(node.attributes):
        return None
    start, end = node.attributes["start"].as_int(), node.attributes["end"].as_int()
    return shape[start] if end == start + 1 else None


def _share_constants(graph: ir.Graph, weights: Collection[str]) -> None:
    operands = {value for node in graph if node.op_type == "LSTM" for value in node.inputs}
    known: dict[Any, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or name in weights or value in operands:
            continue
        first = known.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[name]
