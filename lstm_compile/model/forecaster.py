"""The forecasting network: an LSTM over the window, a small decoder for each step to forecast.

c: the pooled states, the location and scale that were taken out of the window, and embeddings of
static covariates; k_h: the known covariates of step h; w: the window of the targets. Then

    d_h = W_h c + b_h                                     a vector of its own for each step
    y_h = W_y relu(W_d [d_h, k_h] + b_d) + b_y + sum_t L_ht w_t

The last sum is the linear path, which all targets share.

Source: the decoder of TiDE, Das et al. 2023, section 4, with an LSTM as the encoder.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear, pad, relu

from lstm_compile.config import ModelConfig
from lstm_compile.model.batch import Given
from lstm_compile.model.embeddings import (
    category_shapes,
    embedding_size,
    entering_size,
    with_others,
    with_vectors,
)
from lstm_compile.model.encoder import Mode, encode
from lstm_compile.model.pooling import pool
from lstm_compile.model.window_scaling import enter, last_steps, leave, scaled_known

STEP_SIZE = 16  # size of the vector d_h
Step = Callable[[Tensor, Tensor, Given], Tensor]  # x, lengths, given -> (batch, 1, targets)


def input_size(config: ModelConfig) -> int:
    """Features that the first LSTM layer reads."""
    return entering_size(config) + sum(map(embedding_size, config.static_sizes))


def decoder_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor except those of scaler, LSTM stack and pooling."""
    hidden, steps = config.hidden_size, config.steps_out
    outputs = config.output_size * max(1, len(config.quantiles))
    context = config.width + sum(map(embedding_size, config.static_sizes))
    context += config.level_size * _taken(config)
    shapes: dict[str, tuple[int, ...]] = {
        f"embedding.{index}.weight": (count, embedding_size(count))
        for index, count in enumerate(config.static_sizes)
    }
    shapes |= category_shapes(config)
    shapes["decoder.steps.weight"] = (steps * STEP_SIZE, context)
    shapes["decoder.steps.bias"] = (steps * STEP_SIZE,)
    shapes["decoder.hidden.weight"] = (hidden, STEP_SIZE + config.known_size)
    shapes["decoder.hidden.bias"] = (hidden,)
    shapes["head.weight"] = (outputs, hidden)
    shapes["head.bias"] = (outputs,)
    if config.linear:
        shapes["linear.weight"] = (steps, config.context)
    return shapes


def forecast(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor | None,
    given: Given,
    state: tuple[Tensor, ...] | None = None,
    mode: Mode = Mode(),  # noqa: B008 (it cannot change)
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Forecast windows, both in the user's units; arguments as in `lstm_compile.forward`.

    Returns:
        (batch, steps_out, targets), or (batch, steps_out, targets, quantiles), rising in its last
        dimension; and the LSTM's final state.
    """
    if lengths is None:
        ends = x.new_full((x.shape[0],), x.shape[1], dtype=torch.int64)
    else:
        ends = lengths.to(x.device)
    steps, frame = enter(params, config, x, ends, given)
    static = given.static
    if static is not None and mode.training:
        static = with_others(static, config)
    static = _embed(params, static)
    entering = with_vectors(params, config, steps, ends, mode.training)
    if static is not None:
        entering = torch.cat([entering, static[:, None].expand(-1, steps.shape[1], -1)], -1)
    states, state = encode(params, config, entering, lengths, state, mode=mode)
    pooled = pool(
        states, None if lengths is None else ends, config.pooling, params.get("pooling.weight")
    )
    taken = (frame.location, frame.deviation.log())[: _taken(config)]
    summary = [part[:, 0] for part in taken]
    context = torch.cat([pooled, *summary, *([] if static is None else [static])], -1)
    y = _decode(params, config, context, given.known_future, mode.training)
    if config.linear:
        window = last_steps(steps[..., : config.output_size], ends, config.context)
        y = y + (params["linear.weight"] @ window)[..., None]
    return leave(frame, config, _rising(y, config)), state


def _embed(params: Mapping[str, Tensor], static: Tensor | None) -> Tensor | None:
    if static is None:
        return None
    tables = [params[f"embedding.{index}.weight"] for index in range(static.shape[1])]
    return torch.cat([table[static[:, index]] for index, table in enumerate(tables)], -1)


def _taken(config: ModelConfig) -> int:
    """How many numbers are taken out of the window of each level; the decoder reads them."""
    return {"last": 1, "mean": 1, "revin": 2}.get(config.scaling, 0)


def _decode(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    context: Tensor,
    known: Tensor | None,
    training: bool,
) -> Tensor:
    """(batch, steps_out, targets, quantiles or 1)."""

    def layer(name: str, value: Tensor) -> Tensor:
        value = dropout(value, config.head_dropout, training)
        return linear(value, params[f"{name}.weight"], params[f"{name}.bias"])

    hidden = layer("decoder.steps", context).unflatten(1, (config.steps_out, STEP_SIZE))
    if known is not None:
        hidden = torch.cat([hidden, scaled_known(params, config, known)], -1)
    y = layer("head", relu(layer("decoder.hidden", hidden)))
    outputs: Tensor = y.unflatten(2, (config.output_size, max(1, len(config.quantiles))))
    return outputs


def _rising(y: Tensor, config: ModelConfig) -> Tensor:
    """Quantiles in rising order: the middle one, and positive steps away from it."""
    parts = list(y.unbind(-1))
    if not config.quantiles:
        return parts[0]
    middle = middle_of(config.quantiles)
    for index in range(middle + 1, len(parts)):
        parts[index] = parts[index - 1] + _above_zero(parts[index])
    for index in range(middle - 1, -1, -1):
        parts[index] = parts[index + 1] - _above_zero(parts[index])
    return torch.stack(parts, -1)


def _above_zero(x: Tensor) -> Tensor:
    """log(1 + exp(x)), of operators that every runtime has."""
    return torch.where(x > 0, x, 0.0) + (-x.abs()).exp().log1p()


def middle_of(quantiles: tuple[float, ...]) -> int:
    """The index of the quantile nearest to the median; the others are counted from it."""
    return min(range(len(quantiles)), key=lambda index: abs(quantiles[index] - 0.5))


def median_of(quantiles: tuple[float, ...]) -> int | None:
    """The index of the median, which is the point forecast; None where there is no median."""
    return quantiles.index(0.5) if 0.5 in quantiles else None


def roll_out(step: Step, config: ModelConfig, x: Tensor, lengths: Tensor, given: Given) -> Tensor:
    """Forecast step by step, (batch, horizon, targets); `step` is the model, one step ahead.

    Each forecast becomes the last step of the next window, so every feature of `x` (batch, time,
    features) is a target or a known covariate. `given` holds those of the whole horizon.
    """
    rows = torch.arange(len(x), device=x.device)
    x = torch.cat([x, x.new_zeros(len(x), config.horizon, x.shape[2])], 1)
    parts = []
    for ahead in range(config.horizon):
        known = given.known_future
        now = None if known is None else known[:, ahead : ahead + 1]
        time = x.shape[1] - config.horizon + ahead
        y = step(x[:, :time], lengths + ahead, given._replace(known_future=now))
        parts.append(y)
        row = torch.cat([y[:, 0], *([] if now is None else [now[:, 0]])], 1)
        # the feature that remains is the indicator of gaps
        x[rows, lengths.to(x.device) + ahead] = pad(row, (0, x.shape[2] - row.shape[1]))
    return torch.cat(parts, 1)
