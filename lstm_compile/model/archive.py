"""The one door to safetensors files: nothing in them is trusted before it is checked.

Loads no torch. The library sees to offsets, which must follow one another without a gap up to the
end of the file, and to sizes, which must be those of shape and type. It takes a header as long as
the file, and a header of many small things needs forty times its own size in memory.

Source: https://huggingface.co/docs/safetensors
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lstm_compile.errors import InputError, reason

PREFIX = 8  # bytes that hold the length of the header
MEND = "train or copy it again"
HEADER_BYTES = 8 << 20


@contextmanager
def open_archive(path: Path, framework: str, mend: str = MEND) -> Iterator[Any]:
    """A safetensors file as the library's `safe_open` gives it, once its header is checked.

    Args:
        path: the file.
        framework: `pt` or `numpy`, whose tensors are wanted.
        mend: what to do about a damaged file.

    Raises:
        InputError: no such file, or one that is damaged, in the body of the `with` statement too.
    """
    try:
        _check_header(path, mend)
        with safe_open(path, framework=framework) as archive:
            yield archive
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:  # of absurd shapes, too
        raise InputError(
            f"{path}: not a readable safetensors file ({reason(error)}); {mend}"
        ) from error


def with_short_header(data: bytes) -> bytes:
    """The bytes of a safetensors file that `open_archive` takes.

    Raises:
        InputError: its header is too long.
    """
    length = int.from_bytes(data[:PREFIX], "little")
    if length > HEADER_BYTES:
        raise InputError(
            f"names and notes of the model take {length} bytes, expected at most {HEADER_BYTES}; "
            "shorten the names of features and classes"
        )
    return data


def _check_header(path: Path, mend: str) -> None:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(PREFIX), "little")
    most = min(size - PREFIX, HEADER_BYTES)
    if length > most:
        raise InputError(
            f"{path}: not a readable safetensors file (its header says {length} bytes, expected at "
            f"most {max(most, 0)}); {mend}"
        )
