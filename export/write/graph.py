"""From a program to its file: torch.onnx builds the graph, passes simplify it, then names are set.

The passes compute everything once, and weights never. The file has opset 17, readable names and
metadata.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper
from onnxscript.optimizer import fold_constants

from lstm_compile.errors import RunError
from lstm_compile.export.names import IR_VERSION, OPSET_VERSION, PRODUCER
from lstm_compile.export.write.sequence_lens import merge_directions
from lstm_compile.export.write.tracing import OPSET

NO_LIMIT = 1 << 62
AXES_BECAME_AN_INPUT = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")
GREW_AN_INPUT = {"Pad": 3}  # how many inputs opset 17 knows; with these the meaning is the same
LSTM_OPERANDS = {1: "weight_ih", 2: "weight_hh", 3: "bias", 7: "peephole"}
LSTM_RESULTS = {"LSTM": ("y", "h", "c"), "GRU": ("y", "h")}
LAYERS = (*LSTM_RESULTS, "Scan")  # what runs a layer


class Shown(NamedTuple):
    """Names for inputs, outputs and tensors, in place of those that torch.onnx generates."""

    inputs: list[onnx.ValueInfoProto]
    outputs: list[onnx.ValueInfoProto]
    weights: Mapping[str, str]  # new names of initializers by their present names
    reshaped: Mapping[bytes, str]  # names of initializers that folding has reshaped, by their bytes
    layers: list[str]  # a name for each node that runs a layer, in order, such as `l0_reverse`


def simplify(model: ir.Model, weights: Collection[str], merge: bool = False) -> ModelProto:
    """Fold what needs no input into constants, and merge equal nodes and equal constants.

    The model is changed in place. The initializers `weights` keep their names: no two of them are
    merged. `merge` merges the two LSTM nodes of a bidirectional layer.
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
        passes.LiftSubgraphInitializersToMainGraphPass(),
    )(model)
    _write_out_defaults(model.graph)
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


