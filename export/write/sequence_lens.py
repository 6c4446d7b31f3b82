"""The `ort` form: LSTM nodes of both directions that take the lengths as `sequence_lens`.

It is the fastest form in ONNX Runtime, and wrong elsewhere: other runtimes silently ignore
`sequence_lens`. `translation` writes the portable form.
"""

from typing import Any

import onnx_ir as ir
from onnx import TensorProto
from onnxscript import opset17 as op

from lstm_compile.export.write import translation
from lstm_compile.export.write.translation import OperatorCall, Outputs, Value, ints, is_zeros

BATCH_FIRST = (2, 0, 1, 3)  # order of axes for Y (time, directions, batch, H)


def recurrence(*inputs: Value) -> Outputs:
    """One layer and direction: the arguments of `OperatorCall` in order.

    Raises:
        InputError: the module is not in float32, or it uses resets.
    """
    call = OperatorCall(*inputs)
    translation.check_call(call.x, call.resets)
    weights = translation.node_weights(call)
    h0, c0 = (
        None if is_zeros(state) else translation.initial_state(state, call.x)
        for state in (call.h0, call.c0)
    )
    sizes = None if call.lengths is None else op.Cast(call.lengths, to=TensorProto.INT32)
    direction = "reverse" if call.reverse else "forward"
    y, h, c = translation.lstm_node(call.x, weights, h0, c0, sizes, direction)
    return y, _final(h, call.lengths, call.h0), _final(c, call.lengths, call.c0)


def finite_recurrence(x: Value, lengths: Value, *others: Any) -> Outputs:
    """`recurrence` with zeros in the padding."""
    if lengths is None:
        return recurrence(x, lengths, *others)
    valid = op.Less(translation.steps(x), op.Unsqueeze(lengths, ints(1)))
    padded = op.Where(op.Unsqueeze(valid, ints(2)), x, translation.zero())
    return recurrence(padded, lengths, *others)


def _final(state: Value, lengths: Value, initial: Value) -> Value:
    """The node's last state (1, batch, H) as (batch, H); for a row of length 0 the initial one."""
    last = op.Squeeze(state, ints(0))
    if lengths is None or is_zeros(initial):  # the node gives such rows zeros
        return last
    return op.Where(op.Less(ints(0), op.Unsqueeze(lengths, ints(1))), last, initial)


def merge_directions(model: ir.Model) -> None:
    """Merge the two nodes of each bidirectional layer, in place."""
    forward: dict[ir.Value | None, ir.Node] = {}
    for node in [node for node in model.graph if node.op_type == "LSTM"]:
        transpose = None if node.inputs[0] is None else node.inputs[0].producer()
        assert transpose is not None
        source = transpose.inputs[0]
        if node.attributes["direction"].as_string() == "forward":
            forward[source] = node
        else:
            _merge(model.graph, forward.pop(source), node)
    model.graph.sort()


def _merge(graph: ir.Graph, forward: ir.Node, reverse: ir.Node) -> None:
    tape = ir.tape.Tape()
    x, *pairs = zip(forward.inputs, reverse.inputs, strict=True)
    weights = [tape.op("Concat", pair, {"axis": 0}) for pair in pairs[:3]]
    states = [tape.op("Concat", pair, {"axis": 0}) if all(pair) else None for pair in pairs[4:]]
    size = forward.attributes["hidden_size"].as_int()
    y, *finals = tape.op_multi_out(
        "LSTM",
        [x[0], *weights, forward.inputs[4], *states],
        {"direction": "bidirectional", "hidden_size": size},
        num_outputs=3,
    )
    by_row = tape.op("Transpose", [y], {"perm": BATCH_FIRST})
    shape = tape.op("Constant", [], {"value_ints": [0, 0, 2 * size]})
    side_by_side = tape.op("Reshape", [by_row, shape])
    ir.convenience.replace_all_uses_with(_concatenated(forward), side_by_side)
    read = zip(forward.outputs[1:], reverse.outputs[1:], strict=True)  # there may be none
    for final, olds in zip(finals, read, strict=False):
        parts = tape.op_multi_out("Split", [final], {"axis": 0}, num_outputs=2)
        for old, part in zip(olds, parts, strict=True):
            ir.convenience.replace_all_uses_with(old, part)
    graph.insert_after(reverse, tape.nodes)


def _concatenated(node: ir.Node) -> ir.Value:
    """The steps of both directions, joined: Y passes Squeeze, Transpose and Concat."""
    value = node.outputs[0]
    for kind in ("Squeeze", "Transpose", "Concat"):
        (user,) = value.consumers()
        assert user.op_type == kind
        value = user.outputs[0]
    return value
