"""Flags from the fields of settings, and a config file that gives their defaults."""

import csv
import tomllib
from collections.abc import Callable
from dataclasses import Field
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_type_hints

import click

from lstm_compile.cli.help import Setting, data_names, group_of
from lstm_compile.cli.output import CELL, QUIET
from lstm_compile.config import names_file
from lstm_compile.errors import InputError
from lstm_compile.model.run_folder import CONFIG_FILE
from lstm_compile.tasks import TASKS, stepwise
from lstm_compile.training.defaults import CHECKS, SECTIONS, tunable_fields

Function = TypeVar("Function", bound=Callable[..., Any])
TEXTS = ("data", "test", "task")
OF_TRAINING = (  # flags for tables that only `train` has
    "categories", "unknown", "known", "static", "calendar", "step",
)  # fmt: skip
PATH = click.Path(path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def names(value: Any) -> tuple[str, ...]:
    """Names separated by commas, or a config file's list; a name with a comma is in double quotes.

    Raises:
        BadParameter: an empty name.
    """
    if not isinstance(value, str):
        return tuple(value)
    found = [name.strip() for name in next(csv.reader([value], skipinitialspace=True), [])]
    if not all(found) or not found:
        raise click.BadParameter(f"expected names of columns separated by commas, got {value!r}")
    return tuple(found)


def numbers(value: Any) -> tuple[float, ...]:
    """Numbers separated by commas, or a config file's list.

    Raises:
        BadParameter: a part is not a number.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise click.BadParameter(f"expected numbers separated by commas, got {value!r}") from error


def flags_of(cls: type, *left_out: str) -> Callable[[Function], Function]:
    """A decorator: one flag for each field of `cls` that has a default, except for `left_out`."""

    def decorate(function: Function) -> Function:
        hints = get_type_hints(cls)
        for field in reversed(tunable_fields(cls)):
            if field.name not in left_out:
                function = _flag(field, hints[field.name], group_of(cls, field))(function)
        return function

    return decorate


def values_of(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """Those options of a command that are fields of `cls`."""
    return {f.name: options[f.name] for f in tunable_fields(cls) if f.name in options}


def given_of(ctx: click.Context, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings that a flag or a config file gave, by section of such a file.

    The cell's file that `--cell` names is read, and its name stands for it.

    Raises:
        InputError: a file that gives no cell, or a config file that names one.
    """
    if (
        is_given(ctx, "learning_rate")
        and not options["learning_rate"]
        and not ctx.params.get("resume")
    ):
        raise InputError("learning_rate must be above 0, got 0: nothing would be learned")
    if is_given(ctx, "cell") and names_file(options["cell"]):
        if ctx.get_parameter_source("cell") != click.core.ParameterSource.COMMANDLINE:
            raise InputError(
                f"cell {options['cell']!r}: a file is run only if the command line names it; give "
                "--cell FILE.py:NAME there"
            )
        options["cell"] = use_cell(options["cell"])
    return {
        title: {n: value for n, value in values_of(cls, options).items() if is_given(ctx, n)}
        for title, cls in SECTIONS.items()
    }


def is_given(ctx: click.Context, name: str) -> bool:
    """Whether an option has a value from the command line or a config file."""
    return ctx.get_parameter_source(name) != click.core.ParameterSource.DEFAULT


def is_on_line(ctx: click.Context, name: str) -> bool:
    """Whether the command line itself gives an option."""
    return ctx.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE


def read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Use the values of a TOML file as defaults of this command's flags.

    Raises:
        BadParameter: not TOML, a section or key that is no flag, or a value that no flag takes.
    """
    if path is None:
        return
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{path}: not a readable TOML file ({error})") from error
    defaults = {name: document.pop(name) for name in TEXTS if name in document}
    for name, value in defaults.items():
        if not isinstance(value, str):
            raise click.BadParameter(f"{path}: {name} must be a name or a path, got {value!r}")
    for title, values in document.items():
        defaults.update(_section(path, title, values))
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def settings_flags(function: Function) -> Function:
    """A decorator that gives a command `--json`, and every setting of a run as a flag."""
    for cls in reversed(SECTIONS.values()):
        function = flags_of(cls)(function)
    return json_option(function)


def read_run(ctx: click.Context, param: click.Parameter, run: Path | None) -> Path | None:
    """Use the settings of a run as defaults of this command's flags.

    Raises:
        BadParameter: there is no run, or its `config.toml` is damaged.
    """
    if run is not None:
        if not (run / CONFIG_FILE).is_file():
            raise click.BadParameter(f"{run}: no {CONFIG_FILE} there: no run that can be resumed")
        read_config(ctx, param, run / CONFIG_FILE)
    return run


def refuse_others(ctx: click.Context, *allowed: str) -> None:
    """Refuse every flag and argument of the command line except for `allowed`.

    Raises:
        UsageError: names the flags that were given.
    """
    given = click.core.ParameterSource.COMMANDLINE
    others = [
        param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name
        for param in ctx.command.params
        if param.name not in allowed and ctx.get_parameter_source(param.name or "") == given
    ]
    if others:
        raise click.UsageError(
            f"--resume continues with the settings of the run; leave {', '.join(others)} out, or "
            "start another run from its weights with --init"
        )


def check_cell_of_run(ctx: click.Context, run: Path, cell: str) -> None:
    """Refuse a `--cell` that is not the one of a run that is resumed.

    Raises:
        InputError: names both.
    """
    of_run = (ctx.default_map or {}).get("cell", "lstm")
    if cell != of_run:
        raise InputError(f"{run}: a run with cell {of_run!r}, --cell gives {cell!r}; give its own")


def task_option(function: Function) -> Function:
    """A decorator that gives a command `--task`, and `--per-step`, which changes its value."""
    per_step = click.option(
        "--per-step", is_flag=True, expose_value=False, callback=_answer_steps,
        help="Learn an answer for each step: with --task regress or classify.",
    )  # fmt: skip
    task = click.option(
        "--task", type=click.Choice(tuple(TASKS)), is_eager=True,
        help="What to learn.  [default: what fits the data]",
    )  # fmt: skip
    return task(per_step(function))


def use_cell(spec: str) -> str:
    """Make the cell that `--cell` names known; its name. The file that it may name is run.

    Raises:
        InputError: no such cell, or a file that gives none.
    """
    from lstm_compile.recurrence.cell_file import read_cell

    if names_file(spec):
        click.get_current_context().meta[CELL] = spec
    return read_cell(spec).name


def cell_option(function: Function) -> Function:
    """A decorator that gives a command `--cell`, which makes the cell of a model known."""

    @wraps(function)
    def with_cell(*arguments: Any, cell: str | None, **options: Any) -> Any:
        if cell is not None:
            use_cell(cell)
        return function(*arguments, **options)

    option = click.option(
        "--cell", metavar="FILE.py:NAME",
        help="The cell of your own that the model was trained with.",
    )  # fmt: skip
    return cast(Function, option(with_cell))


def data_argument(function: Function) -> Function:
    """A decorator that gives a command `DATA`, whose bundled names a shell completes."""
    return click.argument("data", default="spoken-digits", shell_complete=data_names)(function)


def output_option(name: str, text: str, **more: Any) -> Callable[[Function], Function]:
    """A decorator that gives a command `--output`, as `name`, and `-o` for it."""
    return click.option("-o", "--output", name, type=PATH, help=text, **more)


def _be_quiet(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    ctx.meta[QUIET] = is_given


quiet_option = click.option(
    "-q", "--quiet", is_flag=True, expose_value=False, is_eager=True, callback=_be_quiet,
    help="Print errors only, and the object of --json.",
)  # fmt: skip
config_option = click.option(
    "--config", type=FILE, is_eager=True, expose_value=False, callback=read_config,
    help="TOML file with defaults for these options.",
)  # fmt: skip
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."
)


def _answer_steps(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if is_given and not ctx.params["task"]:
        raise click.UsageError("--per-step needs a task: add --task regress or --task classify")
    try:
        ctx.params["task"] = stepwise(ctx.params["task"]) if is_given else ctx.params["task"]
    except InputError as error:
        raise click.BadParameter(str(error)) from error


def _section(path: Path, title: str, values: Any) -> dict[str, Any]:
    if title not in SECTIONS or not isinstance(values, dict):
        raise click.BadParameter(
            f"{path}: unknown key {title!r}; known are {', '.join(TEXTS)}, "
            + ", ".join(f"[{name}]" for name in SECTIONS)
        )
    known = [field.name for field in tunable_fields(SECTIONS[title])]
    if unknown := sorted(set(values) - set(known)):
        raise click.BadParameter(f"{path}: unknown keys {unknown} in [{title}]; known are {known}")
    checked = dict(values)
    if not isinstance(checked.pop("cell", ""), str):  # which cells there are shows later
        raise click.BadParameter(f"{path}: [{title}] cell must be a name, got {values['cell']!r}")
    try:
        CHECKS[title](**checked)  # click alone would read 3.7 as 3 and true as 1
    except InputError as error:
        raise click.BadParameter(f"{path}: [{title}] {error}") from error
    return dict(values)


def _flag(field: Field[Any], hint: Any, group: str) -> Callable[[Function], Function]:
    name = "--" + field.name.replace("_", "-")
    choices = field.metadata.get("choices")
    kind = click.Choice(choices()) if choices else _kind(hint)
    shown = field.default not in (None, ())
    if hint is bool:
        name, kind = f"{name}/--no-{field.name.replace('_', '-')}", None
    return click.option(
        name, field.name, cls=Setting, field=field, group=group, type=kind, default=field.default,
        show_default=shown or field.metadata["unset"],
        metavar={names: "NAMES", numbers: "NUMBERS"}.get(kind) if callable(kind) else None,
        help=field.metadata["help"],
    )  # fmt: skip


def _kind(hint: Any) -> Any:
    choices = get_args(hint)
    if hint == tuple[str, ...]:
        return names
    if hint == tuple[float, ...]:
        return numbers
    if NoneType in choices:
        return _kind(choices[0])
    return click.Choice(choices) if choices else hint
