"""Errors become one line and an exit code here: 2 for bad input, 1 for failed work."""

import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from lstm_compile.errors import InputError, RunError, headline

SIGNAL = "lstm_compile.signal"  # in a context's `meta`: the signal that stopped the command


class BadInput(click.ClickException):
    """The input is wrong."""

    exit_code = 2


class Failure(click.ClickException):
    """The work failed."""

    exit_code = 1


class Command(click.Command):
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
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click ends quietly if the reader of a pipe has gone
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            ctx.exit(code_of_signal(ctx))
        except Exception as error:
            if debug:
                traceback.print_exc()
            kind = BadInput if isinstance(error, InputError) else Failure
            is_known = isinstance(error, InputError | RunError)
            bug = f"{headline(error)} (a bug; --debug shows where)"
            raise kind(str(error) if is_known else bug) from error


@contextmanager
def signals_stop(ctx: click.Context) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the work in order; a second one ends the process at once."""

    def stop(number: int, _: FrameType | None) -> None:
        if SIGNAL in ctx.meta:
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun repeats the signal of the terminal
                return
            os._exit(128 + number)
        ctx.meta[SIGNAL] = number
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def code_of_signal(ctx: click.Context) -> int:
    """The exit code of a command that a signal stopped: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + int(ctx.meta.get(SIGNAL, signal.SIGINT))
