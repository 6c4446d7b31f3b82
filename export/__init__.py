"""Export to ONNX and the proof that the file agrees with the model.

Names are resolved on first use (PEP 562): importing this package loads neither torch nor onnx.
"""

from typing import TYPE_CHECKING

from lstm_compile.lazy import lazy_names

if TYPE_CHECKING:
    from lstm_compile.export.proof.parity import verify_onnx as verify_onnx
    from lstm_compile.export.proof.parity_report import ParityReport as ParityReport
    from lstm_compile.export.write.int8 import export_int8 as export_int8
    from lstm_compile.export.write.onnx import ExportReport as ExportReport
    from lstm_compile.export.write.onnx import export_onnx as export_onnx
    from lstm_compile.export.write.streaming import export_streaming as export_streaming
    from lstm_compile.export.write.tables import translation_table as translation_table

_HOMES = {
    "ExportReport": "write.onnx",
    "ParityReport": "proof.parity_report",
    "export_int8": "write.int8",
    "export_onnx": "write.onnx",
    "export_streaming": "write.streaming",
    "translation_table": "write.tables",
    "verify_onnx": "proof.parity",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
