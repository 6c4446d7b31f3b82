"""Writes docs/cli.md from the commands themselves: `python docs/make_cli.py`."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from lstm_compile.cli.app import app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# The command line

This page is written by `python docs/make_cli.py` from the commands' own help.

`train --config FILE.toml` takes flags from a file, and `config` prints such a file. A command that
takes RUN uses the newest run if none is named. Each command ends with the next one to type. Ctrl-C
ends a training cleanly with the best weights so far.

`-o` is `--output`, and `-q` prints errors only. `--hidden_size` is `--hidden-size`.
`train --task TASK --help` shows the flags and defaults of one task.
`eval "$(_LSTM_COMPILE_COMPLETE=bash_source lstm-compile)"` completes commands, flags and the names
of bundled data in bash; zsh and fish have `zsh_source` and `fish_source`.

| exit code | what it means |
|---|---|
| 0 | success |
| 1 | the work failed: parity, training |
| 2 | bad input; one line says what, where, found, expected and how to mend |
| 130, 143 | stopped by a signal |

`--debug` shows tracebacks. `doctor` tries what everything else needs: versions, devices, compiler,
cache folder and its rights, every backend, and an export that ONNX Runtime answers. Each failure
comes with what to do about it. It exits with 1 if something fails that nothing works without.
"""


def page() -> str:
    """The page, a section for each command."""
    group = click.Context(app, info_name="lstm-compile", help_option_names=["-h", "--help"])
    sections = [_section(group, name) for name in app.list_commands(group)]
    return "\n".join([HEAD, *sections])


def _section(group: click.Context, name: str) -> str:
    command = app.get_command(group, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=group)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\b\n", "").replace("\f", "")
    rows = "\n".join(_rows(command, context))
    return f"## {name}\n\n{text}\n\n```\n{usage}\n```\n\n| flag | what |\n|---|---|\n{rows}\n"


def _rows(command: click.Command, context: click.Context) -> Iterator[str]:
    for param in command.get_params(context):
        if record := param.get_help_record(context):
            flags, what = (part.replace("|", "\\|") for part in record)
            yield f"| `{flags}` | {' '.join(what.split())} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
