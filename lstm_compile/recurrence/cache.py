"""What one process leaves for the next in the user's cache folder, and what compiling took.

Compiled graphs are code: they are loaded from a folder only that nobody else can write to.
"""

import os
import stat
import sys
import warnings
from pathlib import Path

INDUCTOR = "TORCHINDUCTOR_CACHE_DIR"
PRIVATE = 0o700


def cache_dir() -> Path:
    """The folder of this package in the user's cache; it need not be there yet.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "lstm-compile"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "lstm-compile"


def use_local_cache() -> None:
    """Let torch.compile keep its graphs in `cache_dir()`, so that a second process loads them.

    For programs to call, before the first compile. TORCHINDUCTOR_CACHE_DIR goes before it. Where
    the folder cannot be had to oneself, torch's own default stays, and a warning says why.
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
    if sys.platform == "win32":  # its folders are the user's own by inheritance
        return
    found = folder.stat()
    if found.st_uid != os.getuid():
        raise PermissionError(f"{folder}: it belongs to user {found.st_uid}, not {os.getuid()}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder}: others can write to it (mode {found.st_mode & 0o777:o})")


def compile_seconds() -> float:
    """Seconds this process has spent in torch.compile so far, loading graphs included."""
    if "torch._dynamo.utils" not in sys.modules:
        return 0.0
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]
