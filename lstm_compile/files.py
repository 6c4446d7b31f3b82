"""Files that are written whole or not at all, and checked JSON."""

import glob
import json
import math
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lstm_compile.errors import InputError, reason

LONGEST_JSON = 8 << 20  # characters
MOST_BRACKETS = 1 << 17  # an empty list takes thirty times its own text in memory


def check_target(path: Path, suffixes: Collection[str], what: str) -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises:
        InputError: a folder, no folder to write in, or none of `suffixes`; `what` names the file.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"{path}: {what} must end in {' or '.join(suffixes)}, found "
            f"{repr(path.suffix) if path.suffix else 'no ending'}"
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, sync, rename, sync the folder.

    Raises:
        InputError: the folder is missing, read-only or full.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            os.replace(name, path)
            _sync_folder(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); check the folder and its rights"
        ) from error


def remove_unfinished(folder: Path, *names: str) -> None:
    """Remove what processes that were killed left of their writes to files of these names."""
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.????????"):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Let the rename survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def from_json(text: str, what: str) -> dict[str, Any]:
    """The JSON object in a text that anybody may have written.

    Raises:
        InputError: too long, too deep, of too many parts, no JSON or no object; `what` names it.
    """
    if len(text) > LONGEST_JSON or text.count("[") + text.count("{") > MOST_BRACKETS:
        raise InputError(
            f"{what}: expected JSON of at most {LONGEST_JSON} characters and {MOST_BRACKETS} lists "
            f"and objects, found more"
        )
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what}: not valid JSON ({reason(error)})") from error
    if not isinstance(value, dict):
        raise InputError(f"{what}: expected a JSON object, found {type(value).__name__}")
    return value


def to_json(value: Any) -> str:
    """One line of strict JSON; numbers that are not finite become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
