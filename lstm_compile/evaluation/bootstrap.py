"""A paired bootstrap: whether one model beats another by more than chance explains."""

from collections.abc import Callable

import torch
from torch import Tensor

Interval = tuple[float, float]
RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
# With 5 rows, being better on every one of them is not significant at the 95 % level: the sign
# test gives 2 / 2 ** 5 = 0.06.
MIN_ROWS = 6
BUDGET = 1 << 20  # row numbers drawn at once, 8 MB


def paired_interval(
    own: Tensor, other: Tensor, summary: Callable[[Tensor], Tensor]
) -> Interval | None:
    """The 95 % percentile interval of summary(mean(own)) - summary(mean(other)).

    Both means are of the same 2,000 resamples, each as many rows drawn with replacement, from a
    fixed seed. Source: Efron and Tibshirani 1993, chapter 13.

    Args:
        own: (rows,), one score a row.
        other: (rows,), of the same rows.
        summary: from means of scores (resamples,) to the figures to compare, of the same shape.

    Returns:
        The bounds; None if there are fewer than `MIN_ROWS` rows.
    """
    if len(own) < MIN_ROWS:
        return None
    scores = torch.stack([own, other]).double()
    means = _resampled(scores)
    return _bounds(summary(means[0]) - summary(means[1]))


def _bounds(differences: Tensor) -> Interval:
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = differences.quantile(tails).tolist()
    return low, high


def grouped_interval(own: Tensor, other: Tensor, owner: Tensor) -> Interval | None:
    """The same for mean(own) - mean(other), drawing whole groups of rows.

    Args:
        own: (rows,), one score a row.
        other: (rows,), of the same rows.
        owner: int64 (rows,), the group of each row, never falling.

    Returns:
        The bounds; None if there are fewer than `MIN_ROWS` groups.
    """
    _, owner = owner.unique(return_inverse=True)  # leaves out empty groups
    groups = int(owner.max()) + 1 if len(owner) else 0
    gain = torch.zeros(groups).double().index_add_(0, owner, own.double() - other.double())
    return summed_interval(gain, torch.bincount(owner, minlength=groups))


def summed_interval(gain: Tensor, count: Tensor) -> Interval | None:
    """The same for sum(gain) / sum(count), from sums (groups,) over each group's rows."""
    if len(gain) < MIN_ROWS:
        return None
    scores = torch.stack([gain.double(), count.double()])
    means = _resampled(scores)
    return _bounds(means[0] / means[1])


def _resampled(scores: Tensor) -> Tensor:
    """Means (scores, resamples) of rows drawn with replacement."""
    generator, rows = torch.Generator().manual_seed(SEED), scores.shape[1]
    size = max(1, BUDGET // rows)
    counts = [min(size, RESAMPLES - done) for done in range(0, RESAMPLES, size)]
    return torch.cat([_means(scores, count, generator) for count in counts], dim=1)


def _means(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rows = scores.shape[1]
    index = torch.randint(rows, (count, rows), generator=generator)
    return torch.stack([score[index].mean(1) for score in scores])
