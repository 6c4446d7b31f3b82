"""Operators of models beside the recurrence, in forms that every known runtime answers rightly."""

import numpy as np
import torch
from onnx import numpy_helper
from onnxscript import opset17 as op

import lstm_compile.model.window_scaling  # noqa: F401 (it defines an operator)
from lstm_compile.errors import InputError
from lstm_compile.export.write.translation import Table, Value, ints

LOWEST = float(np.finfo(np.float32).min)


def function_table() -> Table:
    """What torch.onnx needs in order to write these operators in the forms below."""
    aten = torch.ops.aten
    return {
        aten.scaled_dot_product_attention.default: attention,
        aten.gelu.default: gelu,
        aten.log_sigmoid.default: log_sigmoid,
    }


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


def log_sigmoid(x: Value) -> Value:
    """min(x, 0) - log(1 + exp(-|x|)); the logarithm of the sigmoid itself is -inf below -88."""
    share = op.Log(op.Add(op.Exp(op.Neg(op.Abs(x))), op.Constant(value_float=1.0)))
    return op.Sub(op.Min(x, op.Constant(value_float=0.0)), share)
