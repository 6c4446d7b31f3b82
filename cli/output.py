"""Output for people: tables on a terminal, plain lines in a pipe; JSON on request."""

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
from lstm_compile.formatting import baselines, columns, metric, metrics, result, size
from lstm_compile.formatting import command as plain_command

if TYPE_CHECKING:
    from lstm_compile.export.proof.parity_report import ParityReport

__all__ = [
    "baselines", "columns", "command", "console", "lines", "metric", "metrics", "parity",
    "print_json", "reading", "result", "size",
]  # fmt: skip

CELL = "lstm_compile.cell"  # in a context's `meta`: the cell's file as --cell named it
NEEDS_CELL = ("export", "verify", "train", "train --resume")  # next commands that read a model


def command(name: str, path: Path, *more: str) -> str:
    """A command of this program to paste into a shell, with the `--cell` of this one."""
    cell = click.get_current_context().meta.get(CELL)
    flag = ("--cell", shlex.quote(cell)) if cell and name in NEEDS_CELL else ()
    return plain_command(name, path, *more, *flag)


def console(json_wanted: bool) -> Console:
    """Where progress is written: standard error if standard output is for JSON.

    Of several processes that train together only the first one writes.
    """
    stream, quiet = sys.stderr if json_wanted else sys.stdout, os.environ.get("RANK", "0") != "0"
    return Console(file=stream, highlight=False, soft_wrap=True, emoji=False, quiet=quiet)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(to_json(value))


@contextmanager
def reading(out: Console) -> Iterator[Callable[..., None]]:
    """A function that shows rows done, rows in all and what is done: a bar on a terminal."""
    from rich.progress import Progress

    with ExitStack() as stack:
        bar = Progress(console=out, transient=True, disable=not out.is_terminal)
        task = bar.add_task("rows", total=None)

        def show(done: int, total: int, what: str = "rows") -> None:
            if out.is_terminal and not bar.live.is_started:  # only long tables call this
                stack.enter_context(bar)
            bar.update(task, description=what, completed=done, total=total)

        yield show


def lines(out: Console, *pairs: tuple[str, str]) -> None:
    """Aligned `title  text` lines."""
    for title, text in pairs:
        out.print(f"[bold]{title:<11}[/bold] ", end="")
        out.print(text, markup=False)


def parity(out: Console, report: "ParityReport") -> None:
    """The report's `[✓]` and `[x]` lines."""
    for line in report.lines():
        out.print(line, markup=False, style=None if line.startswith("[✓]") else "red")
