"""`lstm-compile config`."""

from typing import Any

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.options import (
    config_option,
    data_argument,
    given_of,
    settings_flags,
    task_option,
)
from lstm_compile.training.config_file import to_explained_toml
from lstm_compile.training.defaults import complete, resolve

EXAMPLES = (
    "config airline",
    "config data.csv --task forecast --horizon 7 > settings.toml",
)


@click.command(cls=Command, examples=EXAMPLES)
@data_argument
@task_option
@click.option("--test", help="File of held-out sequences, as for `train`.")
@config_option
@settings_flags
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data: str,
    task: str | None,
    test: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Print all settings that `train` would use, as TOML.

    Each one is explained. The defaults of the task and of a bundled data set are included. DATA are
    not read. Save the output to a file, and `train --config FILE` reads it.
    """
    settings = resolve(data, task, **given_of(ctx, options))
    sources, sections = {"task": settings.task, "data": data, "test": test}, complete(settings)
    if as_json:
        output.print_json({**sources, **sections})
    else:
        click.echo(to_explained_toml(sources, sections), nl=False)
