"""The model as pure functions of a flat dict of tensors: scaler, LSTM stack, pooling, head.

Transformer blocks may stand between the LSTM stack and pooling. If every step has an answer, there
is no pooling: the head reads every step. Forecasts are made by `lstm_compile.model.forecaster`.

The keys are those of the saved file: `lstm.weight_ih_l0` ... (of another cell
`cell.NAME_l0` ...), `transformer.0.norm1.weight` ...,
`head.weight`, `head.bias`, `pooling.weight` for learned attention, `scaler.shift`, `scaler.scale`,
and the same of `target_scaler` for regression.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, embedding, linear

from lstm_compile.config import Backend, ModelConfig
from lstm_compile.errors import InputError
from lstm_compile.model.batch import Given
from lstm_compile.model.embeddings import category_shapes, with_vectors
from lstm_compile.model.encoder import Mode, encode, encoder_shapes, initial
from lstm_compile.model.forecaster import decoder_shapes, forecast, input_size, roll_out
from lstm_compile.model.pooling import pool
from lstm_compile.model.scaling import Scaler
from lstm_compile.recurrence.lengths import valid_mask, zero_padding
from lstm_compile.recurrence.operator import DEFAULT_CHUNK
from lstm_compile.tasks import tasks_with

Params = dict[str, Tensor]
NOTHING = Given()
FROZEN = ("scaler.", "target_scaler.")
ENCODER = ("lstm.", "cell.")
DENSE = ("head.", "decoder.", "embedding.", "categories.")


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of a model, in the order of computation."""
    first = config.embedding_size if config.vocabulary_size else input_size(config)
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocabulary_size, first)}
    if not config.vocabulary_size:
        shapes = {"scaler.shift": (config.input_size,), "scaler.scale": (config.input_size,)}
        shapes |= {} if config.traits.is_series else category_shapes(config)
    shapes |= encoder_shapes(config, first)
    if config.pooling == "attention" and config.traits.is_pooled:
        shapes["pooling.weight"] = (config.width,)
    if config.traits.is_series:
        return {**shapes, **decoder_shapes(config)}
    if not config.tie:
        shapes["head.weight"] = (config.output_size, config.width)
    shapes["head.bias"] = (config.output_size,)
    if config.traits.has_target_scaler:
        shapes["target_scaler.shift"] = shapes["target_scaler.scale"] = (config.output_size,)
    return shapes


