"""What a run is, how it went and what it is worth: lines for the terminal, and `report.html`."""

from collections.abc import Callable, Iterable

from lstm_compile import formatting
from lstm_compile.data.tables.columns import CHOICES
from lstm_compile.devices import find_device
from lstm_compile.errors import InputError, reason
from lstm_compile.files import write_atomically
from lstm_compile.formatting import SHOWN_NAMES, listing
from lstm_compile.model.header import count_parameters
from lstm_compile.model.run_folder import REPORT_FILE
from lstm_compile.recurrence.cell_file import flag_of
from lstm_compile.training.config_file import table_of
from lstm_compile.training.defaults import complete, resolve
from lstm_compile.training.html_pages import line_chart, render_page
from lstm_compile.training.job import Job, Outcome
from lstm_compile.training.resume import CHOSEN_BY_RUN, SavedRun
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.state import Epoch, Fit

Lines = list[tuple[str, str]]


def describe_start(job: Job) -> Lines:
    """What the run learns from, and where it begins."""
    parts, rows = job.parts, formatting.rows_of(job.config.task)
    learned = f"{formatting.counted(len(parts.train), rows)} to train"
    learned += f", {len(parts.validation or ())} to validate"
    tested = f", {len(parts.test)} to test" if parts.tested_on == "test" else _untested(job)
    return [
        ("data", _data(job)),
        *formatting.columns(parts.train.roles),
        *([("target", parts.note)] if parts.note else []),
        ("parts", learned + tested),
        *([("init", job.warm.line())] if job.warm else []),
        ("run", str(job.folder)),
        *([("resumed", _reached(job.saved, job.training))] if job.saved else []),
    ]


def _untested(job: Job) -> str:
    """Why forecasts are not measured on the test part that was asked for; else nothing."""
    if not (job.config.traits.is_series and job.training.test_share):
        return ""
    why = f"the test part is shorter than the horizon of {job.config.horizon} steps"
    return f", none to test ({why}): the figures are of the validation part"


def describe_end(job: Job, outcome: Outcome) -> Lines:
    """Why the run stopped, and which backend computed it."""
    why = {
        "epochs": "all epochs done",
        "patience": f"no better validation loss for {job.training.patience} epochs",
        "interrupt": "stopped by a signal; the best weights so far are kept",
    }
    return [
        ("stopped", why[outcome.fit.stopped]),
        *([("refit", _refit(job, outcome))] if outcome.refitted else []),
        ("backend", outcome.backend),
    ]


def next_commands(job: Job, outcome: Outcome) -> Lines:
    """The commands that a person may want next."""
    cell = flag_of(job.config.cell)
    resume = ("resume", formatting.command("train --resume", job.folder, *cell))
    return [
        *([resume] if outcome.fit.stopped == "interrupt" else []),
        ("next", formatting.command("export", job.folder, "--onnx", *cell)),
    ]


def describe_time(outcome: Outcome) -> str:
    """`18.4 s, 3.1 s of it compiling`."""
    compiling = outcome.compile_seconds
    of_it = f", {compiling:.1f} s of it compiling" if compiling else ""
    return f"{outcome.seconds:.1f} s{of_it}"


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
    evaluation = outcome.evaluation
    targets = (evaluation.details or {}).get("targets", {})
    totals = {
        name: {k: v for k, v in each.items() if k != "steps"} for name, each in targets.items()
    }
    return render_page(
        "report.html",
        title=f"{job.data}: training of task {job.config.task}",
        evaluation=evaluation,
        tested_on=outcome.tested_on,
        rows=formatting.rows_of(job.config.task),
        figures={"this model": evaluation.metrics, **evaluation.baselines},
        totals=totals,
        by_step={
            name: {
                "all": total,
                **{str(i): step for i, step in enumerate(targets[name]["steps"], 1)},
            }
            for name, total in list(totals.items())[:SHOWN_NAMES]
        },
        charts=list(_charts(job, outcome.fit)),
        fit=outcome.fit,
        data=[*describe_start(job), *_names(job), ("fingerprint", job.fingerprint)],
        settings=_settings(job),
        run=[*describe_end(job, outcome), *_means(job, outcome)],
        commands="\n".join(text for _, text in next_commands(job, outcome)),
    )


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
    name = job.config.traits.headline
    return name if name in epoch.validation else next(iter(epoch.validation))


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
        (name, formatting.setting(getattr(owner, name)), formatting.setting(default))
        for title, owner in taken.items()
        for name, default in usual[title].items()
        if getattr(owner, name) != default and name not in CHOSEN_BY_RUN
    ]
    options = table_of(job)
    choices = [(name, options.get(name, "error"), "error") for name in CHOICES]
    return rows + [choice for choice in choices if choice[1] != "error"]


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


def _data(job: Job) -> str:
    schema = job.parts.train.schema
    targets = f", {'target' if len(schema.targets) == 1 else 'targets'} {listing(schema.targets)}"
    kind = f", {len(schema.classes)} classes" if schema.classes else targets
    if schema.vocabulary is None:
        count = len(schema.features)
        return f"{job.data}: {count} feature{'' if count == 1 else 's'}{kind}"
    size = f"text, a vocabulary of {len(schema.vocabulary)} {schema.vocabulary.kind}s"
    return f"{job.data}: {size}{kind if schema.classes else ''}"


def _reached(saved: SavedRun, training: TrainingConfig) -> str:
    state = saved.progress.state
    which = "epoch" if saved.progress.refit_epochs is None else "the refit's epoch"
    before, now = saved.run_info["training"]["epochs"], training.epochs
    more = f"; at most {now} epochs in place of {before}" if now != before else ""
    return f"{which} {state.epoch}, after {state.position} steps of it{more}"


def _refit(job: Job, outcome: Outcome) -> str:
    epochs = outcome.fit.best.epoch if outcome.fit.best else 0
    which = "" if outcome.tested_on == "test" else "; the figures are of the weights before it"
    rows = formatting.rows_of(job.config.task)
    return f"{epochs} epochs on all {len(job.parts.everything)} {rows}{which}"
