"""`report.html`: what a run learned from, how training went and what the model is worth."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lstm_compile import formatting
from lstm_compile.data.listing import SHOWN_NAMES, listing
from lstm_compile.data.tables.columns import CHOICES
from lstm_compile.devices import find_device
from lstm_compile.errors import InputError, reason
from lstm_compile.evaluation.evaluate import HEADLINE
from lstm_compile.files import write_atomically
from lstm_compile.model.header import count_parameters
from lstm_compile.model.run_folder import REPORT_FILE
from lstm_compile.training.charts import line_chart
from lstm_compile.training.config_file import table_of
from lstm_compile.training.defaults import complete, resolve
from lstm_compile.training.html_pages import render_page
from lstm_compile.training.job import Job, Outcome
from lstm_compile.training.resume import CHOSEN_BY_RUN
from lstm_compile.training.state import Epoch, Fit
from lstm_compile.training.summary import describe_end, describe_start, describe_time, next_commands

# rows of cells, the titles above them, and the first cell of the row that stands out
Table = tuple[list[tuple[str, ...]], tuple[str, ...], str]


def write_report(job: Job, outcome: Outcome, note: Callable[[str], None]) -> None:
    """Write the report; if that fails, `note` is called and the run goes on."""
    path = job.folder / REPORT_FILE
    try:
        write_atomically(path, report(job, outcome))
    except InputError as error:
        note(str(error))
    except Exception as error:  # whatever it is, hours of training are worth more than a page
        note(f"{path}: not written ({reason(error)})")


def report(job: Job, outcome: Outcome) -> bytes:
    """One HTML page that needs nothing beside it."""
    evaluation, fit = outcome.evaluation, outcome.fit
    targets = (evaluation.details or {}).get("targets", {})
    totals = {
        name: {key: value for key, value in figures.items() if key != "steps"}
        for name, figures in targets.items()
    }
    ours = "this model"
    return render_page(
        "report.html",
        title=f"{job.data}: training of task {job.config.task}",
        evaluation=evaluation,
        tested_on=outcome.tested_on,
        rows=formatting.rows_of(job.config.task),
        figures=_metrics_table("", {ours: evaluation.metrics, **evaluation.baselines}, ours),
        by_target=_metrics_table("target", totals) if len(totals) > 1 else (),
        by_step={
            name: _metrics_table("step", {"all": totals[name], **_steps(targets[name])}, "all")
            for name in list(totals)[:SHOWN_NAMES]
        },
        charts=list(_charts(job, fit)),
        epochs=_epochs(fit),
        data=[*describe_start(job), *_names(job), ("fingerprint", job.fingerprint)],
        settings=_settings(job),
        run=[*describe_end(job, outcome), *_means(job, outcome)],
        commands="\n".join(text for _, text in next_commands(job, outcome)),
    )


def _steps(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a target by step ahead."""
    return {str(ahead): step for ahead, step in enumerate(figures["steps"], 1)}


def _metrics_table(title: str, rows: dict[str, dict[str, float]], marked: str = "") -> Table:
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    cells = [
        (
            row,
            *(formatting.metric(name, figures[name]) if name in figures else "" for name in names),
        )
        for row, figures in rows.items()
    ]
    return cells, (title, *names), marked


def _charts(job: Job, fit: Fit) -> Iterable[str]:
    best = fit.best and fit.best.epoch
    losses = {
        "training": [(epoch.epoch, epoch.train_loss) for epoch in fit.epochs],
        "validation": [(epoch.epoch, epoch.validation_loss) for epoch in fit.epochs],
    }
    yield line_chart("loss", losses, "epoch", best)
    shown = [epoch for epoch in fit.epochs if epoch.validation]
    if shown:
        name = _headline(job, shown[0])
        factor, unit = (100, ", %") if name in formatting.PERCENT else (1, "")
        curve = [(epoch.epoch, factor * epoch.validation[name]) for epoch in shown]
        yield line_chart(name + unit, {"validation": curve}, "epoch", best)


def _headline(job: Job, epoch: Epoch) -> str:
    """The validation figure nearest to the task's headline: a forecast has no scaled one."""
    name, _ = HEADLINE[job.config.task]
    return name if name in epoch.validation else next(iter(epoch.validation))


def _epochs(fit: Fit) -> Table:
    metrics = list(fit.epochs[0].validation)
    rows = [
        (
            str(epoch.epoch),
            f"{epoch.train_loss:.4f}",
            f"{epoch.validation_loss:.4f}" if epoch.validation else "",
            *(formatting.metric(name, epoch.validation[name]) for name in metrics),
            f"{epoch.learning_rate:.2g}",
            f"{epoch.seconds:.1f}",
        )
        for epoch in fit.epochs
    ]
    head = ("epoch", "training loss", "validation loss", *metrics, "rate", "s")
    return rows, head, str(fit.best.epoch) if fit.best else ""


def _names(job: Job) -> Iterable[tuple[str, str]]:
    schema = job.parts.train.schema
    features = schema.features if schema.vocabulary is None else ()
    found = {"features": features, "classes": schema.classes, "targets": schema.targets}
    return [(title, listing(names)) for title, names in found.items() if names]


def _settings(job: Job) -> list[tuple[str, str, str]]:
    """The settings that differ from the defaults of the task: name, value, default."""
    usual = complete(resolve("", job.config.task))
    taken = {"model": job.config, "training": job.training}
    rows = [
        (name, _shown(getattr(owner, name)), _shown(default))
        for title, owner in taken.items()
        for name, default in usual[title].items()
        if getattr(owner, name) != default and name not in CHOSEN_BY_RUN
    ]
    options = table_of(job)
    choices = [(name, options.get(name, "error"), "error") for name in CHOICES]
    return rows + [choice for choice in choices if choice[1] != "error"]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "none"


def _means(job: Job, outcome: Outcome) -> Iterable[tuple[str, str]]:
    """Time, size, device, seed and versions of the run."""
    params, versions = outcome.model.params, outcome.model.training["versions"]
    count = count_parameters({name: list(value.shape) for name, value in params.items()})
    size = formatting.of_bytes(sum(value.nbytes for value in params.values()))
    return [
        ("time", describe_time(outcome)),
        ("size", f"{count:,} parameters, {size}"),
        ("device", f"{find_device(job.training.device)}, CPU threads: {job.training.threads}"),
        ("seed", str(job.training.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
