"""The report of a study, as one HTML file that needs nothing beside it."""

from typing import TYPE_CHECKING, Any

from lstm_compile.training.html_pages import WIDE, Point, bar_chart, line_chart, render_page
from lstm_compile.tuning.space import describe

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from lstm_compile.tuning.study import Tuned

FEWEST = 4  # complete trials that importances can be computed from


def report(tuned: "Tuned") -> bytes:
    """The report: the best settings, the history of the best value, importances, every trial."""
    complete = tuned.complete
    others = [trial for trial in tuned.study.trials if trial.state.name != "COMPLETE"]
    best, shares = tuned.best if complete else None, importances(tuned)
    across = f"importance, of {len(complete)} complete trials"
    return render_page(
        "study.html",
        title=f"{tuned.plan.data}: tuning of task {tuned.plan.task}",
        counts=", ".join(f"{n} {state}" for state, n in tuned.counts.items()) or "none yet",
        plan=tuned.plan,
        best=best,
        history=_history(tuned, complete) if complete else "",
        importance=bar_chart("importance of the settings", shares, across) if shares else "",
        fewest=FEWEST,
        space=[(name, describe(part)) for name, part in tuned.plan.space.items()],
        trials=[_cells(tuned, trial) for trial in [*tuned.ranked, *others]],
    )


def importances(tuned: "Tuned") -> dict[str, float]:
    """How much each setting decides how good the better trials are, 0 to 1; the largest first.

    Empty with too few complete trials. Source: PED-ANOVA, Watanabe et al. 2023.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    complete = tuned.complete
    if len(complete) < FEWEST or len({trial.value for trial in complete}) < 2:
        return {}
    found = get_param_importances(tuned.study, evaluator=PedAnovaImportanceEvaluator())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _history(tuned: "Tuned", complete: list["FrozenTrial"]) -> str:
    """The value of each trial, and as a staircase the best value so far."""
    better = max if tuned.plan.direction == "maximize" else min
    values = [(float(trial.number), trial.value or 0.0) for trial in complete]
    best: list[Point] = []
    for number, value in values:
        before = best[-1][1] if best else value
        best += [(number, before), (number, better(before, value))]
    curves = {"best so far": best, "trials": values}
    return line_chart(tuned.plan.metric, curves, "trial", dotted=("trials",), width=WIDE)


def _cells(tuned: "Tuned", trial: "FrozenTrial") -> tuple[Any, ...]:
    """A row of the table of trials."""
    return (
        trial.number,
        trial.state.name.lower(),
        "" if trial.value is None else f"{trial.value:.6g}",
        f"{trial.duration.total_seconds():.1f}" if trial.duration else "",
        *(cell(trial.params.get(name, "")) for name in tuned.plan.space),
        trial.user_attrs.get("reason", ""),
    )


def cell(value: Any) -> str:
    """A setting as a person reads it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value).strip('"')
