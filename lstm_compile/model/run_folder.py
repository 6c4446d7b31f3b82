"""Run folders: their places and the names of their files."""

import glob
from pathlib import Path

from lstm_compile.errors import InputError

RUNS = Path("runs")
MODEL_FILE = "model.safetensors"
ONNX_FILE = "model.onnx"
BASELINES_FILE = "baselines.safetensors"
CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
LAST_FILE = "last.safetensors"
REPORT_FILE = "report.html"


def new_run_folder(data: str, output: Path | None = None) -> Path:
    """Make the folder of a new run: `output`, or runs/DATA-1, -2, ...

    Raises:
        InputError: `output` holds a run already, is a file, or cannot be made.
    """
    try:
        if output is None:
            return _numbered(RUNS, Path(data).stem)
        if any((output / name).exists() for name in (MODEL_FILE, CONFIG_FILE, LAST_FILE)):
            raise InputError(f"{output}: holds a run already; name another --output or remove it")
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{output or RUNS}: cannot be made ({error.strerror}); name another --output"
        ) from error
    return output


def own_file(folder: Path, name: str) -> Path | None:
    """A file of a run folder; None if it is not there.

    Raises:
        InputError: it is a link, which may lead out of the folder, or no plain file.
    """
    path = folder / name
    if path.is_symlink():
        raise InputError(
            f"{path}: is a link, and the files of a run lie in its own folder; name the file that "
            "it leads to, or copy that here"
        )
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a plain file; train again, or copy it here")
    return path if path.exists() else None


def last_run_folder(data: str) -> Path | None:
    """The last of runs/DATA-1, -2, ...; None if there is none."""
    name = glob.escape(Path(data).stem)
    found = [f for f in RUNS.glob(f"{name}-*") if f.name.rpartition("-")[2].isdecimal()]
    return max(found, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def newest_run() -> Path:
    """The run folder in `runs/` whose model is the newest.

    Raises:
        InputError: there is none.
    """
    models = list(RUNS.glob(f"*/{MODEL_FILE}"))
    if not models:
        raise InputError(
            f"no run in {RUNS.absolute()}: train one with `lstm-compile train`, or name a folder"
        )
    return max(models, key=lambda path: path.stat().st_mtime_ns).parent


def _numbered(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{name}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
