"""LSTM sequence models written for torch.compile, with one ONNX file proven to agree.

Names are resolved on first use (PEP 562), so that importing the package, asking for help or running
an exported model loads no torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lstm_compile.calibration import calibrate as calibrate
    from lstm_compile.cell import LSTMState as LSTMState
    from lstm_compile.checkpoint import load_model as load_model
    from lstm_compile.checkpoint import save_model as save_model
    from lstm_compile.choice import explain_backend as explain_backend
    from lstm_compile.config import ModelConfig as ModelConfig
    from lstm_compile.data.padded import from_padded as from_padded
    from lstm_compile.model import forward as forward
    from lstm_compile.model import init_params as init_params
    from lstm_compile.module import LSTM as LSTM
    from lstm_compile.stack import lstm as lstm
    from lstm_compile.training.config import TrainingConfig as TrainingConfig
    from lstm_compile.training.loop import fit as fit

_HOMES = {
    "LSTM": "module",
    "LSTMState": "cell",
    "ModelConfig": "config",
    "TrainingConfig": "training.config",
    "calibrate": "calibration",
    "explain_backend": "choice",
    "fit": "training.loop",
    "forward": "model",
    "from_padded": "data.padded",
    "init_params": "model",
    "load_model": "checkpoint",
    "lstm": "stack",
    "save_model": "checkpoint",
}

__all__ = sorted(_HOMES)

_root = Path(__file__).resolve().parent.parent
if (_root / "export").is_dir() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))  # a checkout: `export` and `cli` stand beside this folder


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lstm_compile' has no attribute {name!r}")
    return getattr(import_module(f"lstm_compile.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