def _write_out_defaults(graph: ir.Graph) -> None:
    """Give each ConstantOfShape its value: tract, MNN and OpenCV need it."""
    for node in graph.all_nodes():
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, np.float32)))


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
    operands = {value for node in graph if node.op_type in LSTM_RESULTS for value in node.inputs}
    known: dict[Any, ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or name in weights or value in operands:
            continue
        first = known.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[name]


def to_portable(model: ModelProto, shown: Shown, metadata: Mapping[str, str]) -> ModelProto:
    """A model of opset 17 and IR 8 with names that are the same in every export.

    `model` has opset 18 and the default domain only; no tensor may depend on weights alone.

    Raises:
        RunError: opset 17 has no such operator.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    graph = model.graph
    for node in _all_nodes(graph):
        _lower(node, tensors)
    names = _node_names(graph.node, shown.layers) | dict(shown.weights)
    values = zip((*graph.input, *graph.output), (*shown.inputs, *shown.outputs), strict=True)
    names |= {old.name: new.name for old, new in values}
    names |= _constant_names(graph, names, shown.reshaped)
    nodes = [_renamed(node, names) for node in graph.node]
    used = {name for node in nodes for name in _read(node)}
    weights = [
        numpy_helper.from_array(numpy_helper.to_array(tensor), names[name])
        for name, tensor in tensors.items()
        if names[name] in used
    ]
    result = helper.make_model(
        helper.make_graph(nodes, PRODUCER, shown.inputs, shown.outputs, weights),
        producer_name=PRODUCER,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET_VERSION)],
    )
    helper.set_model_props(result, dict(metadata))
    return result


def _body(node: NodeProto) -> GraphProto | None:
    """The graph inside a Scan."""
    return next((each.g for each in node.attribute if each.name == "body"), None)


def _all_nodes(graph: GraphProto) -> list[NodeProto]:
    """The nodes of a graph, and those in the bodies of its Scans."""
    bodies = [body for node in graph.node if (body := _body(node)) is not None]
    return [*graph.node, *(node for body in bodies for node in body.node)]


def _read(node: NodeProto) -> list[str]:
    """The names that a node reads, in its body too."""
    body = _body(node)
    return [*node.input, *(name for inner in (body.node if body else ()) for name in inner.input)]


def _lower(node: NodeProto, constants: Mapping[str, TensorProto]) -> None:
    """Change `node` to its form in opset 17."""
    if node.op_type in AXES_BECAME_AN_INPUT and len(node.input) == 2:
        axes = numpy_helper.to_array(constants[node.input.pop()]).tolist()
        kept = [attribute for attribute in node.attribute if attribute.name == "keepdims"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("axes", axes)])
        return
    if node.op_type == "Split":  # opset 17 counts the outputs itself
        kept = [attribute for attribute in node.attribute if attribute.name == "axis"]
        del node.attribute[:]
        node.attribute.extend(kept)
        return
    is_old = len(node.input) <= GREW_AN_INPUT.get(node.op_type, 0) or _is_unchanged(node.op_type)
    if node.domain or not is_old:
        raise RunError(
            f"ONNX export: opset {OPSET_VERSION} has no operator {node.domain or 'ai.onnx'}::"
            f"{node.op_type} in this form; write the model with other operations"
        )


def _is_unchanged(op_type: str) -> bool:
    if not defs.has(op_type, OPSET_VERSION):
        return False
    old, new = (defs.get_schema(op_type, version) for version in (OPSET_VERSION, OPSET))
    return bool(old.since_version == new.since_version)


def _node_names(nodes: Sequence[NodeProto], layers: Sequence[str]) -> dict[str, str]:
    """New names of the nodes' outputs and of the LSTM nodes' weights."""
    names: dict[str, str] = {}
    counts, remaining = Counter[str](), iter(layers)
    for node in nodes:
        if node.op_type in LAYERS:
            names |= _name_layer(node, next(remaining))
        else:
            node.name = _numbered(node.op_type.lower(), counts)
            names |= dict(zip(node.output, _results(node), strict=True))
    return names


def _results(node: NodeProto) -> list[str]:
    """Names for what a node gives."""
    return [node.name, *(f"{node.name}.{i}" for i in range(1, len(node.output)))]


def _name_layer(node: NodeProto, layer: str) -> dict[str, str]:
    kind = node.op_type.lower()
    node.name = f"{kind}.{layer}"
    parts = LSTM_RESULTS.get(node.op_type) or _scan_results(len(node.output))
    results = [f"{node.name}.{what}" for what in parts]
    # passes remove unused results, but some runtimes need a name for all three
    present = [*node.output, *results[len(node.output) :]]
    node.output[:] = [old or new for old, new in zip(present, results, strict=True)]
    found = dict(zip(node.output, results, strict=True))
    if node.op_type in LSTM_RESULTS:
        operands = [(i, what) for i, what in LSTM_OPERANDS.items() if i < len(node.input)]
        found |= {node.input[i]: f"{kind}.{what}_{layer}" for i, what in operands}
    return found


def _scan_results(count: int) -> list[str]:
    return [*(f"state_{part}" for part in range(count - 1)), "y"]


def _constant_names(
    graph: GraphProto, names: Mapping[str, str], reshaped: Mapping[bytes, str]
) -> dict[str, str]:
    counts, found = Counter[str](), dict[str, str]()
    used = {name for node in graph.node for name in _read(node)}
    # a weight of one row has the bytes of its transpose, and both may stand in the graph
    taken = {names[name] for name in used if name in names}
    for tensor in graph.initializer:
        if tensor.name not in names:
            name = reshaped.get(numpy_helper.to_array(tensor).tobytes(), "")
            name = name if name and name not in taken else _numbered("constant", counts)
            found[tensor.name] = name
            taken.add(name)
    return found


def _numbered(name: str, counts: Counter[str]) -> str:
    """`name`, then `name_1`, `name_2` and so on."""
    counts[name] += 1
    return name if counts[name] == 1 else f"{name}_{counts[name] - 1}"


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    inputs = [names[name] if name else "" for name in node.input]
    outputs = [names[name] for name in node.output]
    result = helper.make_node(node.op_type, inputs, outputs, name=node.name)
    body = _body(node)
    attributes = [each for each in node.attribute if each.name != "body"]
    if body is not None:
        attributes.append(helper.make_attribute("body", _renamed_body(body, node.name, names)))
    result.attribute.extend(sorted(attributes, key=lambda attribute: attribute.name))
    return result


def _renamed_body(body: GraphProto, prefix: str, outer: Mapping[str, str]) -> GraphProto:
    """The body of a Scan; its names begin with the name of the Scan."""
    counts = Counter[str]()
    names = {value.name: f"{prefix}.given_{i}" for i, value in enumerate(body.input)}
    for node in body.node:
        node.name = f"{prefix}.{_numbered(node.op_type.lower(), counts)}"
        names |= dict(zip(node.output, _results(node), strict=True))
    nodes = [_renamed(node, {**outer, **names}) for node in body.node]
    for value in (*body.input, *body.output):
        value.name = names[value.name]
    return helper.make_graph(nodes, prefix, body.input, body.output)
