"""What a person reads: tables on a terminal, plain lines in a pipe, JSON where asked for."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from lstm_compile.files import to_json

if TYPE_CHECKING:
    from lstm_compile.data.roles import Roles
    from lstm_compile.data.series_roles import SeriesRoles
    from lstm_compile.evaluation import Evaluation
    from lstm_compile.export.report import ParityReport

PERCENT = ("accuracy", "macro_f1", "mape", "smape", "coverage")


def console(json_wanted: bool) -> Console:
    """Where progress goes: standard error when standard output belongs to JSON.

    Of several processes that train together the first one speaks.
    """
    stream, quiet = sys.stderr if json_wanted else sys.stdout, os.environ.get("RANK", "0") != "0"
    return Console(file=stream, highlight=False, soft_wrap=True, emoji=False, quiet=quiet)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(to_json(value))


def rows_of(task: str) -> str:
    """What the rows of a task are called."""
    return {"forecast": "windows", "lm": "characters"}.get(task, "sequences")


def metric(name: str, value: float) -> str:
    """A metric as a person reads it: `99.33 %`, or four digits."""
    return f"{100 * value:.2f} %" if name in PERCENT else f"{value:.4g}"


def metrics(values: dict[str, float]) -> str:
    """All metrics on one line."""
    return ", ".join(f"{name} {metric(name, value)}" for name, value in values.items())


def result(evaluation: "Evaluation") -> str:
    """The metrics of a model, and on how many rows."""
    return f"{metrics(evaluation.metrics)} ({evaluation.rows} {rows_of(evaluation.task)})"


def baselines(values: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    """One line a baseline, for `lines`."""
    return [("baseline", f"{name}: {metrics(scores)}") for name, scores in values.items()]


@contextmanager
def reading(out: Console) -> Iterator[Callable[[int, int], None]]:
    """What shows rows done of rows in all: a bar on a terminal, gone once they are read."""
    from rich.progress import Progress

    with ExitStack() as stack:
        bar = Progress(console=out, transient=True, disable=not out.is_terminal)
        task = bar.add_task("rows", total=None)

        def show(done: int, total: int) -> None:
            if out.is_terminal and not bar.live.is_started:  # only long tables call
                stack.enter_context(bar)
            bar.update(task, completed=done, total=total)

        yield show


def columns(roles: "Roles | SeriesRoles | None") -> list[tuple[str, str]]:
    """What each column of a long table is, for `lines`; nothing for other data."""
    return [("columns", roles.description)] if roles else []


def size(path: Path) -> str:
    """A file's size, `541 kB`."""
    count = path.stat().st_size
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def lines(out: Console, *pairs: tuple[str, str]) -> None:
    """Aligned `title  text` lines."""
    for title, text in pairs:
        out.print(f"[bold]{title:<11}[/bold] ", end="")
        out.print(text, markup=False)


def command(name: str, path: Path, *more: str) -> str:
    """A command of this program to paste, whatever the path holds."""
    return " ".join(["lstm-compile", name, shlex.quote(str(path)), *more])


def parity(out: Console, report: "ParityReport") -> None:
    """The report's `[✓]` and `[x]` lines."""
    for line in report.lines():
        out.print(line, markup=False, style=None if line.startswith("[✓]") else "red")
