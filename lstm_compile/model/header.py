"""The headers of safetensors files: checked before anything in them is trusted. Loads no torch.

The library checks offsets, which must follow one another without a gap up to the end of the file,
and sizes, which must be those of shape and type. It does not limit the header, and a header of many
small things takes forty times its own size in memory.

Source: https://huggingface.co/docs/safetensors
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.errors import InputError, reason
from lstm_compile.files import from_json
from lstm_compile.model.run_folder import MODEL_FILE, own_file

FORMAT = "lstm_compile"
STATISTICS = ("scaler.", "target_scaler.")  # of the data, not learned
PREFIX = 8  # bytes that hold the length of the header
MEND = "train or copy it again"
HEADER_BYTES = 8 << 20


@contextmanager
def open_archive(path: Path, framework: str, mend: str = MEND) -> Iterator[Any]:
    """A safetensors file, opened by the library once its header is checked.

    The tensors are those of `framework`, `pt` or `numpy`; `mend` says what a person should do about
    a damaged file.

    Raises:
        InputError: no such file, or a damaged one; names the file also where the body of the `with`
            statement raises it.
    """
    try:
        _check_header(path, mend)
        with safe_open(path, framework=framework) as archive:
            yield archive
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:  # of absurd shapes, too
        raise InputError(
            f"{path}: not a readable safetensors file ({reason(error)}); {mend}"
        ) from error


def with_short_header(data: bytes) -> bytes:
    """The bytes of a safetensors file, if `open_archive` accepts its header.

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
            f"not a readable safetensors file (its header says {length} bytes, expected at most "
            f"{max(most, 0)}); {mend}"
        )


def inspect_safetensors(path: Path) -> dict[str, Any]:
    """The header of a `.safetensors` file of this package; no tensor is read.

    Returns:
        `path`, `bytes`, what `described` gives, `parameters` and `tensors` (shapes by name).

    Raises:
        InputError: no such file, not a safetensors file, or not one of this package.
    """
    with open_archive(path, "numpy") as archive:
        metadata = archive.metadata() or {}
        names = list(archive.keys())
        tensors = {name: list(archive.get_slice(name).get_shape()) for name in names}
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path}: a safetensors file, but not one of this package (metadata format is "
            f"{metadata.get('format')!r}, expected {FORMAT!r})"
        )
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        **described(path, metadata),
        "parameters": count_parameters(tensors),
        "tensors": dict(sorted(tensors.items())),
    }


def inspect_run(folder: Path) -> dict[str, Any]:
    """A run folder: `inspect_safetensors` of its model, and `files` (bytes by name).

    Raises:
        InputError: no model in it, or a damaged one.
    """
    file = own_file(folder, MODEL_FILE)
    if file is None:
        raise InputError(f"{folder}: no {MODEL_FILE} in this folder; name a run folder")
    found = inspect_safetensors(file)
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    return {**found, "path": str(folder), "files": files}


def described(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The metadata of a trained model, of any kind of file.

    Returns:
        `task`, `schema` (names), `config`, `training` (data, seed, versions and figures).

    Raises:
        InputError: something is missing or damaged; names the file.
    """
    try:
        config = ModelConfig.from_json(metadata["config"])
        schema = Schema.from_json(metadata["schema"])
        training = from_json(metadata["training"], "metadata `training`")
    except KeyError as error:
        raise InputError(f"{path}: its metadata lack {error}; train or export again") from error
    except (InputError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    return {
        "task": config.task,
        "schema": json.loads(schema.to_json()),
        "config": json.loads(config.to_json()),
        "training": training,
    }


def count_parameters(shapes: dict[str, list[int]]) -> int:
    """The number of learned parameters."""
    learned = (shape for name, shape in shapes.items() if not name.startswith(STATISTICS))
    return sum(math.prod(shape) for shape in learned)
