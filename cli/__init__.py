"""The command line: one file a command, without logic. Loads torch only when there is work."""

import os
import signal
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Run `lstm-compile`. A signal ends it at once, and while a command works in order."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_at_once)

    from lstm_compile.cli.app import app

    app(prog_name="lstm-compile")


def end_at_once(number: int, _: FrameType | None = None) -> NoReturn:
    """End the process with 130 for Ctrl-C and 143 for SIGTERM, without a traceback."""
    os._exit(128 + number)
