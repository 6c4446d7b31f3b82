"""A lock on a folder: one process at a time writes there, and the lock of a dead one is none.

Source: https://man7.org/linux/man-pages/man2/flock.2.html
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lstm_compile.errors import InputError

LOCK_FILE = "run.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process that asks for the same folder out.

    The system gives a lock back when its process ends, however it ends: a file that is left over
    locks nothing. Windows has no such lock, and there nobody is kept out.

    Raises:
        InputError: another process has it, which the message names, or the file cannot be made.
    """
    if sys.platform == "win32":
        yield
        return
    path = folder / LOCK_FILE
    handle = _taken(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is given back: nobody else's is ever removed
        os.close(handle)


def _taken(path: Path) -> int:
    import fcntl  # there is none on Windows

    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise InputError(
                f"{path.parent}: another run writes there (process {owner or 'unknown'}); wait "
                "for its end, stop it, or name another --output"
            ) from error
        except OSError as error:
            raise InputError(
                f"{path}: cannot be locked ({error.strerror}); check the folder and its rights"
            ) from error
        if _is_at(handle, path):
            return handle
        os.close(handle)  # removed by its owner between the two calls


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
