"""How good a model is on data, beside what a simpler rule reaches on the same rows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from lstm_compile.baselines import Baseline, baseline_metrics
from lstm_compile.config import ModelConfig
from lstm_compile.data.sequences import Sequences
from lstm_compile.tasks import Metrics, metrics

# The metric that decides, and whether more of it is better.
HEADLINE = {"classify": ("accuracy", True), "regress": ("rmse", False)}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model and of the baselines on the same rows, and what to make of them."""

    task: str
    rows: int
    metrics: Metrics
    baselines: dict[str, Metrics]
    verdict: str

    def to_dict(self) -> dict[str, object]:
        """What `--json` prints."""
        return asdict(self)


def evaluate(
    prediction: Tensor, config: ModelConfig, data: Sequences, baselines: Mapping[str, Baseline]
) -> Evaluation:
    """Compare predictions with the truth and with the baselines.

    Args:
        prediction: (rows, output_size), logits or values in the user's units, in the data's order.
        config: of the model that predicted.
        data: on the CPU.
        baselines: fitted on training data; may be empty.
    """
    own = metrics(config, prediction, data.y)
    others = baseline_metrics(baselines, data)
    return Evaluation(config.task, len(data), own, others, verdict(config.task, own, others))


def verdict(task: str, own: Metrics, others: Mapping[str, Metrics]) -> str:
    """One plain sentence: whether the model beats the best baseline, and by how much."""
    name, more_is_better = HEADLINE[task]
    if not others:
        return "no baseline to compare with"
    sign = 1 if more_is_better else -1
    best = max(others, key=lambda other: sign * others[other][name])
    pair = f"{name} {own[name]:.4g} against {others[best][name]:.4g} of {best}"
    if sign * own[name] > sign * others[best][name]:
        return f"better than every baseline: {pair}"
    how = "as well" if own[name] == others[best][name] else "better"
    return f"no better than a baseline: {pair}; the simpler model does {how}"
