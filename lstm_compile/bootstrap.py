"""A paired bootstrap: whether one model beats another by more than the choice of rows explains."""

from collections.abc import Callable

import torch
from torch import Tensor

Interval = tuple[float, float]
RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
# With fewer rows not even a model that is better on every one of them is so at the 95 % level:
# the sign test gives 2 / 2 ** 5 = 0.06.
MIN_ROWS = 6
BUDGET = 1 << 20  # row indices drawn at once, 8 MB


def paired_interval(
    own: Tensor, other: Tensor, summary: Callable[[Tensor], Tensor]
) -> Interval | None:
    """The 95 % percentile interval of summary(mean(own)) - summary(mean(other)).

    Both means are of the same 2,000 resamples, each as many rows drawn with replacement, from a
    fixed seed. Source: Efron and Tibshirani 1993, chapter 13.

    Args:
        own: (rows,), one score a row.
        other: (rows,), of the same rows.
        summary: from means of scores (resamples,) to what is compared, of the same shape.

    Returns:
        The bounds; None for fewer rows than can tell anything.
    """
    if len(own) < MIN_ROWS:
        return None
    scores = torch.stack([own, other]).double()
    generator = torch.Generator().manual_seed(SEED)
    size = max(1, BUDGET // len(own))
    counts = [min(size, RESAMPLES - done) for done in range(0, RESAMPLES, size)]
    means = torch.cat([_means(scores, count, generator) for count in counts], dim=1)
    difference = summary(means[0]) - summary(means[1])
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = difference.quantile(tails).tolist()
    return low, high


def _means(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rows = scores.shape[1]
    index = torch.randint(rows, (count, rows), generator=generator)
    return torch.stack([score[index].mean(1) for score in scores])
