"""Whether weights, config and data go together; `fit` asks before its first step."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.sequences import IGNORED
from lstm_compile.data.series.windows import Windows
from lstm_compile.data.stream import Stream
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing
from lstm_compile.model.model import param_shapes


def check_fit(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    parts: Mapping[str, Examples | Stream | Corpus | None],
) -> None:
    """Check the arguments of `fit`; `parts` are its data by the names of the arguments.

    Raises:
        InputError: gradients are off, weights of another model, or data that do not fit the config.
    """
    if not torch.is_grad_enabled():
        raise InputError("fit needs gradients; call it outside of no_grad and inference_mode")
    _check_params(params, config)
    for name, data in parts.items():
        if data is not None:
            _check_data(name, config, data)


def _check_params(params: Mapping[str, Tensor], config: ModelConfig) -> None:
    expected, found = param_shapes(config), {name: tuple(v.shape) for name, v in params.items()}
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise InputError(
                f"params: {name!r} must have shape {expected.get(name, 'none')}, found "
                f"{found.get(name, 'none')}; make params with init_params(config, seed)"
            )
    for name, value in params.items():
        if value.dtype != torch.float32 or value.is_inference():
            kind = "an inference tensor" if value.is_inference() else str(value.dtype)
            raise InputError(f"params: {name!r} must be a plain float32 tensor, found {kind}")


def _check_data(name: str, config: ModelConfig, data: Examples | Stream | Corpus) -> None:
    if not len(data):
        raise InputError(f"{name} is empty; expected a row at least")
    schema, task = data.schema, config.traits
    if isinstance(data, Corpus) != task.is_text or isinstance(data, Windows) != task.is_series:
        kind = type(data).__name__
        raise InputError(f"{name} holds {kind}, which task {config.task} does not learn from")
    found, wanted = len(schema.vocabulary or ()), config.vocabulary_size
    if found != wanted:
        raise InputError(f"{name} has a vocabulary of {found} tokens, the model {wanted}")
    width = len(schema.features)
    if not wanted and width != config.input_size:
        raise InputError(
            f"{name} has {width} features ({listing(schema.features)}), the model's input_size is "
            f"{config.input_size}"
        )
    if isinstance(data, Windows):
        _check_windows(name, config, data)
    elif not isinstance(data, Corpus):
        _check_labels(name, config, data.y)


def _check_labels(name: str, config: ModelConfig, y: Tensor) -> None:
    size, has_classes = config.output_size, config.traits.has_classes
    if has_classes and y.dtype != torch.int64:
        raise InputError(
            f"task {config.task} needs int64 class codes, found {y.dtype} in {name}.y; take task "
            "regress, or codes"
        )
    if not has_classes and not (y.is_floating_point() and y.dim() == 2 and y.shape[1] == size):
        raise InputError(
            f"task {config.task} needs floating targets (rows, {size}), found {y.dtype} "
            f"{tuple(y.shape)} in {name}.y"
        )
    if not has_classes:
        return
    is_right = (y >= 0) & (y < size)
    if config.traits.per_step:
        is_right |= y == IGNORED
    for row in (~is_right).nonzero()[:1, 0].tolist():
        raise InputError(
            f"classes must be codes from 0 to {size - 1}, found {int(y[row])} in {name}.y, row "
            f"{row}; the model's output_size is {size}"
        )


def _check_windows(name: str, config: ModelConfig, data: Windows) -> None:
    sizes = {
        "targets": (len(data.targets), config.output_size),
        "horizon": (data.shape.horizon, config.horizon),
        "static covariates": (data.statics.shape[1], len(config.static_sizes)),
        "known covariates": (len(data.table.info.known_features), config.known_size),
    }
    for what, (found, wanted) in sizes.items():
        if found != wanted:
            raise InputError(f"{name}: {what} must be {wanted} as in the config, found {found}")
