"""The user's cache folder, in which later processes find compiled graphs; the time compiling took.

Compiled graphs are code: they are only loaded from a folder that no other user can write to.
"""

import os
import stat
import sys
import warnings
from pathlib import Path

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
PRIVATE = 0o700


def cache_dir() -> Path:
    """The folder of this package in the user's cache; it may not exist yet.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "lstm-compile"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "lstm-compile"


def use_local_cache() -> None:
    """Have torch.compile keep its graphs in `cache_dir()`, so that a second process loads them.

    Programs call it before they first compile. TORCHINDUCTOR_CACHE_DIR takes precedence. If the
    folder cannot be made private, torch's own default stays, and a warning says why.
    """
    if INDUCTOR in os.environ:
        return
    try:
        folder = private_folder("inductor")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        warnings.warn(
            f"compiled graphs are not kept in {error}; set {INDUCTOR} to a folder of your own",
            stacklevel=2,
        )
    else:
        os.environ[INDUCTOR] = str(folder)


def private_folder(name: str) -> Path:
    """The folder `name` in `cache_dir()`, made with mode 0700 if need be.

    Raises:
        OSError: it cannot be made, belongs to another user, or others can write to it.
        RuntimeError: there is no home folder to look for it in.
    """
    folder = cache_dir() / name
    for each in (folder.parent, folder):
        each.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        _require_own(each)
    return folder


def _require_own(folder: Path) -> None:
    if sys.platform == "win32":  # there the folder inherits that it is private
        return
    status = folder.stat()
    owner, mode = status.st_uid, status.st_mode
    if owner != os.getuid():
        raise PermissionError(f"{folder}: it belongs to user {owner}, not {os.getuid()}")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder}: others can write to it (mode {mode & 0o777:o})")


def compile_seconds() -> float:
    """Seconds this process has spent in the compiler so far, loading graphs included."""
    seconds = 0.0
    if "lstm_compile.recurrence.inductor" in sys.modules:
        from lstm_compile.recurrence.inductor import GRAPH_SECONDS

        seconds = sum(GRAPH_SECONDS)
    if "torch._dynamo.utils" in sys.modules:
        from torch._dynamo.utils import calculate_time_spent

        seconds += calculate_time_spent()["total_wall_time"]
    return seconds
