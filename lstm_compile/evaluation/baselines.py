"""What a model must beat: majority, linear models on per-sequence features, and their metrics.

Every baseline is one affine map of one kind of features, so two tensors store it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lstm_compile.data.sequences import Sequences
from lstm_compile.errors import InputError
from lstm_compile.evaluation.features import FEATURES as FEATURES
from lstm_compile.evaluation.features import features_of
from lstm_compile.evaluation.features import resampled_features as resampled_features
from lstm_compile.evaluation.features import summary_features as summary_features
from lstm_compile.model.archive import open_archive
from lstm_compile.tasks.scoring import score_classes, score_targets

PREFIX = "baseline."
RIDGE_ON_WINDOWS = "ridge on windows"  # of forecasts
UNIGRAM, BIGRAM = "character frequencies", "bigram frequencies"  # of text
KNOWN = (*FEATURES, RIDGE_ON_WINDOWS, UNIGRAM, BIGRAM)
MAX_ITERATIONS = 1000
ROUNDING = 1e-9  # of a mean: what deviations that sums of squares give are exact to
GRADIENT_TOLERANCE = 1e-6  # probabilities within 5e-4 of the optimum on the bundled data sets
# Of 1, 10 and 100, what 5-fold cross-validation on the training parts of the bundled data sets
# prefers for the stronger classifier, the one on 24 frames.
CLASSIFIER_PENALTY = 10.0


MOST_ROWS = 50_000  # of steps, of which there can be millions
CLASSIFIERS = {
    "classify": ("logistic regression on summaries", "logistic regression on 24 frames"),
    "tag": ("logistic regression on 5 steps",),
}
SHARES, BY_CHARACTER = "logistic regression on character shares", "frequencies by character"


class Baseline(NamedTuple):
    """Predicts `features @ weight + bias`: one score a class, or the targets themselves.

    Attributes:
        weight: float64 (columns, outputs), on the features as they are, not standardised.
        bias: float64 (outputs,).
    """

    weight: Tensor
    bias: Tensor


def fit_logistic(features: Tensor, y: Tensor, classes: int, l2: float = 1.0) -> Baseline:
    """Fit multinomial logistic regression on standardised features with L-BFGS.

    Minimises the sum of cross-entropies + l2 / 2 * ||W||^2 with a free bias, the objective of
    scikit-learn's LogisticRegression(C=1 / l2):
    https://scikit-learn.org/stable/modules/linear_model.html#logistic-regression

    Args:
        features: float64 (sequences, columns), in any units.
        y: int64 (sequences,) class codes.
        classes: number of classes.
        l2: strength of the penalty.

    Returns:
        The classifier, for features that are not standardised.
    """
    mean, deviation = _standard(features)
    standardised = (features - mean) / deviation
    weight = features.new_zeros(features.shape[1], classes, requires_grad=True)
    bias = features.new_zeros(classes, requires_grad=True)
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

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

    Args:
        features: float64 (sequences, columns), in any units.
        y: floating (sequences, targets).
        l2: strength of the penalty, above 0.

    Returns:
        The regression, for features that are not standardised.
    """
    return ridge(moments([(features, y.double())]), l2)


class LinearSums(NamedTuple):
    """What a linear fit needs to know of its data, float64.

    Attributes:
        rows: how many.
        mean: (columns,), of the features.
        target_mean: (outputs,).
        gram: (columns, columns), sums of products of centred features.
        cross: (columns, outputs), of centred features and targets.
    """

    rows: int
    mean: Tensor
    target_mean: Tensor
    gram: Tensor
    cross: Tensor


