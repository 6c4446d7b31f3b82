"""The recurrence operator as ONNX nodes: the portable form.

Many runtimes silently ignore the `sequence_lens` of the LSTM node, so this form does not use it:
each node runs forward over the padded rows, GatherND reverses rows within their own length, and
Where puts zeros into the padding. Whatever a runtime computes in the padding reaches no valid step.

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html; the form was tested on the runtimes that the
README lists.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from onnxscript import opset17 as op

import lstm_compile.model.window_scaling
import lstm_compile.recurrence.operator  # noqa: F401 (both define operators)
from lstm_compile.errors import InputError
from lstm_compile.export.names import RIGHT_IN, Profile
from lstm_compile.recurrence.vendor import SATURATED

# A tensor of the graph under construction: onnxscript and torch.onnx have no common public type.
Value = Any
Outputs = tuple[Value, Value, Value]  # output, h and c

RECURRENCE = torch.ops.lstm_compile.recurrence.default

# ONNX orders the gates i, o, f, c; torch orders them i, f, g, o, and its g is ONNX's c.
GATES = [0, 3, 1, 2]
FLAG = 2.0  # marks padding; as large as usual inputs, and a power of 2, so that products are exact
LOWEST = float(np.finfo(np.float32).min)
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


class Weights(NamedTuple):
    """The weights of an LSTM node, gates in the order i, o, f, c."""

    weight_ih: Value  # (1, 4 * hidden_size, input_size)
    weight_hh: Value  # (1, 4 * hidden_size, hidden_size)
    biases: Value  # (1, 8 * hidden_size), of the input and of the state
    hidden_size: int


class RowHelpers(NamedTuple):
    """What follows from the lengths of a padded batch."""

    lengths: Value  # (batch, 1) int64
    valid: Value  # (batch, time, 1) bool
    reversal: Value  # (batch, time, 1) int64, the step to read in order to reverse a row


def translation_table(profile: Profile = "portable") -> Table:
    """What torch.onnx needs in order to export modules that call `lstm_compile.lstm`.

    Pass it as `torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())`.
    Outputs and final states are those of `lstm_compile.lstm`, for any lengths. Profile `ort` is for
    ONNX Runtime alone: it is faster there, and its weights can always be quantised.

    Raises:
        InputError: no such profile.
    """
    if profile not in RIGHT_IN:
        raise InputError(f"profile must be one of {', '.join(RIGHT_IN)}; got {profile!r}")
    translate = recurrence
    if profile == "ort":
        from lstm_compile.export.write.sequence_lens import finite_recurrence as translate
    return {RECURRENCE: translate, torch.ops.lstm_compile.last_steps.default: last_steps}


def model_table() -> Table:
    """`translation_table`, and the other operators of this package's models."""
    return {
        **translation_table(),
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.gelu.default: gelu,
    }


def recurrence(*inputs: Value) -> Outputs:
    """One layer and direction: the arguments of `OperatorCall` in order.

    Raises:
        InputError: the module is not in float32, or it uses resets.
    """
    call = checked(*inputs)
    if call.lengths is None:
        return _without_lengths(call)
    rows, reads_c = _rows(call.x, call.lengths), _reads_cell_state(call.weight_hh)
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
    h = _last_valid(y, rows, op.Squeeze(initial_h, ints(0)))
    y = op.GatherND(y, rows.reversal, batch_dims=1) if call.reverse else y
    return op.Where(rows.valid, y, zero()), h, op.Squeeze(c, ints(0))


def checked(*inputs: Value) -> OperatorCall:
    """The operator's arguments, if there are nodes for them.

    Raises:
        InputError: the module is not in float32, or it uses resets; says what to do.
    """
    call = OperatorCall(*inputs)
    if call.resets is not None:
        raise InputError(
            "resets have no form in ONNX, where a row begins once: export the module without them, "
            "and give each sequence as a row of its own, or step by step (export --streaming) from "
            "the initial state where one begins"
        )
    dtype = call.x.dtype
    if dtype is not None and int(dtype) != TensorProto.FLOAT:
        raise InputError(f"ONNX export takes float32 modules, got {dtype}; use module.float()")
    return call


def last_steps(x: Value, lengths: Value, size: int) -> Value:
    """The last `size` valid steps of each row, as `window_scaling.last_steps` gives them."""
    # a step of zeros in front stands for missing steps: IREE 3.13 cannot compile a Where here
    padded = op.Pad(x, ints(0, 1, 0, 0, 0, 0))
    wanted = op.Constant(value=numpy_helper.from_array(np.arange(1 - size, 1)))
    step = op.Max(op.Add(op.Unsqueeze(lengths, ints(1)), wanted), ints(0))
    return op.GatherND(padded, op.Unsqueeze(step, ints(2)), batch_dims=1)


def attention(query: Value, key: Value, value: Value, mask: Value = None) -> Value:
    """Scaled dot-product attention, (batch, heads, time, size) each, as Transformer blocks call it.

    `mask` (bool) leaves each query at least one key, so a finite number replaces minus infinity.
    """
    scale = op.Constant(value_float=int(query.shape[3]) ** -0.5)
    scores = op.MatMul(op.Mul(query, scale), op.Transpose(key, perm=[0, 1, 3, 2]))
    if mask is not None:
        scores = op.Where(mask, scores, op.Constant(value_float=LOWEST))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def gelu(x: Value, approximate: str = "none") -> Value:
    """GELU in a form on which OpenCV does not crash, as it does on the usual one.

    Raises:
        InputError: the module uses the approximation.
    """
    if approximate != "none":
        raise InputError(f"ONNX export takes gelu as it is, not approximate={approximate!r}")
    half = op.Constant(value_float=0.5)
    error = op.Erf(op.Mul(x, op.Constant(value_float=0.5**0.5)))
    return op.Mul(x, op.Add(op.Mul(error, half), half))


