"""Errors become one line and an exit code here: 2 for bad input, 1 for failed work."""

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from lstm_compile.cli import end_at_once
from lstm_compile.cli.help import HelpfulCommand
from lstm_compile.errors import InputError, RunError, headline

SIGNAL = "lstm_compile.signal"  # in a context's `meta`: the signal that stopped the command


class BadInput(click.ClickException):
    """The input is wrong."""

    exit_code = 2


class Failure(click.ClickException):
    """The work failed."""

    exit_code = 1


class Command(HelpfulCommand):
    """A command that shows no traceback unless `--debug` asks for it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command's function and translate its errors."""
        debug = ctx.params.pop("debug")
        try:
            with signals_stop(ctx):
                return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends quietly if the reader of a pipe has gone
        except KeyboardInterrupt:
            self._stop(ctx)
        except Exception as error:
            if debug:
                traceback.print_exc()
            kind = BadInput if isinstance(error, InputError) else Failure
            is_known = isinstance(error, InputError | RunError)
            if SIGNAL in ctx.meta and not is_known:  # what the signal met has made another error
                self._stop(ctx)
            bug = f"{headline(error)} (a bug; --debug shows where)"
            raise kind(str(error) if is_known else bug) from error

    def _stop(self, ctx: click.Context) -> NoReturn:
        click.echo("stopped", err=True)
        ctx.exit(code_of_signal(ctx))


@contextmanager
def signals_stop(ctx: click.Context) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the work in order; a second one, or an import, ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if SIGNAL in ctx.meta:
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun repeats the signal of the terminal
                return
            end_at_once(number)
        if _imports(frame):  # modules in C do not stand an exception, and nothing is half written
            os.write(2, b"stopped\n")
            end_at_once(number)
        ctx.meta[SIGNAL] = number
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _imports(frame: FrameType | None) -> bool:
    """Whether the work that a signal met in `frame` is the import of a module."""
    while frame is not None and frame.f_code is not Command.invoke.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def code_of_signal(ctx: click.Context) -> int:
    """The exit code of a command that a signal stopped: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + int(ctx.meta.get(SIGNAL, signal.SIGINT))