def init_params(config: ModelConfig, seed: int) -> Params:
    """Fresh float32 parameters on the CPU; the same seed gives the same tensors.

    Input and head weights are Glorot-uniform (Glorot and Bengio 2010), each gate on its own;
    recurrent weights are orthogonal gate by gate (Saxe et al. 2014); biases are 0, except that
    `bias_ih` of the forget gate is 1 (Jozefowicz et al. 2015). Attention scores start equal, the
    linear path of a forecast at 0, scalers as the identity, Transformer blocks as
    `encoder.initial_of_block` says.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _initial(name, shape, config, generator)
        for name, shape in param_shapes(config).items()
    }


def _initial(
    name: str, shape: tuple[int, ...], config: ModelConfig, generator: torch.Generator
) -> Tensor:
    if name.startswith((*ENCODER, "transformer.")):
        return initial(name, shape, config, generator)
    if name.endswith("scaler.scale"):
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    tensor = torch.zeros(shape, dtype=torch.float32, device="cpu")
    if name.startswith(DENSE) and name.endswith(".weight"):
        torch.nn.init.xavier_uniform_(tensor, generator=generator)
    return tensor


def trainable(params: Mapping[str, Tensor], freeze: str = "none") -> Params:
    """The parameters that training changes; scalers are not among them.

    If `freeze` is `encoder`, the recurrent stack is left out too; pooling and head remain.
    """
    fixed = FROZEN + ENCODER if freeze == "encoder" else FROZEN
    return {name: value for name, value in params.items() if not name.startswith(fixed)}


def scaler_of(params: Mapping[str, Tensor], name: str) -> Scaler:
    """The scaler called `name`, `scaler` or `target_scaler`; the identity if there is none."""
    if f"{name}.shift" not in params:
        some = params["head.bias"]
        return Scaler(some.new_zeros(1), some.new_ones(1))
    return Scaler(params[f"{name}.shift"], params[f"{name}.scale"])


def forward(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor | None = None,
    state: tuple[Tensor, ...] | None = None,
    *,
    resets: Tensor | None = None,
    given: Given = NOTHING,
    training: bool = False,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the model on padded sequences in the user's own units.

    Args:
        params: see `param_shapes`; all of one dtype and device.
        config: the architecture.
        x: (batch, time, input_size), or int64 tokens (batch, time) for a model with a vocabulary.
        lengths: (batch,) int64, or None if every step is valid; on the CPU no device waits for it.
        state: initial state of the recurrent stack, one tensor (num_layers * num_directions, batch,
            size) for each of `config.state_parts`, as (h, c) of an LSTM; zeros if None.
        resets: (batch, time) bool: the state is set to zeros before these steps; only for tasks
            with an answer for each step. None: never.
        given: for `forecast`, the inputs that `config.given` names.
        training: whether dropout acts.
        backend: as in `lstm_compile.lstm`.
        chunk: as in `lstm_compile.lstm`.

    Returns:
        The prediction (batch, output_size): logits for `classify`, values in the user's units for
        `regress`. For `tag` and `lm` logits (batch, time, output_size), 0 in the padding; for
        `forecast` what `forecaster.forecast` gives. And the final state of the LSTM stack.

    Raises:
        InputError: shapes, dtypes or lengths that do not fit.
    """
    task, mode = config.traits, Mode(training, backend, chunk)
    if resets is not None and task.is_pooled:
        known = ", ".join(tasks_with(per_step=True))
        raise InputError(f"resets are for tasks {known}, not {config.task}; cut the sequences")
    if task.is_series:
        _check_given(config, given)
        if given.known_future is not None:  # a recursive model takes one step at a time
            given = given._replace(known_future=given.known_future[:, : config.steps_out])
        return forecast(params, config, x, lengths, given, state, mode)
    entered = _entered(params, config, x, lengths, training)
    steps, state = encode(params, config, entered, lengths, state, resets, mode)
    lengths = None if lengths is None else lengths.to(x.device)
    if task.is_pooled:
        steps = pool(steps, lengths, config.pooling, params.get("pooling.weight"))
    prediction = linear(
        dropout(steps, config.head_dropout, training),
        params["embedding.weight" if config.tie else "head.weight"],
        params["head.bias"],
    )
    if task.has_target_scaler and config.target_scaling != "none":
        prediction = scaler_of(params, "target_scaler").invert(prediction)
    if task.finish is not None:
        prediction = task.finish(prediction)
    if task.per_step:
        prediction = zero_padding(prediction, lengths)
    return prediction, state


def _entered(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor | None,
    training: bool,
) -> Tensor:
    """The input of the first layer: scaled features and vectors, or the embedding of tokens."""
    if not config.vocabulary_size:
        x = scaler_of(params, "scaler").apply(x) if config.scaling != "none" else x
        return with_vectors(params, config, x, lengths, training)
    if x.dim() != 2 or x.dtype != torch.int64:
        raise InputError(f"tokens must be int64 (batch, time), got {x.dtype} {tuple(x.shape)}")
    if lengths is not None:  # padding may hold any number
        x = torch.where(valid_mask(lengths.to(x.device), x.shape[1]), x, 0)
    return embedding(x, params["embedding.weight"])


def predict(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """The answer of the model's ONNX file; `options` are arguments of `forward`.

    Probabilities of classes (batch, output_size), for `tag` of every step (batch, time,
    output_size) and 0 in the padding; for other tasks the prediction of `forward`.
    """
    return predict_on(params, config, x, lengths, **options)[0]


def predict_on(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor | None = None,
    state: tuple[Tensor, ...] | None = None,
    **options: Any,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The answer of `predict` from an initial state, and the final state."""
    prediction, state = forward(params, config, x, lengths, state, **options)
    if config.traits.has_classes:
        prediction = prediction.softmax(-1)
        if config.traits.per_step and lengths is not None:
            prediction = zero_padding(prediction, lengths.to(prediction.device))
    return prediction, state


def complete(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor,
    *,
    given: Given = NOTHING,
    **options: Any,
) -> Tensor:
    """The prediction of `forward`; with the decoder `recursive` that of the whole horizon."""

    def once(x: Tensor, lengths: Tensor, given: Given) -> Tensor:
        return forward(params, config, x, lengths, given=given, **options)[0]

    if config.traits.is_series and config.decoder == "recursive":
        return roll_out(once, config, x, lengths, given)
    return once(x, lengths, given)


def _check_given(config: ModelConfig, given: Given) -> None:
    found = {name for name, value in given._asdict().items() if value is not None}
    if found != set(config.given):
        raise InputError(
            f"given must hold {', '.join(config.given) or 'nothing'} for this model, found "
            f"{', '.join(sorted(found)) or 'nothing'}"
        )
