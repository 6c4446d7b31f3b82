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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
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
    """Print every setting that `train` would take with these flags, each explained, as TOML.

    Those of the task and of a bundled data set are among them. DATA are not read. Kept in a file,
    `train --config FILE` takes what was printed.
    """
    settings = resolve(data, task, **given_of(ctx, options))
    sources, sections = {"task": settings.task, "data": data, "test": test}, complete(settings)
    if as_json:
        output.print_json({**sources, **sections})
    else:
        click.echo(to_explained_toml(sources, sections), nl=False)
