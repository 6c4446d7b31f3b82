"""The losses of all tasks, and what weighs the rows and classes in them."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from lstm_compile.config import ModelConfig
from lstm_compile.data.sequences import IGNORED
from lstm_compile.errors import InputError
from lstm_compile.model.model import scaler_of
from lstm_compile.model.window_scaling import symmetric_log
from lstm_compile.tasks import find_task, tasks_with


class LossInput(NamedTuple):
    """What a loss is computed from."""

    params: Mapping[str, Tensor]  # of the model, for its scalers
    config: ModelConfig
    kind: str  # the name of the loss, never `auto`
    # what `forward` gives: (batch, output_size), (batch, time, output_size) or
    # (batch, steps, targets(, quantiles))
    prediction: Tensor
    # (batch,) or (batch, time) int64 class codes, of which negative ones do not count; (batch,
    # targets) or (batch, steps or more, targets) in the user's units, NaN where there is no value
    y: Tensor
    label_smoothing: float = 0.0  # the share of each class label that is spread over all classes
    # float32 (classes,), what `balanced_weights` gives; None: all alike. The loss is then divided
    # by the weights of the rows' own classes, as torch's is
    class_weights: Tensor | None = None
    unit: Tensor | None = None  # (batch, targets), of errors; None is the scale of the scaler


class LossSettings(Protocol):
    """What `training_loss` takes of the settings of a training."""

    @property
    def loss(self) -> str:
        """The name of the loss, or `auto`."""

    @property
    def label_smoothing(self) -> float:
        """See `LossInput`."""


def loss_name(task: str, loss: str, quantiles: tuple[float, ...] = ()) -> str:
    """The loss that `loss` means for a task, or for quantiles; `auto` is the first there is.

    Raises:
        InputError: a loss of another task.
    """
    known = find_task(task).quantile_losses if quantiles else find_task(task).losses
    if loss == "auto":
        return known[0]
    if loss not in known:
        raise InputError(
            f"loss must be one of {', '.join(('auto', *known))} for "
            f"{'quantiles' if quantiles else f'task {task}'}; got {loss!r}"
        )
    return loss


def training_loss(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    training: LossSettings,
    prediction: Tensor,
    y: Tensor,
    class_weights: Tensor | None = None,
    unit: Tensor | None = None,
) -> Tensor:
    """The scalar that training minimises; arguments as in `LossInput`."""
    kind = loss_name(config.task, training.loss, config.quantiles)
    smoothing = training.label_smoothing
    found = LossInput(params, config, kind, prediction, y, smoothing, class_weights, unit)
    loss: Tensor = config.traits.loss(found)
    return loss


def cross_entropy(given: LossInput) -> Tensor:
    """The mean cross-entropy of logits (batch(, time), classes), in nats.

    A class weight multiplies the whole loss of the rows of its class. torch's own weights multiply
    each class's share of a smoothed label, so that a heavy class becomes the best answer to every
    row.
    """
    weights, y = given.class_weights, given.y.flatten()
    cost = functional.cross_entropy(
        given.prediction.flatten(0, -2), y, ignore_index=IGNORED,
        label_smoothing=given.label_smoothing, reduction="sum" if weights is None else "none",
    )  # fmt: skip
    if weights is not None:  # the cost of what is ignored is 0
        cost = (cost * weights[y.clamp(min=0)]).sum()
    return cost / row_weight(given.y, weights)


def scaled_error(given: LossInput) -> Tensor:
    """The mean cost of errors (batch, targets) in scaled units: every target counts alike."""
    scale = scaler_of(given.params, "target_scaler").scale
    return cost_of(given.kind, (given.prediction - given.y) / scale).mean()


def step_error(given: LossInput) -> Tensor:
    """The same over the steps that are no padding, whose targets (..., targets) are NaN."""
    is_known = ~given.y.isnan()
    error = torch.where(is_known, given.prediction - given.y, 0.0)
    scale = scaler_of(given.params, "target_scaler").scale
    return cost_of(given.kind, error / scale).sum() / is_known.sum().clamp(min=1)


def forecast_loss(given: LossInput) -> Tensor:
    """The mean cost of the values that are known, in scaled units; with `log1p` of logarithms."""
    config, prediction = given.config, given.prediction
    y = given.y[:, : prediction.shape[1]]  # a recursive decoder learns one step
    is_known = ~y.isnan()
    y = torch.where(is_known, y, 0.0)
    if config.log1p:
        prediction, y = symmetric_log(prediction), symmetric_log(y)
    scale = given.params["scaler.scale"][: config.output_size]
    scale = scale if given.unit is None else given.unit[:, None]
    if given.kind == "pinball":
        cost = pinball((prediction - y[..., None]) / scale[..., None], config.quantiles)
    else:
        cost = cost_of(given.kind, (prediction - y) / scale)
    return torch.where(is_known, cost, 0.0).sum() / is_known.sum().clamp(min=1)


def pinball(error: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """The mean cost over all quantiles, (...), of errors (..., quantiles): forecast less truth.

    Source: Koenker and Bassett 1978.
    """
    shares = error.new_tensor(quantiles)
    return torch.maximum(-shares * error, (1 - shares) * error).mean(-1)


def cost_of(kind: str, error: Tensor) -> Tensor:
    """The cost of each error (any shape): `mse`, `mae` or `huber` (delta 1)."""
    if kind == "mse":
        return error.square()
    if kind == "mae":
        return error.abs()
    return functional.huber_loss(error, torch.zeros_like(error), reduction="none")


def row_weight(y: Tensor, class_weights: Tensor | None = None) -> Tensor | float:
    """The number that the mean loss of a batch was divided by, for averages over batches.

    This is the number of rows, or of steps that have a class or values, or the sum of the weights
    of their classes. It is above 0 even if no class has a weight: the loss is then 0 and not NaN.
    `y` is (batch,), (batch, time), (batch, targets) or (batch, time or horizon, targets).
    """
    if y.dim() == 1 + y.is_floating_point() and class_weights is None:
        return float(len(y))
    known = ~y.isnan() if y.is_floating_point() else y != IGNORED
    weight = known if class_weights is None else class_weights[y.where(known, 0)].where(known, 0.0)
    return weight.sum().float().clamp(min=torch.finfo(torch.float32).tiny)


def balanced_weights(y: Tensor, classes: int) -> Tensor:
    """Weights that let every class count alike, float32 (classes,): rows / (classes * count).

    A class without a row weighs 0. Source: King and Zeng 2001, section 3.2, as in scikit-learn's
    compute_class_weight("balanced"):
    https://scikit-learn.org/stable/modules/generated/sklearn.utils.class_weight.compute_class_weight.html

    `y` is int64 (rows,), class codes of the training part; absent classes count in `classes`.
    """
    count = torch.bincount(y, minlength=classes).double()
    return torch.where(count > 0, len(y) / (classes * count), 0.0).float()


def check_class_weight(task: str, class_weight: str) -> None:
    """Refuse class weights where there are no classes.

    Raises:
        InputError: `balanced` for a task without classes.
    """
    if class_weight != "none" and task not in tasks_with(has_classes=True):
        raise InputError(
            f"class_weight must be none for task {task}, whose targets have no classes; got "
            f"{class_weight!r}"
        )