def moments(blocks: Iterable[tuple[Tensor, Tensor]]) -> LinearSums:
    """Sum up blocks of features (rows, columns) and targets (rows, outputs), float64; at least one.

    Products are summed about the first block's means, so that large offsets lose little.
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
    gram = found.gram / deviation / deviation[:, None] + l2 * torch.eye(len(deviation)).double()
    weight = torch.linalg.solve(gram, found.cross / deviation[:, None])
    return _on_raw_features(weight, found.target_mean, found.mean, deviation)


def fit_baselines(train: Sequences) -> dict[str, Baseline]:
    """Fit every baseline of the task.

    Args:
        train: on the CPU.

    Returns:
        By name: `majority class`, `logistic regression on summaries` and `logistic regression on
        24 frames` for classes, `logistic regression on 5 steps` in their place for classes of
        steps; `mean` and `ridge on summaries` for targets. For text `logistic regression on
        character shares`, or the `frequencies by character` of the classes of steps.
    """
    if train.task == "regress":
        mean = Baseline(torch.zeros(0, train.y.shape[1]).double(), train.y.double().mean(0))
        return {
            "mean": mean,
            "ridge on summaries": fit_ridge(features_of("ridge on summaries", train), train.y),
        }
    classes = len(train.classes)
    shares = one_hot(train.y, classes).double().mean(0)
    fitted = {"majority class": Baseline(torch.zeros(0, classes).double(), shares)}
    if train.vocabulary and train.per_step:
        return {**fitted, BY_CHARACTER: _fit_frequencies(train)}
    rows = _some_rows(train)
    if len(rows) < len(train) and not train.per_step:  # features of the others would be in vain
        train, rows = train.select(rows), torch.arange(len(rows))
    for name in (SHARES,) if train.vocabulary else CLASSIFIERS[train.task]:
        fitted[name] = fit_logistic(
            features_of(name, train)[rows], train.y[rows], classes, CLASSIFIER_PENALTY
        )
    return fitted


def _fit_frequencies(train: Sequences) -> Baseline:
    """The logarithm of how often each token has each class, one added to each count."""
    size, classes = len(train.vocabulary or ()), len(train.classes)
    counts = torch.bincount(train.x * classes + train.y, minlength=size * classes)
    table = counts.view(size, classes).double() + 1
    return Baseline((table / table.sum(1, True)).log(), torch.zeros(classes).double())


def _some_rows(train: Sequences) -> Tensor:
    """Labels that classifiers are fitted on: all, or `MOST_ROWS` spread over the data."""
    count = len(train.y)
    return torch.linspace(0, count - 1, min(count, MOST_ROWS), dtype=torch.float64).long()


def baseline_predictions(baselines: Mapping[str, Baseline], data: Sequences) -> dict[str, Tensor]:
    """Apply fitted baselines to data with the same schema.

    Args:
        baselines: what `fit_baselines` or `from_tensors` gave.
        data: on the CPU.

    Returns:
        For each baseline float64 (rows, outputs): one score a class, or the targets.

    Raises:
        InputError: the baselines were fitted for other features, classes or targets.
    """
    return {name: _predict(name, baseline, data) for name, baseline in baselines.items()}


def baseline_metrics(
    baselines: Mapping[str, Baseline], data: Sequences
) -> dict[str, dict[str, float]]:
    """Score fitted baselines on data with the same schema.

    Args:
        baselines: what `fit_baselines` or `from_tensors` gave.
        data: on the CPU.

    Returns:
        For each baseline `accuracy`, or `mae`, `rmse` and `r2`, as `score_classes` and
        `score_targets` define them.

    Raises:
        InputError: the baselines were fitted for other features, classes or targets.
    """
    score = score_classes if data.classes else score_targets
    predictions = baseline_predictions(baselines, data)
    return {name: score(prediction, data.y) for name, prediction in predictions.items()}


def to_tensors(baselines: Mapping[str, Baseline]) -> dict[str, Tensor]:
    """Name each tensor `baseline.<name>.weight` or `.bias`, to store them beside a model's."""
    return {
        f"{PREFIX}{name}.{part}": tensor
        for name, baseline in baselines.items()
        for part, tensor in baseline._asdict().items()
    }


def read_baselines(path: str | Path) -> dict[str, Baseline]:
    """Read the file that a training run keeps its fitted baselines in.

    Raises:
        InputError: not a safetensors file, or what `from_tensors` refuses.
    """
    path = Path(path)
    with open_archive(path, "pt") as archive:
        try:
            return from_tensors({name: archive.get_tensor(name) for name in archive.keys()})  # noqa: SIM118
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Baseline]:
    """Rebuild what `to_tensors` named; keys of other kinds are left alone.

    Raises:
        InputError: an unknown baseline, or one without a float64 weight and bias that fit.
    """
    keys = [key.removeprefix(PREFIX) for key in tensors if key.startswith(PREFIX)]
    found = {key.rpartition(".")[0] for key in keys}
    names = [name for name in KNOWN if name in found] + sorted(found - set(KNOWN))
    return {name: _rebuild(name, tensors) for name in names}


def _rebuild(name: str, tensors: Mapping[str, Tensor]) -> Baseline:
    if name not in KNOWN:
        raise InputError(f"unknown baseline {name!r}; known are {', '.join(KNOWN)}")
    parts = [tensors.get(f"{PREFIX}{name}.{part}") for part in Baseline._fields]
    found = [None if part is None else (part.dtype, part.ndim) for part in parts]
    if found == [(torch.float64, 2), (torch.float64, 1)]:
        weight, bias = (part for part in parts if part is not None)
        if weight.shape[1] == len(bias):
            return Baseline(weight, bias)
    raise InputError(
        f"baseline {name!r} needs float64 tensors weight (columns, outputs) and bias (outputs,); "
        f"train the model again"
    )


def _predict(name: str, baseline: Baseline, data: Sequences) -> Tensor:
    features = features_of(name, data)
    columns = features.shape[1] if features.is_floating_point() else len(data.vocabulary or ())
    found = (columns, len(data.classes) or len(data.targets))
    if found != tuple(baseline.weight.shape):
        raise InputError(
            f"baseline {name!r} maps {baseline.weight.shape[0]} columns to "
            f"{baseline.weight.shape[1]} outputs, but the data has {found[0]} and {found[1]}"
        )
    if not features.is_floating_point():  # tokens, each a column of ones and zeros
        return baseline.weight[features] + baseline.bias
    return features @ baseline.weight + baseline.bias


def _standard(features: Tensor) -> tuple[Tensor, Tensor]:
    deviation = features.std(0, correction=0)
    # rounding alone gives a constant column a tiny deviation; it must not be blown up
    is_constant = deviation <= 1e-12 * features.abs().amax(0)
    return features.mean(0), deviation.masked_fill(is_constant, 1.0)


def _on_raw_features(weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor) -> Baseline:
    raw_weight = (weight / deviation[:, None]).contiguous()  # safetensors takes no other
    return Baseline(raw_weight, bias - mean @ raw_weight)
