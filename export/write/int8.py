"""`export_int8`: LSTM weights of 8 bits, for ONNX Runtime alone.

ONNX Runtime's quantiser replaces each LSTM node by its own DynamicQuantizeLSTM. The weights are
stored as int8; inputs and states are rounded to 8 bits at every step, on a scale that all rows of a
call share. The rest stays float32. Lengths are handled as in the `ort` form.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from lstm_compile.errors import InputError
from lstm_compile.evaluation.evaluate import Evaluation
from lstm_compile.export import names
from lstm_compile.export.proof.parity import INT8_TOLERANCE, measured_error
from lstm_compile.export.proof.selftest import selftest
from lstm_compile.export.use.evaluate_file import evaluate_file
from lstm_compile.export.write.onnx import ExportReport, checked, to_onnx, write_proven
from lstm_compile.export.write.tracing import quiet
from lstm_compile.model.checkpoint import Model


class Int8Report(NamedTuple):
    """What `export_int8` wrote, and how error and size changed."""

    export: ExportReport
    error: float  # largest difference from the float64 model, in units of the parity report
    float_size: int  # bytes of the same file in float32
    before: Evaluation | None = None  # of the float32 model; None where there are no data
    after: Evaluation | None = None  # of the int8 file
    unmeasured: str = ""  # why there is no evaluation

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        before, after = (each and each.metrics for each in (self.before, self.after))
        sizes = {"bytes": self.export.size, "float32_bytes": self.float_size}
        return {"error": self.error, **sizes, "float32_metrics": before, "int8_metrics": after}


def export_int8(source: str | Path, path: str | Path, data: str | None = None) -> Int8Report:
    """Write a model with int8 LSTM weights in the `ort` form, with its report and self-test.

    Args:
        source: a run folder or safetensors file.
        path: the file to write; an earlier one is replaced.
        data: what to measure it on; None means the data that `evaluate` would take.

    Raises:
        InputError: the model or the data cannot be read, or the file cannot be written there.
        RunError: the answers differ from the model's by more than `INT8_TOLERANCE`; nothing was
            written.
    """
    job = checked(source, path)
    if job.model.config.cell != "lstm":
        raise InputError(
            f"int8 weights are for cell lstm, the model's is {job.model.config.cell!r}; export "
            "without --int8"
        )
    example = selftest(job.model, INT8_TOLERANCE)
    plain = to_onnx(job.model, "ort", example, finite=True)
    quantized, error = quantize(job.model, plain)
    report = Int8Report(write_proven(job, quantized, example), error, plain.ByteSize())
    try:
        before, after = evaluate_file(source, data), evaluate_file(path, data)
    except InputError as reason:
        if data is not None:
            raise
        return report._replace(unmeasured=str(reason))
    return report._replace(before=before, after=after)


def quantize(model: Model, plain: onnx.ModelProto) -> tuple[onnx.ModelProto, float]:
    """The `ort` form with int8 LSTM weights, and its largest difference from the model."""
    from onnxruntime.quantization import quantize_dynamic

    # the quantiser advises another pass in the root logger
    with tempfile.TemporaryDirectory() as folder, quiet(None):
        file = Path(folder, "int8.onnx")
        quantize_dynamic(plain, file, op_types_to_quantize=["LSTM"])
        quantized = onnx.load(file)
    quantized.producer_name, quantized.ir_version = names.PRODUCER, names.IR_VERSION
    error = measured_error(model, quantized.SerializeToString())
    values = {"weights": "int8", "error": float(f"{error:.3g}"), "tolerance": INT8_TOLERANCE}
    properties = {entry.key: entry.value for entry in plain.metadata_props}
    properties[names.QUANTIZATION_KEY] = json.dumps(values)
    onnx.helper.set_model_props(quantized, properties)
    return quantized, error
