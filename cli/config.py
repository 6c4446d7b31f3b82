"""`lstm-compile config`."""

from typing import Any

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.options import config_option, given_of, settings_flags, task_option
from lstm_compile.training.config_file import to_explained_toml
from lstm_compile.training.defaults import complete, resolve


@click.command(cls=Command)
@click.argument("data", default="spoken-digits")
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
    """Print every setting that `train` would use with these flags, each explained, as TOML.

    The defaults of the task and of a bundled data set are included. DATA are not read. Save the
    output to a file, and `train --config FILE` reads it.
    """
    settings = resolve(data, task, **given_of(ctx, options))
    sources, sections = {"task": settings.task, "data": data, "test": test}, complete(settings)
    if as_json:
        output.print_json({**sources, **sections})
    else:
        click.echo(to_explained_toml(sources, sections), nl=False)
