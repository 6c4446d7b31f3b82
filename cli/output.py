"""Output for people: tables on a terminal, plain lines in a pipe; JSON on request."""

import os
import shlex
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from lstm_compile.files import to_json
from lstm_compile.formatting import (
    baselines,
    columns,
    counted,
    metric,
    metrics,
    of_bytes,
    result,
    setting,
    size,
)
from lstm_compile.formatting import command as plain_command

if TYPE_CHECKING:
    from lstm_compile.export.proof.parity_report import ParityReport

__all__ = [
    "baselines", "columns", "command", "console", "counted", "lines", "metric", "metrics",
    "of_bytes", "parity", "print_json", "result", "setting", "size", "write",
]  # fmt: skip

COLUMN = 12  # where the text of a `title  text` line begins
PROGRAM = "lstm-compile "  # commands begin with it
CELL = "lstm_compile.cell"  # in a context's `meta`: the cell's file as --cell named it
QUIET = "lstm_compile.quiet"  # in a context's `meta`: whether only errors are printed
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
    quiet = quiet or click.get_current_context().meta.get(QUIET, False)
    return Console(file=stream, highlight=False, soft_wrap=True, emoji=False, quiet=quiet)


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    click.echo(to_json(value))


def write(out: Console, text: str, indent: int = 0, style: str | None = None) -> None:
    """A line; on a terminal it is broken between words, and goes on after `indent` blanks."""
    parts = _parts(out, text, indent)
    out.print(f"\n{' ' * indent}".join(parts), markup=False, style=style)


def lines(out: Console, *pairs: tuple[str, str]) -> None:
    """Aligned `title  text` lines."""
    for title, text in pairs:
        body = f"\n{' ' * COLUMN}".join(_parts(out, text, COLUMN))
        out.print(Text.assemble((f"{title:<{COLUMN - 1}}", "bold"), " ", body))


def parity(out: Console, report: "ParityReport") -> None:
    """The report's `[✓]` and `[x]` lines."""
    for line in _narrowed(report.lines(), out.width if out.is_terminal else sys.maxsize):
        write(out, line, indent=4, style=None if line.startswith("[✓]") else "red")


def _narrowed(found: list[str], room: int) -> list[str]:
    """The lines without columns that are blank in all of them, as far as `room` needs it."""
    width = max(map(len, found), default=0)
    padded = [line.ljust(width) for line in found]
    spare = [i for i in range(width - 2) if all(not line[i : i + 3].strip() for line in padded)]
    left_out = set(spare[: max(0, width - room)])
    return ["".join(c for i, c in enumerate(line) if i not in left_out).rstrip() for line in padded]


def _parts(out: Console, text: str, indent: int) -> list[str]:
    """The text in parts that a terminal holds; a command is one part, as it is copied whole."""
    room = out.width - indent
    if not out.is_terminal or len(text) <= room or text.startswith(PROGRAM):
        return [text]
    whole = text.replace(" %", "\xa0%")  # a number stays with its unit
    parts = textwrap.wrap(whole, room, break_long_words=False, break_on_hyphens=False)
    return [part.replace("\xa0%", " %") for part in parts]
