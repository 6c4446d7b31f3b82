"""The recurrence operator as ONNX nodes: the portable form.

Many runtimes silently ignore the `sequence_lens` of the LSTM node, so this form does not use it:
each node runs forward over the padded rows, GatherND reverses rows within their own length, and
Where puts zeros into the padding. Whatever a runtime computes in the padding reaches no valid step.

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html; the form was tested on the runtimes that
docs/runtimes.md lists.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from onnxscript import opset17 as op

import lstm_compile.recurrence.operator  # noqa: F401 (it defines an operator)
from lstm_compile.errors import InputError
from lstm_compile.recurrence.vendor import SATURATED

# A tensor of the graph under construction: onnxscript and torch.onnx have no common public type.
Value = Any
Outputs = tuple[Value, Value, Value]  # output, h and c

RECURRENCE = torch.ops.lstm_compile.recurrence.default

# ONNX orders the gates i, o, f, c; torch orders them i, f, g, o, and its g is ONNX's c.
GATES = [0, 3, 1, 2]
PEEPHOLES = [0, 2, 1]  # ONNX orders them i, o, f
FLAG = 2.0  # marks padding; as large as usual inputs, and a power of 2, so that products are exact
NOT_FOR_INT8 = (
    "an LSTM that takes lengths and an initial state and returns its cell state has a weight of "
    f"{SATURATED:.0f} in this file: weights of 8 bits would be useless; to quantise it for ONNX "
    "Runtime, export it with custom_translation_table=translation_table('ort')"
)

Table = dict[Callable[..., Any], Callable[..., Any]]


class OperatorCall(NamedTuple):
    """The arguments of the recurrence operator, in its order: see `recurrence.operator`."""

    x: Value
    lengths: Value
    resets: Value
    weight_ih: Value
    weight_hh: Value
    bias: Value
    h0: Value
    c0: Value
    reverse: bool
    backend: str  # how torch computes; nodes do not depend on it
    chunk: int  # likewise
    peepholes: Value = None  # (3 * hidden_size), in the order i, f, o


class Weights(NamedTuple):
    """The weights of an LSTM node, gates in the order i, o, f, c."""

    weight_ih: Value  # (1, 4 * hidden_size, input_size)
    weight_hh: Value  # (1, 4 * hidden_size, hidden_size)
    biases: Value  # (1, 8 * hidden_size), of the input and of the state
    hidden_size: int
    peepholes: Value = None  # (1, 3 * hidden_size), in the order i, o, f


class RowHelpers(NamedTuple):
    """What follows from the lengths of a padded batch."""

    lengths: Value  # (batch, 1) int64
    valid: Value  # (batch, time, 1) bool
    reversal: Value  # (batch, time, 1) int64, the step to read in order to reverse a row


def recurrence(*inputs: Value) -> Outputs:
    """One layer and direction: the arguments of `OperatorCall` in order.

    Raises:
        InputError: the module is not in float32, or it uses resets.
    """
    call = OperatorCall(*inputs)
    check_call(call.x, call.resets)
    if call.lengths is None:
        return _without_lengths(call)
    rows, reads_c = row_helpers(call.x, call.lengths), _reads_cell_state(call.weight_hh)
    if reads_c and is_zeros(call.h0) and is_zeros(call.c0):
        return _padding_first(call, rows)
    x, weights = call.x, node_weights(call)
    initial_h, initial_c = (initial_state(state, call.lengths) for state in (call.h0, call.c0))
    x = op.GatherND(x, rows.reversal, batch_dims=1) if call.reverse else x
    if reads_c:
        warnings.warn(NOT_FOR_INT8, stacklevel=2)
        y, c = _frozen(x, rows, weights, (initial_h, initial_c))
    else:
        y, _, c = lstm_node(x, weights, initial_h, initial_c)
    h = last_valid(y, rows, op.Squeeze(initial_h, ints(0)))
    y = op.GatherND(y, rows.reversal, batch_dims=1) if call.reverse else y
    return op.Where(rows.valid, y, zero()), h, op.Squeeze(c, ints(0))


def check_call(x: Value, resets: Value) -> None:
    """Refuse a call that has no nodes.

    Raises:
        InputError: the module is not in float32, or it uses resets; says what to do.
    """
    if resets is not None:
        raise InputError(
            "resets have no form in ONNX, where a row begins once: export the module without them, "
            "and give each sequence as a row of its own, or step by step (export --streaming) from "
            "the initial state where one begins"
        )
    dtype = x.dtype
    if dtype is not None and int(dtype) != TensorProto.FLOAT:
        raise InputError(f"ONNX export takes float32 modules, got {dtype}; use module.float()")


def _without_lengths(call: OperatorCall) -> Outputs:
    weights, x = node_weights(call), call.x
    h0, c0 = (initial_state(state, x) for state in (call.h0, call.c0))
    y, h, c = lstm_node(flip(x) if call.reverse else x, weights, h0, c0)
    return flip(y) if call.reverse else y, op.Squeeze(h, ints(0)), op.Squeeze(c, ints(0))


def flip(x: Value) -> Value:
    """All steps in reverse."""
    last = op.Sub(op.Squeeze(time_of(x)), op.Constant(value_int=1))
    return op.Gather(x, op.Sub(last, steps(x)), axis=1)


def row_helpers(x: Value, lengths: Value) -> RowHelpers:
    """Masks and indices of a padded batch."""
    step, column = steps(x), op.Unsqueeze(lengths, ints(1))
    valid = op.Less(step, column)
    mirrored = op.Sub(op.Sub(column, op.Constant(value_int=1)), step)
    reversal = op.Where(valid, mirrored, step)
    return RowHelpers(column, op.Unsqueeze(valid, ints(2)), op.Unsqueeze(reversal, ints(2)))


def time_of(x: Value) -> Value:
    """The number of steps of x (batch, time, ...), int64 (1,)."""
    return op.Shape(x, start=1, end=2)


def steps(x: Value) -> Value:
    """The numbers of the steps, int64 (time,)."""
    return op.Range(op.Constant(value_int=0), op.Squeeze(time_of(x)), op.Constant(value_int=1))


def lstm_node(
    x: Value,
    weights: Weights,
    initial_h: Value,
    initial_c: Value,
    sequence_lens: Value = None,
    direction: str = "forward",
) -> Outputs:
    """The LSTM node: y (batch, time, H), h and c (1, batch, H)."""
    *tensors, hidden_size, peepholes = weights
    operands = [op.Transpose(x, perm=[1, 0, 2]), *tensors, sequence_lens, initial_h, initial_c]
    operands += [] if peepholes is None else [peepholes]
    y, h, c = op.LSTM(*operands, direction=direction, hidden_size=hidden_size)
    return op.Transpose(op.Squeeze(y, ints(1)), perm=[1, 0, 2]), h, c


def node_weights(call: OperatorCall) -> Weights:
    """The weights of the LSTM node, from those of torch."""
    gates, hidden_size = (int(size) for size in call.weight_hh.shape)
    no_bias: Value = op.Constant(value=zeros(1, gates))
    # the sum of two
    one_bias: Value = no_bias if is_zeros(call.bias) else reordered(call.bias, GATES)
    both_biases = op.Concat(one_bias, no_bias, axis=1)
    weight_ih, weight_hh = reordered(call.weight_ih, GATES), reordered(call.weight_hh, GATES)
    peepholes = None if call.peepholes is None else reordered(call.peepholes, PEEPHOLES)
    return Weights(weight_ih, weight_hh, both_biases, hidden_size, peepholes)


def reordered(weight: Value, order: Sequence[int]) -> Value:
    """`weight` (gates * H, ...) as (1, gates * H, ...) with its gates in another order."""
    size, *others = (int(size) for size in weight.shape)
    blocks = op.Reshape(weight, ints(1, len(order), size // len(order), *others))
    return op.Reshape(op.Gather(blocks, ints(*order), axis=1), ints(1, size, *others))


def _padding_first(call: OperatorCall, rows: RowHelpers) -> Outputs:
    """Rows moved to the end of time, as the LSTM node ends with the state that is asked for.

    Zeros stand before them, and a column of flags takes the bias of the cell's input away there. So
    the state stays exactly zero until a row begins. No weight becomes larger than the others, which
    quantisation would round to 0.
    """
    weights = node_weights(call)
    initial_h, initial_c = (initial_state(state, call.lengths) for state in (call.h0, call.c0))
    # a row that is reversed within its length, and then with its padding, stands at the end
    x = call.x if call.reverse else op.GatherND(call.x, rows.reversal, batch_dims=1)
    x = op.Where(rows.valid, x, zero())
    if not is_zeros(call.bias):
        flag: Value = op.Cast(op.Not(rows.valid), to=TensorProto.FLOAT)
        x = op.Concat(x, op.Mul(flag, op.Constant(value_float=FLAG)), axis=2)
        weights = _without_bias(call, weights)
    y, h, c = lstm_node(flip(x), weights, initial_h, initial_c)
    y = flip(y)
    y = y if call.reverse else op.GatherND(y, rows.reversal, batch_dims=1)
    return op.Where(rows.valid, y, zero()), op.Squeeze(h, ints(0)), op.Squeeze(c, ints(0))


def _without_bias(call: OperatorCall, weights: Weights) -> Weights:
    """One more input column, that takes the bias off the cell's input."""
    hidden_size = weights.hidden_size
    bias: Value = op.Slice(call.bias, ints(2 * hidden_size), ints(3 * hidden_size), ints(0))
    share: Value = op.Mul(bias, op.Constant(value_float=-1 / FLAG))
    others: Value = op.Constant(value=zeros(3 * hidden_size))
    column: Value = op.Concat(others, share, axis=0)
    column = op.Unsqueeze(column, ints(0, 2))
    return weights._replace(weight_ih=op.Concat(weights.weight_ih, column, axis=2))


