"""What a run folder or a `.safetensors` file holds, read off its header. Loads no torch."""

import json
import math
from pathlib import Path
from typing import Any

from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.errors import InputError
from lstm_compile.files import from_json
from lstm_compile.model.archive import open_archive
from lstm_compile.model.run_folder import MODEL_FILE, own_file

FORMAT = "lstm_compile"
STATISTICS = ("scaler.", "target_scaler.")  # of the data, not learned


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
    """A run folder: what `inspect_safetensors` gives of its model, and `files` (bytes by name).

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
    """What the metadata of a trained model say, whatever file they stand in.

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
    """How many numbers were learned."""
    learned = (shape for name, shape in shapes.items() if not name.startswith(STATISTICS))
    return sum(math.prod(shape) for shape in learned)