def _without_lengths(call: OperatorCall) -> Outputs:
    weights, x = node_weights(call), call.x
    h0, c0 = (initial_state(state, x) for state in (call.h0, call.c0))
    y, h, c = lstm_node(_flip(x) if call.reverse else x, weights, h0, c0)
    return _flip(y) if call.reverse else y, op.Squeeze(h, ints(0)), op.Squeeze(c, ints(0))


def _flip(x: Value) -> Value:
    last = op.Sub(_time(x), op.Constant(value_int=1))
    return op.Gather(x, op.Sub(last, steps(x)), axis=1)


def _rows(x: Value, lengths: Value) -> RowHelpers:
    step, column = steps(x), op.Unsqueeze(lengths, ints(1))
    valid = op.Less(step, column)
    mirrored = op.Sub(op.Sub(column, op.Constant(value_int=1)), step)
    reversal = op.Where(valid, mirrored, step)
    return RowHelpers(column, op.Unsqueeze(valid, ints(2)), op.Unsqueeze(reversal, ints(2)))


def _time(x: Value) -> Value:
    return op.Squeeze(op.Shape(x, start=1, end=2))


def steps(x: Value) -> Value:
    """The numbers of the steps, int64 (time,)."""
    return op.Range(op.Constant(value_int=0), _time(x), op.Constant(value_int=1))


def lstm_node(
    x: Value,
    weights: Weights,
    initial_h: Value,
    initial_c: Value,
    sequence_lens: Value = None,
    direction: str = "forward",
) -> Outputs:
    """The LSTM node: y (batch, time, H), h and c (1, batch, H)."""
    *tensors, hidden_size = weights
    operands = (op.Transpose(x, perm=[1, 0, 2]), *tensors, sequence_lens, initial_h, initial_c)
    y, h, c = op.LSTM(*operands, direction=direction, hidden_size=hidden_size)
    return op.Transpose(op.Squeeze(y, ints(1)), perm=[1, 0, 2]), h, c


def node_weights(call: OperatorCall) -> Weights:
    """The weights of the LSTM node, from those of torch."""
    gates, hidden_size = (int(size) for size in call.weight_hh.shape)
    no_bias: Value = op.Constant(value=_zeros(1, gates))
    one_bias: Value = no_bias if is_zeros(call.bias) else _reorder(call.bias)  # the sum of two
    both_biases = op.Concat(one_bias, no_bias, axis=1)
    return Weights(_reorder(call.weight_ih), _reorder(call.weight_hh), both_biases, hidden_size)


def _reorder(weight: Value) -> Value:
    """`weight` (4H, ...) as (1, 4H, ...) in ONNX's order of gates."""
    gates, *others = (int(size) for size in weight.shape)
    blocks = op.Reshape(weight, ints(1, 4, gates // 4, *others))
    return op.Reshape(op.Gather(blocks, ints(*GATES), axis=1), ints(1, gates, *others))


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
    y, h, c = lstm_node(_flip(x), weights, initial_h, initial_c)
    y = _flip(y)
    y = y if call.reverse else op.GatherND(y, rows.reversal, batch_dims=1)
    return op.Where(rows.valid, y, zero()), op.Squeeze(h, ints(0)), op.Squeeze(c, ints(0))


def _without_bias(call: OperatorCall, weights: Weights) -> Weights:
    """One more input column, that takes the bias off the cell's input."""
    hidden_size = weights.hidden_size
    bias: Value = op.Slice(call.bias, ints(2 * hidden_size), ints(3 * hidden_size), ints(0))
    share: Value = op.Mul(bias, op.Constant(value_float=-1 / FLAG))
    others: Value = op.Constant(value=_zeros(3 * hidden_size))
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


def _last_valid(y: Value, rows: RowHelpers, initial_h: Value) -> Value:
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
    return op.ConstantOfShape(shape, value=_zeros(1))


def is_zeros(value: Value) -> bool:
    """Whether `value` is made by new_zeros, or is a part of that."""
    node = value.producer()
    while node is not None and node.op_type in ("Gather", "CastLike", "Cast"):
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "ConstantOfShape" and not node.attributes


def _reads_cell_state(weight_hh: Value) -> bool:
    """Whether the program reads c of any call with these weights; True where that is unknown."""
    producer = weight_hh.producer()
    traced = (weight_hh if producer is None else producer).meta.get("node")
    calls = [user for user in getattr(traced, "users", ()) if user.target is RECURRENCE]
    return not calls or any(part.args[1] == 2 for call in calls for part in call.users)


def ints(*values: int) -> Value:
    """Whole numbers as one constant (numbers,)."""
    return op.Constant(value_ints=list(values))


def _zeros(*shape: int) -> TensorProto:
    return numpy_helper.from_array(np.zeros(shape, np.float32))


def zero() -> Value:
    """The number 0.0."""
    return op.Constant(value_float=0.0)
