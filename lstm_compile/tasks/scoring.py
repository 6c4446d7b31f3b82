"""What tells one task from another: its loss, its metrics, its answers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from lstm_compile.config import CLASSES, ModelConfig
from lstm_compile.data.sequences import IGNORED
from lstm_compile.errors import InputError
from lstm_compile.model.model import scaler_of
from lstm_compile.tasks.forecast_losses import cost_of, forecast_loss, score_forecasts

if TYPE_CHECKING:
    from lstm_compile.training.settings import TrainingConfig

Metrics = dict[str, float]
LOSSES = {
    "classify": ("cross-entropy",),
    "regress": ("mse", "mae", "huber"),
    "forecast": ("mse", "mae", "huber"),
    "tag": ("cross-entropy",),
    "lm": ("cross-entropy",),
    "quantiles": ("pinball",),
}


def loss_name(task: str, loss: str, quantiles: tuple[float, ...] = ()) -> str:
    """The loss that `loss` means for a task, or for quantiles; `auto` is the first there is.

    Raises:
        InputError: a loss of another task.
    """
    kind = "quantiles" if quantiles else task
    if loss == "auto":
        return LOSSES[kind][0]
    if loss not in LOSSES[kind]:
        raise InputError(
            f"loss must be auto, {' or '.join(LOSSES[kind])} for "
            f"{kind if quantiles else f'task {kind}'}; got {loss!r}"
        )
    return loss


def training_loss(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    training: "TrainingConfig",
    prediction: Tensor,
    y: Tensor,
    class_weights: Tensor | None = None,
    unit: Tensor | None = None,
) -> Tensor:
    """The scalar that training minimises.

    Args:
        params: for the target scaler.
        config: the architecture.
        training: names the loss and the label smoothing.
        prediction: (batch, output_size) or (batch, time, output_size), what `forward` gives.
        y: (batch,) or (batch, time) int64 class codes, of which negative ones do not count; or
            (batch, targets) in the user's units; errors are measured in scaled units, so that every
            target counts alike.
        class_weights: float32 (classes,), what `balanced_weights` gives; all alike if None. The
            loss is then divided by the weights of the rows' own classes, as torch's is.
        unit: (batch, targets), for `forecast_loss`.
    """
    kind = loss_name(config.task, training.loss, config.quantiles)
    if kind == "cross-entropy":
        return _cross_entropy(prediction, y, training.label_smoothing, class_weights)
    if config.task == "forecast":
        return forecast_loss(params, config, kind, prediction, y, unit)
    scale = scaler_of(params, "target_scaler").scale
    return cost_of(kind, (prediction - y) / scale).mean()


def _cross_entropy(
    logits: Tensor, y: Tensor, smoothing: float, class_weights: Tensor | None
) -> Tensor:
    total = functional.cross_entropy(
        logits.flatten(0, -2), y.flatten(), class_weights,
        ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum",
    )  # fmt: skip
    return total / row_weight(y, class_weights)


def row_weight(y: Tensor, class_weights: Tensor | None = None) -> Tensor | float:
    """What the mean loss of a batch was divided by, for averages over batches.

    Args:
        y: (batch,), (batch, time) or (batch, targets).
        class_weights: as for `training_loss`.

    Returns:
        The number of rows, or of steps that have a class, or the sum of the weights of their
        classes; above 0 even where not one class has a weight, so that such a loss is 0 and not
        NaN.
    """
    if y.is_floating_point() or (y.dim() == 1 and class_weights is None):
        return float(len(y))
    known = y != IGNORED
    weight = known if class_weights is None else class_weights[y.where(known, 0)].where(known, 0.0)
    return weight.sum().float().clamp(min=torch.finfo(torch.float32).tiny)


def balanced_weights(y: Tensor, classes: int) -> Tensor:
    """Weights that let every class count alike, float32 (classes,): rows / (classes * count).

    A class without a row weighs 0. Source: King and Zeng 2001, section 3.2, as in scikit-learn's
    compute_class_weight("balanced"):
    https://scikit-learn.org/stable/modules/generated/sklearn.utils.class_weight.compute_class_weight.html

    Args:
        y: int64 (rows,) class codes of the training part.
        classes: number of classes, absent ones included.
    """
    count = torch.bincount(y, minlength=classes).double()
    return torch.where(count > 0, len(y) / (classes * count), 0.0).float()


def check_class_weight(task: str, class_weight: str) -> None:
    """Refuse class weights where there are no classes.

    Raises:
        InputError: `balanced` for another task than `classify` and `tag`.
    """
    if task not in CLASSES and class_weight != "none":
        raise InputError(
            f"class_weight must be none for task {task}, whose targets have no classes; got "
            f"{class_weight!r}"
        )


def metrics(config: ModelConfig, prediction: Tensor, y: Tensor) -> Metrics:
    """How good predictions are.

    Args:
        config: the architecture.
        prediction: (rows, output_size), what `forward` gives; for `tag` a row is a step.
        y: (rows,) int64 class codes, or (rows, targets) in the user's units.

    Returns:
        What `score_classes` gives and `loss` (nats) for `classify` and `tag`, what
        `score_targets` gives for `regress`, what `score_forecasts` gives for `forecast`.
    """
    if config.task == "forecast":
        return score_forecasts(config, prediction, y)
    if config.task == "regress":
        return score_targets(prediction, y)
    loss = float(functional.cross_entropy(prediction, y))
    return {**score_classes(prediction, y), "loss": loss}


def score_classes(scores: Tensor, y: Tensor) -> Metrics:
    """Score a classifier: scores (sequences, classes), y int64 (sequences,).

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
    """Score a regression; both floating (sequences, targets), in the targets' units.

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
