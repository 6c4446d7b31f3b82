"""The streaming file: one step or a chunk at a time, with the state as input and output.

It is made from the same program as the sequence file, without lengths. The host keeps the state,
and passes the initial state (zeros) where a sequence begins.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import onnx
from onnxscript import opset17 as op
from torch import Tensor

from lstm_compile.config import WINDOW_SCALINGS, ModelConfig
from lstm_compile.errors import InputError
from lstm_compile.export import names
from lstm_compile.export.proof.selftest import streaming_selftest
from lstm_compile.export.write import translation
from lstm_compile.export.write.cell_nodes import ANY_CELL
from lstm_compile.export.write.onnx import (
    ExportReport,
    Form,
    Program,
    build,
    checked,
    metadata,
    write_proven,
)
from lstm_compile.export.write.scan import one_step
from lstm_compile.export.write.tables import model_table
from lstm_compile.export.write.translation import OperatorCall, Outputs, Value, ints
from lstm_compile.model.checkpoint import Model
from lstm_compile.model.model import predict_on
from lstm_compile.recurrence.cell_operator import CellInputs

Cells = Literal["node", "plain"]
NODE: Cells = "node"


def export_streaming(
    model: Model | str | Path,
    path: str | Path,
    cells: Cells = NODE,
    runtimes: Sequence[str] | None = None,
) -> ExportReport:
    """Write the streaming file of a model, with its parity report and self-test beside it.

    Args:
        model: the model, or the path of its run folder or safetensors file.
        path: the file to write; an earlier one is replaced.
        cells: `node` for one operator a layer, such as LSTM, or `plain` for MatMul, Sigmoid and
            Tanh, which runtimes without such operators load; this file takes one step a call.
        runtimes: which to compare, as in `verify_onnx`.

    Raises:
        InputError: the model cannot be read or streamed, or the file cannot be written there.
        RunError: the model cannot be translated, or a runtime disagrees; nothing was written.
    """
    job = checked(model, path)
    _check_streamable(job.model.config)
    example = streaming_selftest(job.model, cells == "plain")
    return write_proven(job, to_streaming(job.model, cells, example), example, runtimes)


def _check_streamable(config: ModelConfig) -> None:
    """Refuse a model that needs a whole sequence, or its end; say which part, and what helps."""
    reason = ""
    if config.bidirectional:
        reason = "it reads each sequence from its end too; train with --no-bidirectional"
    elif config.transformer_layers:
        reason = (
            "its Transformer blocks look back at all steps before; train with "
            "--transformer-layers 0, or export without --streaming and pass all steps at each call"
        )
    elif config.traits.is_pooled and config.pooling != "last":
        reason = f"pooling {config.pooling} reads all steps at once; train with --pooling last"
    elif config.scaling in ("series", *WINDOW_SCALINGS):
        reason = f"scaling {config.scaling} needs the whole window; train with --scaling standard"
    elif config.traits.is_series and config.linear:
        reason = "its linear path reads the whole window; train with --no-linear"
    elif config.season:
        reason = "season reads steps long past; train with --season 0"
    if reason:
        raise InputError(f"this model cannot run step by step: {reason}")
    _check_names(config)


def _check_names(config: ModelConfig) -> None:
    """Refuse a cell whose parts have the names of other inputs or outputs."""
    parts, after = names.state_of(config), names.next_state_of(config)
    taken = {*names.inputs_of(config), config.traits.output, *after}
    clashing = sorted(taken.intersection(parts) | {config.traits.output}.intersection(after))
    if clashing:
        raise InputError(
            f"cell {config.cell!r}: its state has parts named {', '.join(parts)}, but "
            f"{', '.join(clashing)} names another tensor of a streaming file; rename that part"
        )


def to_streaming(model: Model, cells: Cells = NODE, example: str | None = None) -> onnx.ModelProto:
    """The model as one graph with its state as input and output.

    `cells` is as for `export_streaming`, `example` as for `to_onnx`.

    Raises:
        InputError: the model cannot be streamed.
    """
    config = model.config
    _check_streamable(config)
    output, shape = names.output_of(config)
    inputs, table = names.streaming_inputs_of(config), model_table()
    if cells == "plain":
        table |= {translation.RECURRENCE: _plain_cell, ANY_CELL: plain_any_cell}
        shape = _one_step(shape)
        inputs = {name: (kind, _one_step(sizes)) for name, (kind, sizes) in inputs.items()}
    form = Form(
        inputs=inputs,
        outputs={output: shape, **{n: s for n, (_, s) in names.next_state_of(config).items()}},
        program=_Stepwise(model),
        metadata=_metadata(model, cells, example),
        table=table,
    )
    return build(model, form)


def _one_step(shape: names.Shape) -> names.Shape:
    return [1 if size == names.TIME else size for size in shape]


def _metadata(model: Model, cells: Cells, example: str | None) -> dict[str, str]:
    """As for the sequence file; also which output feeds which input, and its initial value."""
    example = example or streaming_selftest(model, cells == "plain")
    state = {
        name: {"from": f"{name}{names.NEXT}", "shape": shape, "initial": 0.0}
        for name, (_, shape) in names.state_of(model.config).items()
    }
    return {
        **metadata(model, example),
        "inputs": json.dumps(list(names.streaming_inputs_of(model.config))),
        "outputs": json.dumps([model.config.traits.output, *names.next_state_of(model.config)]),
        names.STATE_KEY: json.dumps({"cells": cells, "tensors": state}),
    }


class _Stepwise(Program):
    """`predict` of a chunk of valid steps, from a state."""

    named = 1

    def forward(self, x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        parts = len(self.config.state_parts)
        state, given = others[:parts], self.given(others[parts:])
        answer, after = predict_on(self.params, self.config, x, None, state, given=given)
        return answer, *after


def plain_any_cell(*inputs: Value) -> list[Value]:
    """One step of one layer of any cell, the operations of the cell itself."""
    return one_step(CellInputs(*inputs))


def _plain_cell(*inputs: Value) -> Outputs:
    """One step of one layer, the same operations as in `lstm_compile.recurrence.cell.lstm_step`."""
    call = OperatorCall(*inputs)
    step = op.Squeeze(call.x, ints(1))
    gates = op.MatMul(step, op.Transpose(call.weight_ih, perm=[1, 0]))
    gates = op.Add(gates, op.MatMul(call.h0, op.Transpose(call.weight_hh, perm=[1, 0])))
    gates = gates if translation.is_zeros(call.bias) else op.Add(gates, call.bias)
    size = int(call.weight_hh.shape[1])
    i, f, g, o = (op.Slice(gates, ints(k * size), ints((k + 1) * size), ints(1)) for k in range(4))
    c = op.Add(op.Mul(op.Sigmoid(f), call.c0), op.Mul(op.Sigmoid(i), op.Tanh(g)))
    h = op.Mul(op.Sigmoid(o), op.Tanh(c))
    return op.Unsqueeze(h, ints(1)), h, c
