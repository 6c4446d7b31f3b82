"""Linear models, fitted in closed form or with L-BFGS: the baselines are made of them."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

MAX_ITERATIONS = 1000
ROUNDING = 1e-9  # of a mean: the error of a deviation that comes from sums of squares
GRADIENT_TOLERANCE = 1e-6  # probabilities within 5e-4 of the optimum on the bundled data sets


class Baseline(NamedTuple):
    """Predicts `features @ weight + bias`: one score a class, or the targets themselves."""

    weight: Tensor  # float64 (columns, outputs), for features that are not standardised
    bias: Tensor  # float64 (outputs,)


def fit_logistic(features: Tensor, y: Tensor, classes: int, l2: float = 1.0) -> Baseline:
    """Fit multinomial logistic regression on standardised features with L-BFGS.

    Minimises the sum of cross-entropies + l2 / 2 * ||W||^2 with a free bias, the objective of
    scikit-learn's LogisticRegression(C=1 / l2):
    https://scikit-learn.org/stable/modules/linear_model.html#logistic-regression

    `features` are float64 (sequences, columns), in any units; `y` int64 (sequences,) class codes.
    """
    mean, deviation = _standard(features)
    standardised = (features - mean) / deviation
    weight = features.new_zeros(features.shape[1], classes, requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MAX_ITERATIONS, tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0, history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> float:
        optimizer.zero_grad()
        scores = standardised @ weight + bias
        loss = cross_entropy(scores, y) + l2 / 2 * weight.square().sum() / len(y)
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(closure)
    return _on_raw_features(weight.detach(), bias.detach(), mean, deviation)


def fit_ridge(features: Tensor, y: Tensor, l2: float = 1.0) -> Baseline:
    """Fit ridge regression on standardised features in closed form.

    W = (Z^T Z + l2 I)^-1 Z^T (y - mean(y)), with the bias mean(y) unpenalised.

    `features` are float64 (sequences, columns), in any units; `y` floating (sequences, targets);
    `l2` is above 0.
    """
    return ridge(moments([(features, y.double())]), l2)


class LinearSums(NamedTuple):
    """The sums over the data that determine a linear fit, float64."""

    rows: int
    mean: Tensor  # (columns,), of the features
    target_mean: Tensor  # (outputs,)
    gram: Tensor  # (columns, columns), sums of products of centred features
    cross: Tensor  # (columns, outputs), of centred features and targets


def moments(blocks: Iterable[tuple[Tensor, Tensor]]) -> LinearSums:
    """Sum up blocks of features (rows, columns) and targets (rows, outputs), float64; at least one.

    Products are taken about the means of the first block: large offsets then lose little.
    """
    rows, sums, centre = 0, list[Tensor](), list[Tensor]()
    for features, y in blocks:
        centre = centre or [features.mean(0), y.mean(0)]
        x, y = features - centre[0], y - centre[1]
        new = [x.sum(0), y.sum(0), x.T @ x, x.T @ y]
        sums = [old.add_(part) for old, part in zip(sums, new, strict=True)] if sums else new
        rows += len(x)
    mean_x, mean_y = sums[0] / rows, sums[1] / rows
    gram, cross = sums[2] - rows * mean_x.outer(mean_x), sums[3] - rows * mean_x.outer(mean_y)
    return LinearSums(rows, centre[0] + mean_x, centre[1] + mean_y, gram, cross)


def ridge(found: LinearSums, l2: float) -> Baseline:
    """The ridge regression of `fit_ridge` from moments alone."""
    deviation = (found.gram.diagonal() / found.rows).clamp(min=0).sqrt()
    is_constant = deviation <= ROUNDING * found.mean.abs()
    deviation = deviation.masked_fill(is_constant | (deviation == 0), 1.0)
    gram = (
        found.gram / deviation / deviation[:, None]
        + l2 * torch.eye(len(deviation), device="cpu").double()
    )
    weight = torch.linalg.solve(gram, found.cross / deviation[:, None])
    return _on_raw_features(weight, found.target_mean, found.mean, deviation)


def _standard(features: Tensor) -> tuple[Tensor, Tensor]:
    deviation = features.std(0, correction=0)
    # rounding gives a constant column a tiny deviation, which must not count
    is_constant = deviation <= 1e-12 * features.abs().amax(0)
    return features.mean(0), deviation.masked_fill(is_constant, 1.0)


def _on_raw_features(weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> Baseline:
    raw_weight = (weight / deviation[:, None]).contiguous()  # safetensors takes no other
    return Baseline(raw_weight, bias - mean @ raw_weight)
