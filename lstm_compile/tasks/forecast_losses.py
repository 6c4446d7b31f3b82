"""What a forecast costs, in training and as figures of one epoch."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from lstm_compile.config import ModelConfig
from lstm_compile.model.forecaster import middle_of
from lstm_compile.model.window_scaling import symmetric_log


def forecast_loss(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    kind: str,
    prediction: Tensor,
    y: Tensor,
    unit: Tensor | None = None,
) -> Tensor:
    """The mean cost of the values that are known, in scaled units.

    Args:
        params: for the scaler.
        config: the architecture; with `log1p` errors are those of the logarithms.
        kind: `mse`, `mae`, `huber` or `pinball`.
        prediction: (batch, steps, targets(, quantiles)), in the user's units.
        y: (batch, steps or more, targets), NaN where nobody knows.
        unit: (batch, targets), what errors are measured in; None is the scaler's scale, so that
            every target counts alike.
    """
    y = y[:, : prediction.shape[1]]  # a recursive decoder learns one step
    is_known = ~y.isnan()
    y = torch.where(is_known, y, 0.0)
    if config.log1p:
        prediction, y = symmetric_log(prediction), symmetric_log(y)
    scale = params["scaler.scale"][: config.output_size] if unit is None else unit[:, None]
    if kind == "pinball":
        cost = pinball((prediction - y[..., None]) / scale[..., None], config.quantiles)
    else:
        cost = cost_of(kind, (prediction - y) / scale)
    return torch.where(is_known, cost, 0.0).sum() / is_known.sum().clamp(min=1)


def pinball(error: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """The mean over quantiles of what each costs, (...), for errors (..., quantiles).

    Errors are forecast less truth. Source: Koenker and Bassett 1978.
    """
    shares = error.new_tensor(quantiles)
    return torch.maximum(-shares * error, (1 - shares) * error).mean(-1)


def score_forecasts(config: ModelConfig, prediction: Tensor, y: Tensor) -> dict[str, float]:
    """`mae` and `rmse` over the values that are known, in the targets' units; the middle quantile.

    Args:
        config: the architecture.
        prediction: (rows, horizon, targets(, quantiles)).
        y: (rows, horizon, targets), NaN where nobody knows.
    """
    if config.quantiles:
        prediction = prediction[..., middle_of(config.quantiles)]
    error = (prediction.double() - y.double())[~y.isnan()]
    return {"mae": float(error.abs().mean()), "rmse": float(error.square().mean().sqrt())}


def cost_of(kind: str, error: Tensor) -> Tensor:
    """What each error (any shape) costs: `mse`, `mae` or `huber` (delta 1)."""
    if kind == "mse":
        return error.square()
    if kind == "mae":
        return error.abs()
    return huber_loss(error, torch.zeros_like(error), reduction="none")
