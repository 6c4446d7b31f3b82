"""LSTM sequence models written for torch.compile, with one ONNX file proven to agree.

Names are resolved on first use (PEP 562), so that importing the package, asking for help or running
an exported model loads no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstm_compile.lazy import import_with_torch, lazy_names

if TYPE_CHECKING:
    from lstm_compile.config import ModelConfig as ModelConfig
    from lstm_compile.data.sequences import from_padded as from_padded
    from lstm_compile.model.checkpoint import load_model as load_model
    from lstm_compile.model.checkpoint import save_model as save_model
    from lstm_compile.model.model import forward as forward
    from lstm_compile.model.model import init_params as init_params
    from lstm_compile.recurrence.any_cell import Cell as Cell
    from lstm_compile.recurrence.any_cell import register_cell as register_cell
    from lstm_compile.recurrence.autotune import explain_backend as explain_backend
    from lstm_compile.recurrence.calibrate import calibrate as calibrate
    from lstm_compile.recurrence.cell import LSTMState as LSTMState
    from lstm_compile.recurrence.function import lstm as lstm
    from lstm_compile.recurrence.module import GRU as GRU
    from lstm_compile.recurrence.module import LSTM as LSTM
    from lstm_compile.recurrence.module import Recurrent as Recurrent
    from lstm_compile.recurrence.recurrent import recurrent as recurrent
    from lstm_compile.training.loop import fit as fit
    from lstm_compile.training.settings import TrainingConfig as TrainingConfig

_HOMES = {
    "Cell": "recurrence.any_cell",
    "GRU": "recurrence.module",
    "LSTM": "recurrence.module",
    "LSTMState": "recurrence.cell",
    "ModelConfig": "config",
    "Recurrent": "recurrence.module",
    "TrainingConfig": "training.settings",
    "calibrate": "recurrence.calibrate",
    "explain_backend": "recurrence.autotune",
    "fit": "training.loop",
    "forward": "model.model",
    "from_padded": "data.sequences",
    "init_params": "model.model",
    "load_model": "model.checkpoint",
    "lstm": "recurrence.function",
    "recurrent": "recurrence.recurrent",
    "register_cell": "recurrence.any_cell",
    "save_model": "model.checkpoint",
}

__all__ = sorted(_HOMES)
_find, __dir__ = lazy_names(__name__, _HOMES)

_root = Path(__file__).resolve().parent.parent
if (_root / "export").is_dir() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))  # a checkout: `export` and `cli` stand beside this folder


def __getattr__(name: str) -> Any:
    """A public name on its first use, or the version."""
    return _version() if name == "__version__" else _find(name)


def _version() -> str:
    """The version of the installed package, or of a checkout that was never installed."""
    import tomllib
    from importlib import metadata

    try:
        return metadata.version("lstm-compile")
    except metadata.PackageNotFoundError:
        project = tomllib.loads((_root / "pyproject.toml").read_text("utf-8"))
        return str(project["project"]["version"])


# saved programs, as torch.export.load opens them, use these operators
import_with_torch("lstm_compile.recurrence.operator")