def _frozen(
    x: Value, rows: RowHelpers, weights: Weights, initial: tuple[Value, Value]
) -> tuple[Value, Value]:
    """The LSTM node on rows that begin from a state: y, and c after each row's last valid step.

    A column of flags closes the input gate and opens the forget gate in the padding, see
    `recurrence.vendor`. The state of a row without steps may be anything, and goes round the node.
    """
    flag = op.Cast(op.Not(rows.valid), to=TensorProto.FLOAT)
    padded = op.Concat(op.Where(rows.valid, x, zero()), flag, axis=2)
    by_gate = np.repeat((-SATURATED, 0.0, SATURATED, 0.0), weights.hidden_size)
    column: Value = op.Constant(value_floats=by_gate.tolist())
    column = op.Unsqueeze(column, ints(0, 2))
    weights = weights._replace(weight_ih=op.Concat(weights.weight_ih, column, axis=2))
    has_steps = op.Less(op.Constant(value_int=0), rows.lengths)
    start = (op.Where(has_steps, state, zero()) for state in initial)
    y, _, c = lstm_node(padded, weights, *start)
    return y, op.Where(has_steps, c, initial[1])


def last_valid(y: Value, rows: RowHelpers, initial_h: Value) -> Value:
    """The last valid step of y (batch, time, H), or the initial state (batch, H)."""
    last = op.Max(op.Sub(rows.lengths, op.Constant(value_int=1)), op.Constant(value_int=0))
    picked = op.GatherND(y, last, batch_dims=1)
    return op.Where(op.Less(op.Constant(value_int=0), rows.lengths), picked, initial_h)


