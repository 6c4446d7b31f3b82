"""Figures of a model and of baselines on the same rows, and one sentence on them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lstm_compile.evaluation.bootstrap import Interval
from lstm_compile.tasks import find_task
from lstm_compile.tasks.metrics import Metrics


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model and of the baselines on the same rows, and what to make of them.

    Attributes:
        task: its name.
        rows: how many sequences, windows of series, or characters.
        metrics: of the model.
        baselines: of each baseline, by its name.
        verdict: one sentence.
        interval: 95 % bounds of how much better the model is than the best baseline in the deciding
            metric, accuracy or rmse; above 0 is better for both. None without a baseline, or with
            too few rows to tell.
        details: for `forecast`, what `backtest` says of each target and step ahead.
    """

    task: str
    rows: int
    metrics: Metrics
    baselines: dict[str, Metrics]
    verdict: str
    interval: Interval | None
    details: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, object]:
        """What `--json` prints."""
        values = asdict(self)
        return values if self.details else {k: v for k, v in values.items() if k != "details"}


def best_of(task: str, others: Mapping[str, Metrics], name: str = "") -> str:
    """The name of the baseline with the best deciding metric; the first of equals.

    The metric is the task's, or another of the task's called `name`.
    """
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
    """One plain sentence: whether the model beats the best baseline, by more than noise.

    Args:
        task: decides the metric.
        own: metrics of the model.
        others: metrics of the baselines.
        interval: what `difference_interval` gives for the best of them.
        name: the metric, where it is not the task's own.
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
