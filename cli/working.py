"""What a command is doing, in one line of a terminal: a bar with the time left, or the time so far.

Nothing of it is written into a pipe or a file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

REFRESHES = 5  # a second
WIDEST = 28  # characters of what is done


class Work:
    """The line of a command; every method may be called where there is no terminal."""

    def __init__(self, bar: Any = None) -> None:
        self._bar, self._what = bar, ""
        self._task: Any = None

    def say(self, what: str) -> None:
        """Show what is done, for an unknown time."""
        self._begin(what, None)

    def show(self, done: int, total: int, what: str = "rows") -> None:
        """Show how much is done of what."""
        if self._bar is None:
            return
        if what != self._what:
            self._begin(what, total)
        self._bar.update(self._task, completed=done, total=total)

    def _begin(self, what: str, total: int | None) -> None:
        self._what = what
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what[:WIDEST], total=total, left="left" if total else "")


@contextmanager
def working(out: Console, what: str) -> Iterator[Work]:
    """A line at the foot of a terminal that says `what`, for as long as the block takes."""
    if out.quiet or not out.file.isatty() or out.is_dumb_terminal:
        yield Work()
        return
    from rich import progress

    columns = (
        progress.SpinnerColumn(), progress.TextColumn("{task.description}"),
        progress.BarColumn(24), progress.TaskProgressColumn(), progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[left]}"), progress.TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with progress.Progress(
        *columns, console=out, transient=True, refresh_per_second=REFRESHES
    ) as bar:
        out.show_cursor(True)  # a second signal ends the process at once, and must not hide it
        work = Work(bar)
        work.say(what)
        yield work
