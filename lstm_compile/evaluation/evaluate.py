"""How good a model is on data, beside what a simpler rule reaches on the same rows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lstm_compile.config import CLASSES, ModelConfig, Task
from lstm_compile.data.sequences import Sequences
from lstm_compile.evaluation.baselines import Baseline, baseline_predictions
from lstm_compile.evaluation.bootstrap import Interval, grouped_interval, paired_interval
from lstm_compile.tasks.scoring import Metrics, metrics, score_classes, score_targets

# The metric that decides, and whether more of it is better.
HEADLINE: dict[str, tuple[str, bool]] = {
    "classify": ("accuracy", True),
    "regress": ("rmse", False),
    "forecast": ("scaled_mse", False),
    "tag": ("accuracy", True),
    "lm": ("bits_per_character", False),
}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model and of the baselines on the same rows, and what to make of them.

    Attributes:
        task: `classify`, `regress`, `forecast`, `tag` or `lm`.
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


def evaluate(
    prediction: Tensor, config: ModelConfig, data: Sequences, baselines: Mapping[str, Baseline]
) -> Evaluation:
    """Compare predictions with the truth and with the baselines.

    Args:
        prediction: (rows, output_size), logits or values in the user's units, in the data's order;
            for `tag` a row is a step.
        config: of the model that predicted.
        data: on the CPU.
        baselines: fitted on training data; may be empty.
    """
    own = metrics(config, prediction, data.y)
    score = score_classes if config.task in CLASSES else score_targets
    predictions = baseline_predictions(baselines, data)
    others = {name: score(other, data.y) for name, other in predictions.items()}
    interval = None
    if others:
        best = predictions[best_of(config.task, others)]
        owner = torch.arange(len(data)).repeat_interleave(data.lengths) if data.per_step else None
        interval = difference_interval(config.task, prediction, best, data.y, owner)
    sentence = verdict(config.task, own, others, interval)
    return Evaluation(config.task, len(data), own, others, sentence, interval)


def best_of(task: str, others: Mapping[str, Metrics], name: str = "") -> str:
    """The name of the baseline with the best deciding metric; the first of equals.

    The metric is the task's, or another of the task's called `name`.
    """
    own_name, more_is_better = HEADLINE[task]
    name = name or own_name
    sign = 1 if more_is_better else -1
    return max(others, key=lambda other: sign * others[other][name])


def difference_interval(
    task: Task, own: Tensor, other: Tensor, y: Tensor, owner: Tensor | None = None
) -> Interval | None:
    """95 % bounds of how much better `own` is than `other`: in accuracy, or by how much rmse falls.

    Args:
        task: decides the metric.
        own: (rows, outputs), scores of classes or values of targets.
        other: the same of whom it is compared with.
        y: (rows,) int64 class codes, or (rows, targets).
        owner: (rows,) int64, the sequence of each step, rising; sequences are then what is drawn,
            as steps of one sequence are alike.
    """
    if task in CLASSES:
        ours, theirs = ((guess.argmax(-1) == y).double() for guess in (own, other))
        if owner is not None:
            return grouped_interval(ours, theirs, owner)
        return paired_interval(ours, theirs, lambda share: share)
    ours, theirs = ((guess.double() - y.double()).square().mean(1) for guess in (own, other))
    return paired_interval(ours, theirs, lambda square: -square.sqrt())


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
    name, best = name or HEADLINE[task][0], best_of(task, others, name)
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
