"""What a study found, as one HTML file that needs nothing beside it."""

import io
from html import escape
from typing import TYPE_CHECKING, Any

from lstm_compile.training.page import page, table
from lstm_compile.tuning.space import shown

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from lstm_compile.tuning.study import Tuned

FEWEST = 4  # complete trials that say something about importance


def report(tuned: "Tuned") -> bytes:
    """The report: the best settings, how the best value fell, what mattered, every trial."""
    trials = tuned.study.trials
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    counts = ", ".join(f"{count} {state}" for state, count in tuned.counts.items()) or "none yet"
    way = tuned.plan.direction
    body = [
        f"<p>Trials: {counts}. Value: the best validation {tuned.plan.metric}, {way}d.</p>",
        *(_best(tuned) if complete else []),
        *(["<h2>History</h2>", _history(tuned, complete)] if complete else []),
        *_importance(tuned, complete),
        "<h2>Space</h2>",
        table([(name, shown(part)) for name, part in tuned.plan.space.items()]),
        "<h2>Trials</h2>",
        _trials(tuned, trials, tuned.best.number if complete else -1),
    ]
    return page(f"{tuned.plan.data}: tuning of task {tuned.plan.task}", body)


def importances(tuned: "Tuned") -> dict[str, float]:
    """The share of each setting in how good the better trials are, 0 to 1; the largest first.

    Empty where too few trials are complete. Source: PED-ANOVA, Watanabe et al. 2023.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    complete = tuned.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < FEWEST or len({trial.value for trial in complete}) < 2:
        return {}
    found = get_param_importances(tuned.study, evaluator=PedAnovaImportanceEvaluator())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _best(tuned: "Tuned") -> list[str]:
    best = tuned.best
    return [
        f"<h2>Best: {best.value:.6g}, trial {best.number}</h2>",
        f"<pre>{escape(best.user_attrs['config'])}</pre>",
    ]


def _history(tuned: "Tuned", complete: list["FrozenTrial"]) -> str:
    better = max if tuned.plan.direction == "maximize" else min
    numbers, values = zip(*((t.number, t.value or 0.0) for t in complete), strict=True)
    lowest = [better(values[: index + 1]) for index in range(len(values))]
    figure, axes = _figure(3.2)
    axes.plot(numbers, values, "o", color="C0", label="trials")
    axes.step(numbers, lowest, where="post", color="black", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(tuned.plan.metric)
    axes.legend(fontsize=8)
    return _svg(figure)


def _importance(tuned: "Tuned", complete: list["FrozenTrial"]) -> list[str]:
    found = importances(tuned)
    if not found:
        return [f"<p>What mattered shows once {FEWEST} trials are complete.</p>"]
    figure, axes = _figure(0.6 + 0.3 * len(found))
    names, shares = list(found)[::-1], list(found.values())[::-1]
    axes.barh(names, shares, color="C0")
    axes.set_xlabel(f"importance, of {len(complete)} complete trials")
    return ["<h2>What mattered</h2>", _svg(figure)]


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Any) -> str:
    sink = io.StringIO()
    figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue().partition("<svg")[1] + sink.getvalue().partition("<svg")[2]


def _trials(tuned: "Tuned", trials: list["FrozenTrial"], best: int) -> str:
    names = list(tuned.plan.space)
    head = ("trial", "state", tuned.plan.metric, "s", *names, "why")
    rows = [
        (
            str(trial.number),
            trial.state.name.lower(),
            "" if trial.value is None else f"{trial.value:.6g}",
            f"{trial.duration.total_seconds():.1f}" if trial.duration else "",
            *(cell(trial.params.get(name, "")) for name in names),
            str(trial.user_attrs.get("reason", "")),
        )
        for trial in trials
    ]
    return table(rows, head, marked=str(best))


def cell(value: Any) -> str:
    """A setting as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).strip('"')
