"""The operator of any cell as ONNX nodes: GRU and LSTM nodes where they say it, else a Scan.

Only ONNX Runtime, tract and onnx's evaluator read the peepholes of the LSTM node; OpenVINO, IREE
and OpenCV silently ignore them. So peepholes are a Scan, but for the form of ONNX Runtime alone.
"""

import torch
from onnxscript import opset17 as op

import lstm_compile.recurrence.cell_operator  # noqa: F401 (it defines an operator)
from lstm_compile.export.write import sequence_lens, translation
from lstm_compile.export.write.scan import scanned
from lstm_compile.export.write.translation import (
    OperatorCall,
    Value,
    flip,
    initial_state,
    ints,
    last_valid,
    reordered,
    row_helpers,
    zero,
)
from lstm_compile.recurrence.cell_operator import CellInputs

ANY_CELL = torch.ops.lstm_compile.any_cell.default
GRU_GATES = [1, 0, 2]  # ONNX orders the gates z, r, h; torch orders them r, z, n


def any_cell(*inputs: Value) -> list[Value]:
    """One layer and direction: the arguments of `CellInputs` in order.

    Raises:
        InputError: the module is not in float32, or it uses resets.
    """
    call = CellInputs(*inputs)
    translation.check_call(call.x, call.resets)
    return gru(call) if call.cell == "gru" else scanned(call)


def ort_any_cell(*inputs: Value) -> list[Value]:
    """`any_cell` for ONNX Runtime alone."""
    call = CellInputs(*inputs)
    return peephole_lstm(call) if call.cell == "peephole-lstm" else any_cell(*inputs)


def gru(call: CellInputs) -> list[Value]:
    """The GRU node: y, and h after each row's last valid step, which y has."""
    if call.lengths is None:
        y, h = _gru_node(call, flip(call.x) if call.reverse else call.x)
        return [flip(y) if call.reverse else y, op.Squeeze(h, ints(0))]
    rows = row_helpers(call.x, call.lengths)
    x: Value = call.x
    x = op.GatherND(x, rows.reversal, batch_dims=1) if call.reverse else x
    y, _ = _gru_node(call, x)
    initial = op.Squeeze(initial_state(call.state[0], call.x), ints(0))
    h = last_valid(y, rows, initial)
    y = op.GatherND(y, rows.reversal, batch_dims=1) if call.reverse else y
    return [op.Where(rows.valid, y, zero()), h]


def _gru_node(call: CellInputs, x: Value) -> tuple[Value, Value]:
    """The GRU node on valid steps: y (batch, time, H) and h (1, batch, H)."""
    tensors: list[Value] = [reordered(weight, GRU_GATES) for weight in call.weights]
    weight_ih, weight_hh, *biases = tensors
    size = int(call.weights[1].shape[1])
    y, h = op.GRU(
        op.Transpose(x, perm=[1, 0, 2]),
        weight_ih,
        weight_hh,
        op.Concat(*biases, axis=1),
        None,
        initial_state(call.state[0], call.x),
        hidden_size=size,
        linear_before_reset=1,
    )
    return op.Transpose(op.Squeeze(y, ints(1)), perm=[1, 0, 2]), h


def peephole_lstm(call: CellInputs) -> list[Value]:
    """The LSTM node with peepholes, and the lengths as `sequence_lens`."""
    weight_ih, weight_hh, bias, peepholes = call.weights
    h0, c0 = call.state
    lstm = OperatorCall(
        call.x, call.lengths, call.resets, weight_ih, weight_hh, bias, h0, c0,
        call.reverse, call.backend, call.chunk, peepholes,
    )  # fmt: skip
    return [*sequence_lens.finite_recurrence(*lstm)]
