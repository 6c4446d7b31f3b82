"""The recurrence operator in ONNX's words: the portable form.

Many runtimes ignore the LSTM node's `sequence_lens` silently, so this form does without: each node
runs forward over the padded rows, rows are reversed within their own length by GatherND, and Where
puts zeros into the padding. What a runtime computes there never meets a valid step.

Source: https://onnx.ai/onnx/operators/onnx__LSTM.html; the portable form itself was measured on the
runtimes that the README lists.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from onnx import TensorProto, numpy_helper
from onnxscript import opset17 as op

import lstm_compile.model.last_steps
import lstm_compile.recurrence.operator  # noqa: F401 (these define the operators)
from lstm_compile.errors import InputError
from lstm_compile.recurrence.vendor import SATURATED

# A tensor of the graph under construction: onnxscript and torch.onnx share no public type for it.
Value = Any

RECURRENCE = torch.ops.lstm_compile.recurrence.default

# ONNX orders the gates i, o, f, c; torch orders them i, f, g, o, and its g is ONNX's c.
GATES = [0, 3, 1, 2]
LOWEST = float(np.finfo(np.float32).min)

Table = dict[Callable[..., Any], Callable[..., Any]]


class Weights(NamedTuple):
    """The LSTM node's weights, gates in the order i, o, f, c."""

    weight_ih: Value  # (1, 4 * hidden_size, input_size)
    weight_hh: Value  # (1, 4 * hidden_size, hidden_size)
    biases: Value  # (1, 8 * hidden_size), of the input and of the state
    hidden_size: int


class RowHelpers(NamedTuple):
    """What the lengths say about a padded batch."""

    lengths: Value  # (batch, 1) int64
    valid: Value  # (batch, time, 1) bool
    reversal: Value  # (batch, time, 1) int64, the step that reversal within length reads


def translation_table() -> Table:
    """What torch.onnx needs in order to export modules that call `lstm_compile.lstm`.

    Pass it as `torch.onnx.export(..., dynamo=True, custom_translation_table=translation_table())`.
    Outputs and final states mean what they mean in `lstm_compile.lstm`, for any lengths.
    """
    return {
        RECURRENCE: recurrence,
        torch.ops.lstm_compile.last_steps.default: last_steps,
    }


def model_table() -> Table:
    """`translation_table`, and what else models of this package are made of."""
    return {
        **translation_table(),
        torch.ops.aten.scaled_dot_product_attention.default: attention,
        torch.ops.aten.gelu.default: gelu,
    }


def recurrence(
    x: Value,
    lengths: Value,
    resets: Value,
    weight_ih: Value,
    weight_hh: Value,
    bias: Value,
    h0: Value,
    c0: Value,
    reverse: bool,
    backend: str,  # noqa: ARG001 (how torch computes, not what)
    chunk: int,  # noqa: ARG001
) -> tuple[Value, Value, Value]:
    """One layer and direction; arguments and results as in `lstm_compile.recurrence.operator`.

    Raises:
        InputError: the module is not in float32, or it sets states back.
    """
    check_module(x, resets)
    weights = node_weights(weight_ih, weight_hh, bias)
    if lengths is None:
        return _dense(x, weights, initial_state(h0, x), initial_state(c0, x), reverse)
    rows = _rows(x, lengths)
    initial_h, initial_c = initial_state(h0, lengths), initial_state(c0, lengths)
    x = op.GatherND(x, rows.reversal, batch_dims=1) if reverse else x
    if _reads_cell_state(weight_hh):
        x, weights = _freeze_padding(x, rows, weights)
    y, _, c = lstm_node(x, weights, initial_h, initial_c)
    h = _last_valid(y, rows, op.Squeeze(initial_h, ints(0)))
    y = op.GatherND(y, rows.reversal, batch_dims=1) if reverse else y
    return op.Where(rows.valid, y, zero()), h, op.Squeeze(c, ints(0))


def check_module(x: Value, resets: Value) -> None:
    """Refuse what has no form in ONNX.

    Raises:
        InputError: the module is not in float32, or it sets states back; says what to do.
    """
    if resets is not None:
        raise InputError(
            "resets have no form in ONNX, where a row begins once: export the module without them, "
            "and give each sequence as a row of its own, or step by step (export --streaming) from "
            "the initial state where one begins"
        )
    if x.dtype is not None and int(x.dtype) != TensorProto.FLOAT:
        raise InputError(f"ONNX export takes float32 modules, got {x.dtype}; use module.float()")


def last_steps(x: Value, lengths: Value, size: int) -> Value:
    """The last `size` valid steps of each row, as `forecast.ending.last_steps` gives them."""
    # a step of zeros in front stands for what a row lacks: IREE 3.13 cannot compile a Where here
    padded = op.Pad(x, ints(0, 1, 0, 0, 0, 0))
    wanted = op.Constant(value=numpy_helper.from_array(np.arange(1 - size, 1)))
    step = op.Max(op.Add(op.Unsqueeze(lengths, ints(1)), wanted), ints(0))
    return op.GatherND(padded, op.Unsqueeze(step, ints(2)), batch_dims=1)


