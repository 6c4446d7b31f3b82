"""The figures of a model and of baselines on the same rows, and one sentence about them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lstm_compile.evaluation.bootstrap import Interval
from lstm_compile.tasks import find_task
from lstm_compile.tasks.metrics import Metrics


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model and of the baselines on the same rows, and their verdict.

    Attributes:
        task: its name.
        rows: the number of sequences, windows of series, or characters.
        metrics: of the model.
        baselines: of each baseline, by its name.
        verdict: one sentence.
        interval: 95 % bounds of how much better the model is than the best baseline, in the metric
            that decides; above 0 is better. None without a baseline, or with too few rows.
        details: for `forecast`, the metrics of each target and step ahead.
    """

    task: str
    rows: int
    metrics: Metrics
    baselines: dict[str, Metrics]
    verdict: str
    interval: Interval | None
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

    Args:
        task: gives the metric.
        own: metrics of the model.
        others: metrics of the baselines.
        interval: as in `Evaluation`.
        name: the metric, if it is not the headline of the task.
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
