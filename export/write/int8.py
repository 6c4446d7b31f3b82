"""`export_int8`: LSTM weights of 8 bits, for ONNX Runtime alone.

ONNX Runtime's own quantisation turns each LSTM node into its DynamicQuantizeLSTM: weights are int8
for good, inputs and states become so at every step, on a scale that all rows of a call share. The
rest stays float32. Rows of different lengths are answered as in the `ort` form.
"""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import onnx

from lstm_compile.errors import InputError
from lstm_compile.evaluation.evaluate import Evaluation
from lstm_compile.export import names
from lstm_compile.export.proof.parity import INT8_TOLERANCE, measured_error, verify_onnx
from lstm_compile.export.proof.selftest import selftest
from lstm_compile.export.use.evaluate_file import evaluate_file
from lstm_compile.export.write.onnx import (
    ExportReport,
    check_target,
    proven,
    report_of,
    to_onnx,
    write_beside,
)
from lstm_compile.model.checkpoint import Model, load_model


class Int8Report(NamedTuple):
    """What `export_int8` wrote, and what 8 bits cost and save."""

    export: ExportReport
    error: float  # largest difference from the float64 model, in units of the parity report
    float_size: int  # bytes of the same file in float32
    before: Evaluation | None  # of the float32 model; None where no data are at hand
    after: Evaluation | None  # of the int8 file
    unmeasured: str  # why there is no evaluation

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        before, after = (found and found.metrics for found in (self.before, self.after))
        sizes = {"bytes": self.export.size, "float32_bytes": self.float_size}
        return {"error": self.error, **sizes, "float32_metrics": before, "int8_metrics": after}


def export_int8(source: str | Path, path: str | Path, data: str | None = None) -> Int8Report:
    """Write a model with int8 LSTM weights in the `ort` form, with its report and self-test.

    Args:
        source: a run folder or safetensors file.
        path: the file to write; an earlier one is replaced.
        data: what to measure it on; None is what `evaluate` would take.

    Raises:
        InputError: the model or the data cannot be read, or the file cannot be written there.
        RunError: the answers lie further from the model's than `INT8_TOLERANCE`; nothing was
            written.
    """
    began, path = perf_counter(), Path(path)
    check_target(path)
    model = load_model(source)
    example = selftest(model, INT8_TOLERANCE)
    plain = to_onnx(model, "ort", example, finite=True)
    quantized, error = quantize(model, plain)
    content = quantized.SerializeToString(deterministic=True)
    with proven(path, content, lambda file: verify_onnx(model, file)) as parity:
        beside = write_beside(path.parent, f"{path.stem}.", parity, example)
    report = report_of(path, content, began, parity, beside)
    found: tuple[Evaluation | None, Evaluation | None, str]
    try:
        found = evaluate_file(source, data), evaluate_file(path, data), ""
    except InputError as reason:
        if data is not None:
            raise
        found = None, None, str(reason)
    return Int8Report(report, error, plain.ByteSize(), *found)


def quantize(model: Model, plain: onnx.ModelProto) -> tuple[onnx.ModelProto, float]:
    """The `ort` form with int8 LSTM weights, and its largest difference from the model."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder, "int8.onnx")
        quantize_dynamic(plain, file, op_types_to_quantize=["LSTM"])
        quantized = onnx.load(file)
    quantized.producer_name, quantized.ir_version = names.PRODUCER, names.IR_VERSION
    properties = {entry.key: entry.value for entry in plain.metadata_props}
    onnx.helper.set_model_props(quantized, properties)
    error = measured_error(model, quantized.SerializeToString())
    values = {"weights": "int8", "error": float(f"{error:.3g}"), "tolerance": INT8_TOLERANCE}
    properties[names.QUANTIZATION_KEY] = json.dumps(values)
    onnx.helper.set_model_props(quantized, properties)
    return quantized, error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the quantiser says to the root logger: that it would like another pass."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
