"""The graph that torch.onnx builds, and passes that compute everything once, and weights never."""

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn

from lstm_compile.export.write.protobuf import TRACED_OPSET
from lstm_compile.export.write.sequence_lens import merge_directions
from lstm_compile.export.write.translation import Table

NO_LIMIT = 1 << 62


def translated(
    program: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[Any, ...], table: Table
) -> Any:
    """The graph of a program as torch.onnx makes it, for `graph.simplify`.

    `inputs` are examples; `shapes` are the dynamic axes of each, as torch.export takes them.
    """
    with quiet("torch.onnx"), warnings.catch_warnings():  # "torchvision is not installed"
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        result = torch.onnx.export(
            torch.export.export(program.eval(), inputs, dynamic_shapes=shapes),
            dynamo=True,
            verbose=False,
            optimize=False,
            external_data=False,
            opset_version=TRACED_OPSET,
            custom_translation_table=dict(table),
        )
    assert result is not None
    return result.model


@contextmanager
def quiet(library: str | None) -> Iterator[None]:
    """Hold back the log of a library below errors; None is the root logger."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def simplify(model: ir.Model, weights: Collection[str], merge: bool = False) -> onnx.ModelProto:
    """Fold what needs no input into constants, and merge equal nodes and equal constants.

    Args:
        model: as torch.onnx has just built it; changed in place.
        weights: names of the initializers that keep their names; no two of them are merged.
        merge: whether to merge the two LSTM nodes of a bidirectional layer.
    """
    passes.InlinePass()(model)
    _read_sizes_from_inputs(model.graph)
    _remove_identities(model.graph)
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
    """Read every dynamic size from a graph input, not from another tensor.

    Masks and reversal indices of all layers are then computed from the same tensors, and merged.
    """
    for node in [node for node in graph if node.op_type == "Shape"]:
        if source := _same_size_in_inputs(graph, node):
            value, axis = source
            node.replace_input_with(0, value)
            node.attributes["start"] = ir.AttrInt64("start", axis)
            node.attributes["end"] = ir.AttrInt64("end", axis + 1)


def _remove_identities(graph: ir.Graph) -> None:
    """Remove Max and Min of one tensor, which change nothing; MNN cannot convert them."""
    for node in graph:
        if node.op_type in ("Max", "Min") and len(node.inputs) == 1:
            (value,) = node.inputs
            assert value is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], value)


def _same_size_in_inputs(graph: ir.Graph, node: ir.Node) -> tuple[ir.Value, int] | None:
    """The graph input, and its axis, with the one dynamic size that a Shape node reads."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or not {"start", "end"} <= set(node.attributes):
        return None
    start, end = node.attributes["start"].as_int(), node.attributes["end"].as_int()
    if end != start + 1 or isinstance(shape[start], int):
        return None
    for value in graph.inputs:
        for axis, candidate in enumerate(value.shape or ()):
            if candidate == shape[start]:
                return value, axis
    return None


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
