"""Whether a model is better than baselines on the same rows by more than chance explains.

A paired bootstrap gives the interval of the difference, and one sentence says what it means.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lstm_compile.tasks import find_task
from lstm_compile.tasks.metrics import Metrics

Interval = tuple[float, float]
RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
# With 5 rows, being better on every one of them is not significant at the 95 % level: the sign
# test gives 2 / 2 ** 5 = 0.06.
MIN_ROWS = 6
BUDGET = 1 << 20  # row numbers drawn at once, 8 MB


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model and of the baselines on the same rows, and their verdict."""

    task: str
    rows: int  # the number of sequences, windows of series, or characters
    metrics: Metrics  # of the model
    baselines: dict[str, Metrics]  # of each baseline, by its name
    verdict: str  # one sentence
    # 95 % bounds of how much better the model is than the best baseline, in the metric that
    # decides; above 0 is better. None without a baseline, or with too few rows
    interval: Interval | None
    # of forecasts, the metrics by target and step ahead, and by series where they have ids
    details: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, object]:
        """The output of `--json`."""
        values = asdict(self)
        return values if self.details else {k: v for k, v in values.items() if k != "details"}


def best_of(task: str, others: Mapping[str, Metrics], name: str = "") -> str:
    """The best baseline, the first of equals, by the headline of the task or the metric `name`."""
    record = find_task(task)
    name = name or record.headline
    sign = 1 if name in record.rising else -1
    return max(others, key=lambda other: sign * others[other][name])


def verdict(
    task: str,
    own: Metrics,
    others: Mapping[str, Metrics],
    interval: Interval | None,
    name: str = "",
) -> str:
    """One sentence: whether the model beats the best baseline by more than noise.

    The metric that decides is the headline of the task, or `name`.
    """
    if not others:
        return "no baseline to compare with"
    name, best = name or find_task(task).headline, best_of(task, others, name)
    pair = f"{name} {own[name]:.4g} against {others[best][name]:.4g} of {best}"
    if interval is None:
        return f"no better than a baseline: {pair}; too few sequences to tell them apart"
    low, high = interval
    bounds = f"95 % interval of the difference {low:+.4f} to {high:+.4f}"
    if low > 0:
        return f"better than every baseline: {pair} ({bounds})"
    if high < 0:
        return f"worse than a baseline: {pair} ({bounds}); use the simpler model"
    return f"no better than a baseline: {pair}; the difference is within noise ({bounds})"


def paired_interval(
    own: Tensor, other: Tensor, summary: Callable[[Tensor], Tensor]
) -> Interval | None:
    """The 95 % percentile interval of summary(mean(own)) - summary(mean(other)).

    Both means are of the same 2,000 resamples, each as many rows drawn with replacement, from a
    fixed seed. Source: Efron and Tibshirani 1993, chapter 13.

    `own` and `other` are (rows,), scores of the same rows; with fewer than `MIN_ROWS` there is no
    interval. `summary` maps means of scores to the figures to compare, both (resamples,).
    """
    if len(own) < MIN_ROWS:
        return None
    means = _resampled(torch.stack([own, other]).double())
    return _bounds(summary(means[0]) - summary(means[1]))


def _bounds(differences: Tensor) -> Interval:
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64, device="cpu")
    low, high = differences.quantile(tails).tolist()
    return low, high


def grouped_interval(
    own: Tensor,
    other: Tensor,
    owner: Tensor,
    summary: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Interval | None:
    """The same, drawing whole groups of rows, at least `MIN_ROWS`.

    `owner` is int64 (rows,), the group of each row, never falling.
    """
    _, owner = owner.unique(return_inverse=True)  # leaves out empty groups
    parts = torch.stack(
        [own.double(), other.double(), torch.ones(len(owner), device="cpu").double()]
    )
    sums = torch.zeros(3, int(owner.max()) + 1 if len(owner) else 0, device="cpu").double()
    if sums.shape[1] < MIN_ROWS:
        return None
    ours, theirs, count = _resampled(sums.index_add_(1, owner, parts))
    return _bounds(summary(ours / count) - summary(theirs / count))


def summed_interval(gain: Tensor, count: Tensor) -> Interval | None:
    """The same for sum(gain) / sum(count), from sums (groups,) over each group's rows."""
    if len(gain) < MIN_ROWS:
        return None
    means = _resampled(torch.stack([gain.double(), count.double()]))
    return _bounds(means[0] / means[1])


def _resampled(scores: Tensor) -> Tensor:
    """Means (scores, resamples) of rows drawn with replacement."""
    generator, rows = torch.Generator().manual_seed(SEED), scores.shape[1]
    size = max(1, BUDGET // rows)
    parts = []
    for done in range(0, RESAMPLES, size):
        shape = min(size, RESAMPLES - done), rows
        index = torch.randint(rows, shape, generator=generator, device="cpu")
        parts.append(torch.stack([score[index].mean(1) for score in scores]))
    return torch.cat(parts, dim=1)


def difference_interval(
    task: str, own: Tensor, other: Tensor, y: Tensor, owner: Tensor | None = None
) -> Interval | None:
    """95 % bounds of how much better `own` is than `other`, by the row scores of the task.

    Both are (rows, outputs), scores of classes or values of targets; `y` is (rows,) int64 class
    codes, or (rows, targets). `owner` is (rows,) int64, the sequence of each step, never falling:
    whole sequences are then drawn, as the steps of one sequence are alike.
    """
    score, gain = find_task(task).row_score, find_task(task).gain or (lambda mean: mean)
    assert score is not None
    ours, theirs = score(own, y), score(other, y)
    if owner is not None:
        return grouped_interval(ours, theirs, owner, gain)
    return paired_interval(ours, theirs, gain)
