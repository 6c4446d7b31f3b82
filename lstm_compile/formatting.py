"""How figures, names, sizes and commands are written for people. Loads no torch."""

import difflib
import shlex
from collections.abc import Collection, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from lstm_compile.tasks import find_task

if TYPE_CHECKING:
    from lstm_compile.data.series.series_table import SeriesRoles
    from lstm_compile.data.tables.roles import FilledGaps, Roles
    from lstm_compile.evaluation.evaluate import Evaluation

SHOWN_NAMES = 12  # a one-line error lists no more
MOST_NAMES = 10_000  # of a folder that are compared with a name
NEAR_NAME = 0.7  # how alike two names must be, see difflib
PERCENT = ("accuracy", "macro_f1", "mape", "smape", "coverage")


def rows_of(task: str) -> str:
    """The word for the rows of a task: sequences, windows, characters."""
    return find_task(task).rows


def counted(count: int, rows: str) -> str:
    """`36 windows`, and `1 window`."""
    return f"{count} {rows.removesuffix('s') if count == 1 else rows}"


def metric(name: str, value: float) -> str:
    """A metric as a person reads it: `99.33 %`, or four digits."""
    return f"{100 * value:.2f} %" if name in PERCENT else f"{value:.4g}"


def metrics(values: dict[str, float]) -> str:
    """All metrics on one line."""
    return ", ".join(f"{name} {metric(name, value)}" for name, value in values.items())


def result(evaluation: "Evaluation") -> str:
    """The metrics of a model, and the number of rows."""
    return f"{metrics(evaluation.metrics)} ({counted(evaluation.rows, rows_of(evaluation.task))})"


def baselines(values: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    """One line a baseline."""
    return [("baseline", f"{name}: {metrics(scores)}") for name, scores in values.items()]


def columns(roles: "Roles | FilledGaps | SeriesRoles | None") -> list[tuple[str, str]]:
    """One line about the columns of a long table; nothing for other data."""
    return [("columns", roles.description)] if roles else []


def size(path: Path) -> str:
    """A file's size, `541 kB`."""
    return of_bytes(path.stat().st_size)


def of_bytes(count: int) -> str:
    """A number of bytes, `541 kB`."""
    if count < 1000:
        return f"{count} bytes"
    return f"{count / 1000:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"


def setting(value: object) -> str:
    """A setting as a person reads it: yes, no, none, or its value."""
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "none"


def command(name: str, path: Path, *more: str) -> str:
    """A command of this program to paste into a shell; the path is quoted."""
    return " ".join(["lstm-compile", name, shlex.quote(str(path)), *more])


def listing(names: Sequence[str]) -> str:
    """Join the names with commas on one line, cut after `SHOWN_NAMES`."""
    shown = (name if name.isprintable() else repr(name) for name in names[:SHOWN_NAMES])
    more = len(names) - SHOWN_NAMES
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def free_name(title: str, names: Collection[str]) -> str:
    """The title, followed by `_` until it is no other column's name."""
    while title in names:
        title += "_"
    return title


def near_file(path: str | PathLike[str]) -> str:
    """`; did you mean ...?` if a missing file has nearly the name of one beside it."""
    place = Path(path)
    if place.exists() or not place.parent.is_dir():
        return ""
    names = {each.name.lower(): each for each in islice(place.parent.iterdir(), MOST_NAMES)}
    close = difflib.get_close_matches(place.name.lower(), names, n=1, cutoff=NEAR_NAME)
    return f"; did you mean {str(names[close[0]])!r}?" if close else ""


def suggestion(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` if a known name is close, else nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    if not close:
        return ""
    quotes = "; a flag takes a name with a comma in double quotes" if "," in close[0] else ""
    return f"; did you mean {close[0]!r}?{quotes}"
