"""The file of a trained model: safetensors with config, schema and provenance."""

import json
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema, SeriesSchema
from lstm_compile.errors import InputError
from lstm_compile.files import from_json, write_atomically
from lstm_compile.formatting import near_file
from lstm_compile.model.header import FORMAT, open_archive, with_short_header
from lstm_compile.model.model import Params, param_shapes
from lstm_compile.model.run_folder import MODEL_FILE, own_file
from lstm_compile.recurrence.cell_file import cell_of

FORMAT_VERSION = "1"


class Model(NamedTuple):
    """The content of a model file."""

    params: Params  # float32, as `param_shapes(config)` names and shapes them
    config: ModelConfig
    schema: Schema
    training: dict[str, Any]  # data fingerprint, seed, epochs, metrics, versions, duration


def save_model(
    path: str | Path,
    params: Mapping[str, Tensor],
    config: ModelConfig,
    schema: Schema | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write one safetensors file, whole or not at all.

    `params` are all tensors of `param_shapes(config)`, on any device, stored as float32; `schema`
    has the names of features and classes or targets, numbered if None. `training` tells how the
    model was trained: anything that JSON can hold.

    Raises:
        InputError: params do not fit the config, names are too many or too long, or the file cannot
            be written.
    """
    _check_shapes({name: tuple(value.shape) for name, value in params.items()}, config)
    schema = schema or numbered_schema(config)
    _check_schema(schema, config)
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in params.items()}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": config.to_json(),
        "schema": schema.to_json(),
        "training": json.dumps(dict(training or {}), sort_keys=True),
    }
    write_atomically(Path(path), with_short_header(save(tensors, metadata)))


def load_model(path: str | Path) -> Model:
    """Read a model from its file or run folder.

    The header is checked against the config before a tensor is read; nothing is unpickled, and no
    code is run: a cell of one's own must be known already, see `register_cell`.

    Raises:
        InputError: no such file, not a safetensors file, not one of this package, a cell that
            is not known here, or tensors that do not fit the config; the message names each.
    """
    with open_archive(model_file(path), "pt") as archive:
        return _read(archive)


def _read(archive: Any) -> Model:
    metadata = _checked_metadata(archive.metadata() or {})
    config = ModelConfig.from_json(metadata["config"])
    cell_of(config)
    slices = {name: archive.get_slice(name) for name in archive.keys()}  # noqa: SIM118
    _check_shapes({name: tuple(part.get_shape()) for name, part in slices.items()}, config)
    for name, part in slices.items():
        if part.get_dtype() != "F32":
            raise InputError(f"{name} must be F32, found {part.get_dtype()}; train again")
    schema = Schema.from_json(metadata["schema"])
    _check_schema(schema, config)
    training = from_json(metadata["training"], "metadata `training`")
    params = {name: archive.get_tensor(name) for name in param_shapes(config)}
    return Model(params, config, schema, training)


def model_file(path: str | Path) -> Path:
    """The model file of a run folder, or the file itself.

    Raises:
        InputError: there is nothing, or a folder without a model.
    """
    path = Path(path)
    if path.is_dir():
        if (file := own_file(path, MODEL_FILE)) is None:
            raise InputError(
                f"{path}: no {MODEL_FILE} in this folder; name a run folder, or make one with "
                "`lstm-compile train`"
            )
        return file
    if not path.is_file():
        raise InputError(
            f"{path}: no such file or run folder; make one with `lstm-compile train`"
            f"{near_file(path)}"
        )
    return path


def to_device(params: Mapping[str, Tensor], device: torch.device | str) -> Params:
    """The same parameters on `device`."""
    return {name: value.to(device) for name, value in params.items()}


def numbered_schema(config: ModelConfig) -> Schema:
    """Names for a model whose data have none: `feature_0`, `class_0`, `target_0` and so on."""
    return config.traits.schema(config)


def _checked_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"a safetensors file, but not one of this package (metadata format is "
            f"{metadata.get('format')!r}, expected {FORMAT!r}); make one with `lstm-compile train`"
        )
    if metadata.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"format_version is {metadata.get('format_version')!r}, this package reads "
            f"{FORMAT_VERSION!r}; upgrade the package or train again"
        )
    if missing := {"config", "schema", "training"} - set(metadata):
        raise InputError(f"metadata lacks {sorted(missing)}; train or copy it again")
    return metadata


def _check_shapes(found: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
    expected = param_shapes(config)
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} has shape {found[name]}, expected {expected[name]}"
        for name in expected.keys() & found.keys()
        if found[name] != expected[name]
    ]
    if problems:
        raise InputError(f"tensors do not fit the config: {'; '.join(sorted(problems))}")


def _check_schema(schema: Schema, config: ModelConfig) -> None:
    task = config.traits
    outputs: Sized = schema.classes if task.has_classes else schema.targets
    tokens = 0 if schema.vocabulary is None else len(schema.vocabulary)
    if tokens != config.vocabulary_size:
        raise InputError(
            f"schema has a vocabulary of {tokens}, the config one of {config.vocabulary_size}"
        )
    if task.is_text and schema.vocabulary is not None:
        outputs = schema.vocabulary
    if (schema.category_sizes, schema.has_other) != (config.category_sizes, config.has_other):
        raise InputError(
            f"schema has columns of {schema.category_sizes} categories, the config of "
            f"{config.category_sizes}"
        )
    found, expected = (len(schema.features), len(outputs)), (config.input_size, config.output_size)
    if found != expected:
        raise InputError(
            f"schema names {found[0]} features and {found[1]} outputs, the config has "
            f"{expected[0]} and {expected[1]}"
        )
    if task.is_series == (schema.series is None):
        raise InputError(f"schema does not fit task {config.task}; train again")
    if schema.series is not None:
        _check_series(schema.series, config)


def _check_series(series: SeriesSchema, config: ModelConfig) -> None:
    found = len(series.known_features), series.static_sizes
    expected = config.known_size, config.static_sizes
    if found != expected:
        raise InputError(
            f"schema names {found[0]} known covariates and {found[1]} categories, the config has "
            f"{expected[0]} and {expected[1]}"
        )