def attention(query: Value, key: Value, value: Value, mask: Value = None) -> Value:
    """Scaled dot-product attention, (batch, heads, time, size) each, as Transformer blocks call it.

    `mask` (bool) leaves every query a key, so that a finite number can stand for minus infinity.
    """
    scale = op.Constant(value_float=int(query.shape[3]) ** -0.5)
    scores = op.MatMul(op.Mul(query, scale), op.Transpose(key, perm=[0, 1, 3, 2]))
    if mask is not None:
        scores = op.Where(mask, scores, op.Constant(value_float=LOWEST))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def gelu(x: Value, approximate: str = "none") -> Value:
    """`x` times the normal distribution's share below it; OpenCV crashes on its usual form.

    Raises:
        InputError: an approximation is asked for.
    """
    if approximate != "none":
        raise InputError(f"ONNX export takes gelu as it is, not approximate={approximate!r}")
    half = op.Constant(value_float=0.5)
    error = op.Erf(op.Mul(x, op.Constant(value_float=0.5**0.5)))
    return op.Mul(x, op.Add(op.Mul(error, half), half))


def _dense(
    x: Value, weights: Weights, h0: Value, c0: Value, reverse: bool
) -> tuple[Value, Value, Value]:
    y, h, c = lstm_node(_flip(x) if reverse else x, weights, h0, c0)
    return _flip(y) if reverse else y, op.Squeeze(h, ints(0)), op.Squeeze(c, ints(0))


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
) -> tuple[Value, Value, Value]:
    """The LSTM node: y (batch, time, H), h and c (1, batch, H)."""
    y, h, c = op.LSTM(
        op.Transpose(x, perm=[1, 0, 2]),
        weights.weight_ih,
        weights.weight_hh,
        weights.biases,
        sequence_lens,
        initial_h,
        initial_c,
        direction=direction,
        hidden_size=weights.hidden_size,
    )
    return op.Transpose(op.Squeeze(y, ints(1)), perm=[1, 0, 2]), h, c


def node_weights(weight_ih: Value, weight_hh: Value, bias: Value) -> Weights:
    """What the LSTM node is given, from torch's `weight_ih`, `weight_hh` and the sum of biases."""
    gates, hidden_size = (int(size) for size in weight_hh.shape)
    no_bias: Value = op.Constant(value=_zeros(1, gates))
    one_bias: Value = no_bias if is_zeros(bias) else _reorder(bias)  # torch's two, added up
    both_biases = op.Concat(one_bias, no_bias, axis=1)
    return Weights(_reorder(weight_ih), _reorder(weight_hh), both_biases, hidden_size)


def _reorder(weight: Value) -> Value:
    """`weight` (4H, ...) as (1, 4H, ...) in ONNX's order of gates."""
    gates, *others = (int(size) for size in weight.shape)
    blocks = op.Reshape(weight, ints(1, 4, gates // 4, *others))
    return op.Reshape(op.Gather(blocks, ints(*GATES), axis=1), ints(1, gates, *others))


def _freeze_padding(x: Value, rows: RowHelpers, weights: Weights) -> tuple[Value, Weights]:
    """Keep the cell state as it is in the padding: see `lstm_compile.recurrence.vendor.vendor`."""
    flag = op.Cast(op.Not(rows.valid), to=TensorProto.FLOAT)
    padded = op.Concat(op.Where(rows.valid, x, zero()), flag, axis=2)
    by_gate = (-SATURATED, 0.0, SATURATED, 0.0)
    column: Value = op.Constant(
        value_floats=[value for value in by_gate for _ in range(weights.hidden_size)]
    )
    column = op.Unsqueeze(column, ints(0, 2))
    weight_ih = op.Concat(weights.weight_ih, column, axis=2)
    return padded, weights._replace(weight_ih=weight_ih)


def _last_valid(y: Value, rows: RowHelpers, initial_h: Value) -> Value:
    last = op.Max(op.Sub(rows.lengths, op.Constant(value_int=1)), op.Constant(value_int=0))
    picked = op.GatherND(y, last, batch_dims=1)
    return op.Where(op.Less(op.Constant(value_int=0), rows.lengths), picked, initial_h)


def initial_state(state: Value, batched: Value) -> Value:
    """`state` (batch, H) as (1, batch, H); zeros are made anew, so that all nodes share them."""
    if not is_zeros(state):
        return op.Unsqueeze(state, ints(0))
    batch = op.Shape(batched, start=0, end=1)
    shape = op.Concat(ints(1), batch, ints(int(state.shape[1])), axis=0)
    # the default value is written out: tract, MNN and OpenCV do not know it
    return op.ConstantOfShape(shape, value=_zeros(1))


def is_zeros(value: Value) -> bool:
    """Whether `value` is a part of what new_zeros made."""
    node = value.producer()
    while node is not None and node.op_type in ("Gather", "CastLike", "Cast"):
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "ConstantOfShape" and not node.attributes


def _reads_cell_state(weight_hh: Value) -> bool:
    """Whether the traced program reads c of any call with these weights; True if it cannot tell."""
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
