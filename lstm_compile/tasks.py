"""What tells one task from another: its loss, its metrics, its answers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from lstm_compile.config import ModelConfig
from lstm_compile.errors import InputError
from lstm_compile.model import scaler_of

if TYPE_CHECKING:
    from lstm_compile.training.config import TrainingConfig

Metrics = dict[str, float]
LOSSES = {"classify": ("cross-entropy",), "regress": ("mse", "mae", "huber")}


def loss_name(task: str, loss: str) -> str:
    """The loss that `loss` means for `task`; `auto` is the task's first.

    Raises:
        InputError: a loss of another task.
    """
    if loss == "auto":
        return LOSSES[task][0]
    if loss not in LOSSES[task]:
        raise InputError(
            f"loss must be auto, {' or '.join(LOSSES[task])} for task {task}; got {loss!r}"
        )
    return loss


def training_loss(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    training: "TrainingConfig",
    prediction: Tensor,
    y: Tensor,
) -> Tensor:
    """The scalar that training minimises.

    Args:
        params: for the target scaler.
        config: the architecture.
        training: names the loss and the label smoothing.
        prediction: (batch, output_size), what `forward` gives.
        y: (batch,) int64 class codes, or (batch, targets) in the user's units; errors are measured
            in scaled units, so that every target counts alike.
    """
    kind = loss_name(config.task, training.loss)
    if kind == "cross-entropy":
        return functional.cross_entropy(prediction, y, label_smoothing=training.label_smoothing)
    scale = scaler_of(params, "target_scaler").scale
    error = (prediction - y) / scale
    if kind == "mse":
        return error.square().mean()
    if kind == "mae":
        return error.abs().mean()
    return functional.huber_loss(error, torch.zeros_like(error))


def metrics(config: ModelConfig, prediction: Tensor, y: Tensor) -> Metrics:
    """How good predictions are.

    Args:
        config: the architecture.
        prediction: (rows, output_size), what `forward` gives.
        y: (rows,) int64 class codes, or (rows, targets) in the user's units.

    Returns:
        `accuracy`, `macro_f1` (the mean over classes that occur) and `loss` (nats) for `classify`;
        `mae`, `rmse` in the user's units and `r2` for `regress`, each the mean over targets.
    """
    if config.task == "classify":
        return _class_metrics(prediction, y)
    error = (prediction - y).double()
    spread = (y.double() - y.double().mean(0)).square().sum(0)
    explained = 1 - error.square().sum(0) / spread.clamp(min=torch.finfo(torch.float64).tiny)
    return {
        "mae": float(error.abs().mean()),
        "rmse": float(error.square().mean(0).sqrt().mean()),
        "r2": float(explained.mean()),
    }


def _class_metrics(logits: Tensor, y: Tensor) -> Metrics:
    guess, classes = logits.argmax(-1), logits.shape[-1]
    hits = torch.bincount(y[guess == y], minlength=classes).double()
    actual, guessed = (torch.bincount(codes, minlength=classes).double() for codes in (y, guess))
    f1 = 2 * hits / (actual + guessed).clamp(min=1)
    return {
        "accuracy": float((guess == y).double().mean()),
        "macro_f1": float(f1[actual > 0].mean()),
        "loss": float(functional.cross_entropy(logits, y)),
    }