def initial_state(state: Value, batched: Value) -> Value:
    """`state` (batch, H) as (1, batch, H); zeros are made again, so that all nodes share them."""
    if not is_zeros(state):
        return op.Unsqueeze(state, ints(0))
    batch = op.Shape(batched, start=0, end=1)
    shape = op.Concat(ints(1), batch, ints(int(state.shape[1])), axis=0)
    # the default value is written out: tract, MNN and OpenCV need it
    return op.ConstantOfShape(shape, value=zeros(1))


def is_zeros(value: Value) -> bool:
    """Whether `value` is made by new_zeros, or is a part of that."""
    node = value.producer()
    while node is not None and node.op_type in ("Gather", "CastLike", "Cast"):
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "ConstantOfShape" and not node.attributes


def _reads_cell_state(weight_hh: Value) -> bool:
    """Whether the program reads the final cell state of any call with this weight.

    True where that is unknown.
    """
    producer = weight_hh.producer()
    traced = (weight_hh if producer is None else producer).meta.get("node")
    calls = [user for user in getattr(traced, "users", ()) if user.target is RECURRENCE]
    return not calls or any(part.args[1] == 2 for call in calls for part in call.users)


def ints(*values: int) -> Value:
    """Whole numbers as one constant (numbers,)."""
    return op.Constant(value_ints=list(values))


def zeros(*shape: int) -> TensorProto:
    """A float32 tensor of zeros."""
    return numpy_helper.from_array(np.zeros(shape, np.float32))


def zero() -> Value:
    """The number 0.0."""
    return op.Constant(value_float=0.0)
