"""`lstm-compile tune`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.options import (
    FILE,
    config_option,
    data_argument,
    given_of,
    output_option,
    quiet_option,
    settings_flags,
    task_option,
)
from lstm_compile.cli.working import Work, working
from lstm_compile.tasks import find_task

if TYPE_CHECKING:
    from lstm_compile.tuning.study import StudyPlan, Tuned

STUDIES = Path("studies")
FEW_VALIDATED = 50  # rows
SHOWN = 8  # trials in the ranking
EXAMPLES = (
    "tune data.csv --id machine --target state --trials 40",
    "tune airline --epochs 5 --metric mae",
)


@click.command(cls=Command, examples=EXAMPLES)
@data_argument
@task_option
@click.option("--test", help="File of held-out sequences for best.toml; tuning does not read it.")
@output_option("folder", "Folder of the study  [default: studies/DATA]")
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True,
    help="How many trials all processes of the study complete or prune together.",
)  # fmt: skip
@click.option(
    "--space", "space_file", type=FILE,
    help="TOML file of the search space.  [default: that of the task, without the flags given]",
)  # fmt: skip
@click.option(
    "--metric", help="Validation metric to improve.  [default: loss, rmse or mae, by task]"
)
@click.option(
    "--pruner", type=click.Choice(["median", "hyperband", "none"]), default="median",
    show_default=True, help="Rule that stops trials which do worse than others.",
)  # fmt: skip
@click.option(
    "--storage", help="URL of a database that several machines use.  [default: a file in --output]"
)
@click.option(
    "--heartbeat", type=click.IntRange(1), default=30, show_default=True,
    help="Seconds between a trial's signs of life; after twice as long it counts as killed.",
)  # fmt: skip
@config_option
@quiet_option
@settings_flags
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data: str,
    task: str | None,
    test: str | None,
    folder: Path | None,
    space_file: Path | None,
    metric: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Search for the settings with the best validation result.

    The same command in another process joins the study; after a kill it continues the study. Flags
    of `train` that are given stay fixed. The best settings are written to best.toml, for `train
    --config`; report.html shows all trials and which settings mattered.
    """
    out = output.console(as_json)
    with working(out, "loading") as work:
        from lstm_compile.data.tables.folders import plain_name
        from lstm_compile.recurrence.cache import use_local_cache
        from lstm_compile.tuning.space import read_space
        from lstm_compile.tuning.study import plan_of, require_optuna, tune

        require_optuna()
        use_local_cache()
        given = given_of(ctx, options)
        space = read_space(space_file) if space_file else None
        if "cell" in (space or {}):  # then --cell only says what a name in the space stands for
            given["model"].pop("cell", None)
        plan = plan_of(data, space, task=task, metric=metric, test=test, **given)
        folder = folder or STUDIES / Path(plain_name(data)).stem
        _begin(out, plan, folder)
        names = ("trials", "pruner", "storage", "heartbeat", "seed")
        tuned = tune(
            plan, folder, **{name: options[name] for name in names},
            on_trial=_trial_printer(out, work, options["trials"]),
        )  # fmt: skip
    _end(out, tuned)
    if as_json:
        output.print_json(_summary(tuned))


def _begin(out: Console, plan: "StudyPlan", folder: Path) -> None:
    from lstm_compile.tuning.space import describe

    output.lines(
        out,
        ("data", f"{plan.data}, task {plan.task}"),
        ("value", f"the best validation {plan.metric}, {plan.direction}d"),
        *(("space", f"{name}: {describe(part)}") for name, part in plan.space.items()),
        ("study", str(folder)),
        *_warning(plan),
    )


def _trial_printer(out: Console, work: Work, trials: int) -> Callable[[Any, Any], None]:
    """What prints each trial, and shows how many of all are done."""
    work.show(0, trials, "trials")

    def show(study: Any, trial: Any) -> None:
        output.write(out, line(study, trial), 4)
        done = sum(each.state.name in ("COMPLETE", "PRUNED") for each in study.trials)
        work.show(done, trials, "trials")

    return show


def _warning(plan: "StudyPlan") -> list[tuple[str, str]]:
    """A line if the validation part is too small to tell settings apart."""
    if plan.validated >= FEW_VALIDATED:
        return []
    rows = output.counted(plan.validated, find_task(plan.task).rows)
    why = f"the validation part has {rows}, and chance decides between settings that are near"
    return [("note", f"{why}; raise --validation, or take more data")]


def line(study: Any, trial: Any) -> str:
    """`trial 3: complete, 0.1234, 5.6 s  best`."""
    state = trial.state.name.lower()
    value = f", {trial.value:.6g}" if trial.value is not None else ""
    seconds = f", {trial.duration.total_seconds():.1f} s" if trial.duration else ""
    why = f" ({trial.user_attrs['reason']})" if "reason" in trial.user_attrs else ""
    is_best = state == "complete" and study.best_trial.number == trial.number
    return f"trial {trial.number}: {state}{value}{seconds}{why}{'  best' if is_best else ''}"


def _end(out: Console, tuned: "Tuned") -> None:
    from lstm_compile.tuning.study import BEST_FILE, REPORT_FILE
    from lstm_compile.tuning.study_report import cell

    best, path = tuned.best, tuned.folder / BEST_FILE
    counts = ", ".join(f"{count} {state}" for state, count in tuned.counts.items())
    drawn = ", ".join(f"{name} {cell(value)}" for name, value in best.params.items())
    output.lines(
        out,
        ("trials", counts),
        ("best", f"trial {best.number}: {tuned.plan.metric} {best.value:.6g}, {drawn}"),
        ("ranking", ", ".join(f"{t.number} ({t.value:.4g})" for t in tuned.ranked[:SHOWN])),
        ("wrote", f"{path}, {tuned.folder / REPORT_FILE}"),
        ("next", output.command("train", Path(tuned.plan.data), "--config", str(path))),
    )


def _summary(tuned: "Tuned") -> dict[str, Any]:
    from lstm_compile.tuning.study_report import importances

    best = tuned.best
    return {
        "study": str(tuned.folder),
        "metric": tuned.plan.metric,
        "trials": tuned.counts,
        "best": {"trial": best.number, "value": best.value, "settings": best.params},
        "importances": importances(tuned),
    }
