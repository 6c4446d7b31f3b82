"""The metrics of all tasks, and the scores of single rows that tell two models apart."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lstm_compile.config import ModelConfig
from lstm_compile.model.forecaster import median_of
from lstm_compile.tasks.losses import pinball

Metrics = dict[str, float]


class TextScores(NamedTuple):
    """How well a model predicts a text, block by block."""

    nats: Tensor  # float64 (blocks,), sums of -log p
    tokens: Tensor  # float64 (blocks,), how many
    time: int  # most steps of a block


def metrics(config: ModelConfig, prediction: Tensor, y: Tensor) -> Metrics:
    """How good predictions are; not for text, see `text_metrics`.

    `prediction` is (rows, ...), what `forward` gives; a row is a step where steps have answers. `y`
    is (rows,) int64 class codes, or (rows, targets) or (rows, horizon, targets) in users' units.

    Returns:
        What the `score` of the task gives; for classes `loss` (nats) as well. Of quantiles the
        median counts; where there is no median, it is `pinball` alone, in the targets' units.
    """
    if config.quantiles:
        median = median_of(config.quantiles)
        if median is None:
            cost = pinball(prediction.double() - y.double()[..., None], config.quantiles)
            return {"pinball": float(cost.nanmean())}
        prediction = prediction[..., median]
    found: Metrics = config.traits.score(prediction, y)
    if config.traits.has_classes:
        found = {**found, "loss": float(cross_entropy(prediction, y))}
    return found


def tuned_metrics(config: ModelConfig) -> tuple[str, ...]:
    """The validation figures that `tune` may go by, the default first."""
    known = config.traits.tuned
    is_point = not config.quantiles or median_of(config.quantiles) is not None
    return known if is_point else ("pinball", "loss")


def score_classes(scores: Tensor, y: Tensor) -> Metrics:
    """Score a classifier: scores (rows, classes), y int64 (rows,).

    Returns:
        `accuracy` and `macro_f1`, the mean over the classes that occur in y, both in 0..1.
    """
    guess, classes = scores.argmax(-1), scores.shape[-1]
    hits = torch.bincount(y[guess == y], minlength=classes).double()
    actual, guessed = (torch.bincount(codes, minlength=classes).double() for codes in (y, guess))
    f1 = 2 * hits / (actual + guessed).clamp(min=1)
    return {
        "accuracy": float((guess == y).double().mean()),
        "macro_f1": float(f1[actual > 0].mean()),
    }


def score_targets(predictions: Tensor, y: Tensor) -> Metrics:
    """Score a regression; both floating (rows, targets), in the targets' units.

    Returns:
        `mae` and `rmse` over all values, in the targets' units; `r2`, the share of variance
        explained, averaged over targets, where a target that never changes counts as 0.
    """
    error = predictions.double() - y.double()
    variance = (y.double() - y.double().mean(0)).square().mean(0)
    explained = 1 - error.square().mean(0) / variance
    return {
        "mae": error.abs().mean().item(),
        "rmse": error.square().mean().sqrt().item(),
        "r2": explained.where(variance > 0, 0.0).mean().item(),
    }


def score_forecasts(forecasts: Tensor, y: Tensor) -> Metrics:
    """Score forecasts; both floating (rows, horizon, targets), y NaN where a value is unknown.

    Returns:
        `mae` and `rmse` over the values that are known, in the targets' units.
    """
    error = (forecasts.double() - y.double())[~y.isnan()]
    return {"mae": float(error.abs().mean()), "rmse": float(error.square().mean().sqrt())}


def text_metrics(scores: TextScores) -> Metrics:
    """`loss` (nats a character), `bits_per_character` and `perplexity`.

    With the vocabulary `byte` a character is a byte.
    """
    loss = float(scores.nats.sum() / scores.tokens.sum())
    if not math.isfinite(loss):
        return {"loss": loss, "bits_per_character": loss, "perplexity": loss}
    return {
        "loss": loss,
        "bits_per_character": loss / math.log(2),
        "perplexity": math.exp(min(loss, 700.0)),
    }


def is_right(scores: Tensor, y: Tensor) -> Tensor:
    """1 where the best score (rows, classes) is that of the class y (rows,), else 0; float64."""
    return (scores.argmax(-1) == y).double()


def squared_error(predictions: Tensor, y: Tensor) -> Tensor:
    """The mean square of each row's errors, float64 (rows,); both (rows, targets)."""
    return (predictions.double() - y.double()).square().mean(1)


def minus_root(square: Tensor) -> Tensor:
    """-sqrt(square): it grows as errors fall."""
    return -square.sqrt()
