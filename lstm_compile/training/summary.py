"""What a run is and how it ended, as titled lines for people."""

from typing import TYPE_CHECKING

from lstm_compile import formatting
from lstm_compile.formatting import listing
from lstm_compile.training.prepare import Job
from lstm_compile.training.resume import Saved

if TYPE_CHECKING:
    from lstm_compile.training.run import Outcome

Lines = list[tuple[str, str]]


def beginning(job: Job) -> Lines:
    """What the run learns from, and where it begins."""
    parts, rows = job.parts, formatting.rows_of(job.config.task)
    return [
        ("data", _data(job)),
        *formatting.columns(parts.train.roles),
        (
            "parts",
            f"{len(parts.train)} {rows} to train, {len(parts.validation or ())} to validate"
            + (f", {len(parts.test)} to test" if parts.tested_on == "test" else ""),
        ),
        *([("init", job.warm.line())] if job.warm else []),
        ("run", str(job.folder)),
        *([("resumed", _reached(job.saved))] if job.saved else []),
    ]


def ending(job: Job, outcome: "Outcome") -> Lines:
    """Why the run stopped, and what computed it."""
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


def way_on(job: Job, outcome: "Outcome") -> Lines:
    """The commands to go on with."""
    resume = ("resume", formatting.command("train --resume", job.folder))
    return [
        *([resume] if outcome.fit.stopped == "interrupt" else []),
        ("next", formatting.command("export", job.folder, "--onnx")),
    ]


def times(outcome: "Outcome") -> str:
    """`18.4 s, 3.1 s of it compiling`."""
    compiling = outcome.compile_seconds
    return f"{outcome.seconds:.1f} s" + (
        f", {compiling:.1f} s of it compiling" if compiling else ""
    )


def _data(job: Job) -> str:
    schema = job.parts.train.schema
    targets = f", {'target' if len(schema.targets) == 1 else 'targets'} {listing(schema.targets)}"
    kind = f", {len(schema.classes)} classes" if schema.classes else targets
    if schema.vocabulary is None:
        count = len(schema.features)
        return f"{job.data}: {count} feature{'' if count == 1 else 's'}{kind}"
    size = f"text, a vocabulary of {len(schema.vocabulary)} {schema.vocabulary.kind}s"
    return f"{job.data}: {size}{kind if schema.classes else ''}"


def _reached(saved: Saved) -> str:
    state = saved.progress.state
    which = "the refit's epoch" if saved.progress.again is not None else "epoch"
    return f"{which} {state.epoch}, after {state.position} steps of it"


def _refit(job: Job, outcome: "Outcome") -> str:
    epochs = outcome.fit.best.epoch if outcome.fit.best else 0
    which = "" if outcome.tested_on == "test" else "; the figures are of the weights before it"
    rows = formatting.rows_of(job.config.task)
    return f"{epochs} epochs on all {len(job.parts.everything)} {rows}{which}"
