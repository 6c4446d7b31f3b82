"""Export to ONNX and the proof that the file agrees with the model.

Names are resolved on first use (PEP 562): importing this package loads neither torch nor onnx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_compile.export.int8 import export_int8 as export_int8
    from lstm_compile.export.onnx import ExportReport as ExportReport
    from lstm_compile.export.onnx import export_onnx as export_onnx
    from lstm_compile.export.parity import verify_onnx as verify_onnx
    from lstm_compile.export.report import ParityReport as ParityReport
    from lstm_compile.export.streaming import export_streaming as export_streaming
    from lstm_compile.export.translation import translation_table as translation_table

_HOMES = {
    "ExportReport": "onnx",
    "ParityReport": "report",
    "export_int8": "int8",
    "export_onnx": "onnx",
    "export_streaming": "streaming",
    "translation_table": "translation",
    "verify_onnx": "parity",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lstm_compile.export' has no attribute {name!r}")
    return getattr(import_module(f"lstm_compile.export.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
