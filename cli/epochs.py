"""The table of epochs: columns on a terminal, whole lines in a pipe."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.console import Console

from lstm_compile.cli import output
from lstm_compile.cli.working import Work

if TYPE_CHECKING:
    from lstm_compile.training.job import Job
    from lstm_compile.training.state import Epoch, Progress

GAP = 2  # between two columns
NARROWEST = 8  # of a metric
LEFT_OUT_FIRST = ("rate", "s")  # where a table is too wide; after them the last metrics

Row = dict[str, str]


def epoch_printer(out: Console, epochs: int) -> "Callable[[Epoch], None]":
    """What prints each of at most `epochs` epochs."""
    if not out.is_terminal:
        return lambda epoch: out.print(plain(epoch), markup=False)
    widths: dict[str, int] = {}  # of the columns; a refit leaves some empty

    def show(epoch: "Epoch") -> None:
        row = _cells(epoch, epochs)
        if not widths:
            widths.update(_that_fit(row, out.width))
            out.print(_line({name: name for name in row}, widths), style="bold")
        out.print(_line(row, widths), style="green" if epoch.best else None, markup=False)

    return show


def step_printer(work: Work, job: "Job") -> "Callable[[Progress | None], None]":
    """What shows how far an epoch is; without progress, that the model is measured."""
    from lstm_compile.training.epoch import steps_per_epoch

    total = steps_per_epoch(job.parts.train, job.training)

    def show(progress: "Progress | None") -> None:
        if progress is None:
            work.say("measuring the model")
            return
        if not progress.state.position:  # the epoch's steps are done
            work.say("validating")
            return
        which = "epoch" if progress.refit_epochs is None else "refit, epoch"
        work.show(
            progress.state.position, total, f"{which} {progress.state.epoch}/{job.training.epochs}"
        )

    return show


def plain(epoch: "Epoch") -> str:
    """One epoch as a whole line."""
    which, mark = " of the refit" if epoch.is_refit else "", ""
    parts = [f"epoch {epoch.epoch}{which}: train loss {epoch.train_loss:.4f}"]
    if epoch.validation:
        parts += [f"validation loss {epoch.validation_loss:.4f}", output.metrics(_metrics(epoch))]
        mark = "  best" if epoch.best else ""
    return ", ".join([*parts, f"{epoch.seconds:.1f} s{mark}"])


def _cells(epoch: "Epoch", epochs: int) -> Row:
    validated = f"{epoch.validation_loss:.4f}" if epoch.validation else ""
    return {
        "epoch": f"{epoch.epoch}/{epochs}",
        "train loss": f"{epoch.train_loss:.4f}",
        "val. loss": "refit" if epoch.is_refit else validated,
        **{name: output.metric(name, value) for name, value in _metrics(epoch).items()},
        "rate": f"{epoch.learning_rate:.1e}",
        "s": f"{epoch.seconds:.1f}",
        "best": "✓" if epoch.best else "",
    }


def _that_fit(row: Row, most: int) -> dict[str, int]:
    """The widths of as many columns as `most` characters hold."""
    count = row["epoch"].partition("/")[2]
    least = {"epoch": 2 * len(count) + 1, "rate": 7, "s": 6}
    fixed = {"epoch", "train loss", "val. loss", *LEFT_OUT_FIRST, "best"}
    widths = {
        name: max(len(name), len(row[name]), least.get(name, 0 if name in fixed else NARROWEST))
        for name in row
    }
    metrics = [name for name in row if name not in fixed]
    for name in (*LEFT_OUT_FIRST, *reversed(metrics)):
        if sum(widths.values()) + GAP * (len(widths) - 1) <= most:
            break
        del widths[name]
    return widths


def _line(row: Row, widths: dict[str, int]) -> str:
    return (" " * GAP).join(f"{row.get(name, ''):>{width}}" for name, width in widths.items())


def _metrics(epoch: "Epoch") -> dict[str, float]:
    """The validation metrics without the loss, which has its own column."""
    return {name: value for name, value in epoch.validation.items() if name != "loss"}
