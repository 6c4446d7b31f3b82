"""`report.html`: what a run learned from, how that went and what it is worth, for people."""

from collections.abc import Callable, Iterable
from html import escape
from typing import TYPE_CHECKING, Any

from lstm_compile import formatting
from lstm_compile.data.tables.columns import CHOICES
from lstm_compile.devices import find_device
from lstm_compile.errors import InputError, reason
from lstm_compile.evaluation.evaluate import Evaluation
from lstm_compile.files import write_atomically
from lstm_compile.formatting import SHOWN_NAMES, listing
from lstm_compile.model.header import count_parameters
from lstm_compile.model.run_folder import REPORT_FILE
from lstm_compile.training.charts import line_chart
from lstm_compile.training.config_file import table_of
from lstm_compile.training.defaults import complete, resolve
from lstm_compile.training.loop import Epoch, Fit
from lstm_compile.training.page import page, table
from lstm_compile.training.prepare import Job
from lstm_compile.training.resume import SETTLED
from lstm_compile.training.summary import beginning, ending, times, way_on

if TYPE_CHECKING:
    from lstm_compile.training.run import Outcome


def write_report(job: Job, outcome: "Outcome", note: Callable[[str], None]) -> None:
    """Write the report; where that fails, `note` is told, and the run is none the worse."""
    path = job.folder / REPORT_FILE
    try:
        write_atomically(path, report(job, outcome))
    except InputError as error:
        note(str(error))
    except Exception as error:  # whatever it is, hours of training are worth more than a page
        note(f"{path}: not written ({reason(error)})")


def report(job: Job, outcome: "Outcome") -> bytes:
    """One HTML page that needs nothing beside it."""
    evaluation, rows = outcome.evaluation, formatting.rows_of(job.config.task)
    commands = "\n".join(text for _, text in way_on(job, outcome))
    return page(
        f"{job.data}: training of task {job.config.task}",
        [
            f"<p><b>Verdict</b> {escape(evaluation.verdict)}</p>",
            f"<h2>Result on the {outcome.tested_on} part, {evaluation.rows} {rows}</h2>",
            _figures(evaluation),
            *_by_target(evaluation),
            "<h2>Training</h2>",
            f'<div class="charts">{"".join(_charts(job, outcome.fit))}</div>',
            "<details><summary>Every epoch</summary>",
            _epochs(outcome.fit),
            "</details>",
            "<h2>Data</h2>",
            table([*beginning(job), *_names(job), ("fingerprint", job.fingerprint)]),
            "<h2>Settings that are not the default</h2>",
            _settings(job),
            "<h2>Run</h2>",
            table([*ending(job, outcome), *_means(job, outcome)]),
            "<h2>Next</h2>",
            f"<pre>{escape(commands)}</pre>",
        ],
    )


def _figures(evaluation: Evaluation) -> str:
    rows = {"this model": evaluation.metrics, **evaluation.baselines}
    return _metrics_table("", rows, marked="this model")


def _by_target(evaluation: Evaluation) -> Iterable[str]:
    """The figures of each target of a forecast, and of each step ahead of the first ones."""
    targets = (evaluation.details or {}).get("targets", {})
    whole = {
        name: {key: value for key, value in figures.items() if key != "steps"}
        for name, figures in targets.items()
    }
    if len(whole) > 1:
        yield _metrics_table("target", whole)
    for name in list(whole)[:SHOWN_NAMES]:
        steps = {str(ahead): step for ahead, step in enumerate(targets[name]["steps"], 1)}
        yield f"<details><summary>{escape(name)} by step ahead</summary>"
        yield _metrics_table("step", {"all": whole[name], **steps}, marked="all")
        yield "</details>"


def _metrics_table(title: str, rows: dict[str, dict[str, float]], marked: str = "") -> str:
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    cells = [
        (
            row,
            *(formatting.metric(name, figures[name]) if name in figures else "" for name in names),
        )
        for row, figures in rows.items()
    ]
    return table(cells, (title, *names), marked)


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
    """The figure of validation that decides, or the nearest to it: a forecast has no scaled one."""
    name = job.config.traits.headline
    return name if name in epoch.validation else next(iter(epoch.validation))


def _epochs(fit: Fit) -> str:
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
    return table(rows, head, marked=str(fit.best.epoch) if fit.best else "")


def _names(job: Job) -> Iterable[tuple[str, str]]:
    schema = job.parts.train.schema
    features = schema.features if schema.vocabulary is None else ()
    found = {"features": features, "classes": schema.classes, "targets": schema.targets}
    return [(title, listing(names)) for title, names in found.items() if names]


def _settings(job: Job) -> str:
    """What a run of this task would not have taken by itself."""
    usual = complete(resolve("", job.config.task))
    taken = {"model": job.config, "training": job.training}
    rows = [
        (name, _shown(getattr(owner, name)), _shown(default))
        for title, owner in taken.items()
        for name, default in usual[title].items()
        if getattr(owner, name) != default and name not in SETTLED
    ]
    table_options = table_of(job)
    rows += [
        (name, table_options[name], "error")
        for name in CHOICES
        if table_options.get(name, "error") != "error"
    ]
    return table(rows, ("setting", "this run", "default")) if rows else "<p>None.</p>"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "none"


def _means(job: Job, outcome: "Outcome") -> Iterable[tuple[str, str]]:
    """What the run was done with."""
    params, versions = outcome.model.params, outcome.model.training["versions"]
    count = count_parameters({name: list(value.shape) for name, value in params.items()})
    size = formatting.of_bytes(sum(value.nbytes for value in params.values()))
    return [
        ("time", times(outcome)),
        ("size", f"{count:,} parameters, {size}"),
        ("device", f"{find_device(job.training.device)}, CPU threads: {job.training.threads}"),
        ("seed", str(job.training.seed)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
