"""`lstm-compile runs`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.options import PATH, json_option
from lstm_compile.model.run_folder import RUNS

if TYPE_CHECKING:
    from lstm_compile.training.run_list import Order, RunSummary

EXAMPLES = (
    "runs",
    "runs --sort metric --json",
)
ORDERS = ("date", "data", "metric", "size")
HEAD = ("run", "figure", "of part", "epoch", "size", "date")


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("folder", type=PATH, default=RUNS)
@click.option(
    "--sort", "order", type=click.Choice(ORDERS), default="date", show_default=True,
    help="The newest, or the best of each data set, or the smallest first.",
)  # fmt: skip
@json_option
def command(folder: Path, order: "Order", as_json: bool) -> None:
    """List the runs of a folder with their figures and settings.

    FOLDER is `runs` if none is named. The figure is that of the test part, or of the validation
    part where there is none. Shown are the settings that differ from the defaults of the task.
    """
    from lstm_compile.training.run_list import list_runs

    found = list_runs(folder, order)
    if as_json:
        return output.print_json({"runs": [run._asdict() for run in found]})
    out = output.console(as_json)
    rows = [HEAD, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, run in zip(rows, (None, *found), strict=True):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        output.write(out, "  ".join(cells).rstrip(), 4, None if run else "bold")
        if run:
            output.write(out, f"    {'; '.join(_details(run))}", 4)
    return None


def _cells(run: "RunSummary") -> tuple[str, ...]:
    figure = "" if run.value is None else f"{run.metric} {output.metric(run.metric, run.value)}"
    size = output.of_bytes(run.bytes) if run.bytes else ""
    date = run.date[: len("2026-01-31T12:00")].replace("T", " ")
    return run.run, figure, run.part, str(run.epochs or ""), size, date


def _details(run: "RunSummary") -> Iterator[str]:
    yield run.data or "data unknown"
    if run.task:
        yield run.task
    if run.problem:
        yield f"cannot be read: {run.problem}"
    elif not run.stopped:
        yield "not finished"
    elif run.stopped == "interrupt":
        yield "stopped by a signal"
    yield from (f"{name} {output.setting(value)}" for name, value in (run.settings or {}).items())
