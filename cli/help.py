"""What `--help` shows: groups of flags, the defaults of each task, examples. Loads no torch."""

from collections.abc import Sequence
from dataclasses import Field
from functools import cache
from itertools import pairwise
from typing import Any

import click
from click.shell_completion import CompletionItem

from lstm_compile.data.bundled import BUNDLED
from lstm_compile.errors import InputError
from lstm_compile.tasks import TASKS, stepwise
from lstm_compile.training.defaults import SECTIONS, complete, resolve

WORDS = "lstm_compile.words"  # in a context's `meta`: the words of the command line
FAULTS, SPEED = "Faults in the data", "Speed"
AS_IN_TRAINING = "as in training, else "
GROUPS = ("Model", "Training", "Forecasting", "Text", "Tables", FAULTS, SPEED)
OF_SECTION = {"model": "Model", "training": "Training", "table": "Tables"}
OF_TRAIT = {"is_series": "Forecasting", "is_text": "Text", "reads_tokens": "Text"}
OF_NAME = {
    **dict.fromkeys(("missing", "gaps", "duplicates", "jitter", "unknown"), FAULTS),
    **dict.fromkeys(("device", "precision", "threads", "backend", "chunk", "stream"), SPEED),
    "text": "Text",
}


class Setting(click.Option):
    """A flag that is a field of a run's settings: it belongs to a group, and to some tasks."""

    def __init__(self, *args: Any, field: Field[Any], group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.field, self.group = field, group

    def get_help_extra(self, ctx: click.Context) -> Any:
        """The default: of the task that the command line names, or of all tasks."""
        extra = super().get_help_extra(ctx)
        if "default" in extra and self.group in GROUPS:
            asked = asked_settings(ctx)
            known = {"": asked} if asked else defaults_of_tasks()
            name = self.field.name
            values = {task: each[name] for task, each in known.items() if name in each}
            if any(value not in (None, ()) for value in values.values()):
                extra["default"] = _told({task: self._words(v) for task, v in values.items()})
            else:
                extra["default"] = _unset(ctx, extra["default"])
        return extra

    def is_shown(self, ctx: click.Context) -> bool:
        """Whether the task that the command line names has this setting."""
        asked = asked_settings(ctx)
        return not asked or self.group not in GROUPS or self.field.name in asked

    def _words(self, value: Any) -> str:
        if isinstance(value, bool):
            return (self.opts if value else self.secondary_opts)[-1].lstrip("-")
        if isinstance(value, tuple | list):
            return ",".join(map(str, value))
        return "none" if value == "" else str(value)


class HelpfulCommand(click.Command):
    """A command whose help has groups of flags and examples.

    `examples` are whole commands of a shell, without the program's name.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words of the command line for `--help`, which stops the parsing."""
        ctx.meta[WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def get_short_help_str(self, limit: int = 0) -> str:  # noqa: ARG002 (click gives it)
        """The first sentence of the help, whole."""
        first = " ".join((self.help or "").split("\n\n")[0].split())
        return first.split(". ")[0].rstrip(".") + "."

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help, and the examples below it."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"  lstm-compile {example}\n")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the flags, those of a run's settings in groups."""
        found: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Options", *GROUPS)}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            is_flag = not isinstance(param, click.Argument)
            if record and is_flag and (not isinstance(param, Setting) or param.is_shown(ctx)):
                found[getattr(param, "group", "Options")].append(record)
        for title, records in found.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def group_of(section: type, field: Field[Any]) -> str:
    """The group of a setting in `--help`; `Options` for what is no setting of a run."""
    title = next((title for title, cls in SECTIONS.items() if cls is section), None)
    if title is None:
        return "Options"
    by_trait = OF_TRAIT.get(field.metadata["only"], OF_SECTION[title])
    return OF_NAME.get(field.name, by_trait)


def asked_settings(ctx: click.Context) -> dict[str, Any]:
    """All settings and their defaults, of the task or bundled data that the words name; or none."""
    words = ctx.meta.get(WORDS, ())
    given = [word.partition("=")[2] for word in words if word.startswith("--task=")]
    given += [after for word, after in pairwise(words) if word == "--task"]
    task = next((name for name in given if name in TASKS), None)
    data = next((word for word in words if word in BUNDLED), "")
    try:
        task = stepwise(task) if task and "--per-step" in words else task
        return _flat(complete(resolve(data, task))) if task or data else {}
    except InputError:
        return {}


@cache
def defaults_of_tasks() -> dict[str, dict[str, Any]]:
    """By task, its settings and their defaults."""
    return {task: _flat(complete(resolve("", task))) for task in TASKS}


def data_names(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of bundled data sets that a shell completes, and its files."""
    names = [CompletionItem(name) for name in BUNDLED if name.startswith(incomplete)]
    return [*names, CompletionItem(incomplete, type="file")]


def _flat(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: value for values in sections.values() for name, value in values.items()}


def _unset(ctx: click.Context, told: str) -> str:
    """What stands for a flag that is not given, where a model is made and where one is used."""
    makes = {"epochs", "task"} & {param.name for param in ctx.command.params}
    if makes:
        return told.replace(AS_IN_TRAINING, "")
    return told if AS_IN_TRAINING in told else "(as in training)"


def _told(values: dict[str, str]) -> str:
    """The default that most tasks have, and those of the others: `2; forecast, lm: 1`."""
    words = list(values.values())
    usual = max(words, key=words.count)
    others = [word for word in dict.fromkeys(words) if word != usual]
    tasks = {word: ", ".join(t for t, each in values.items() if each == word) for word in others}
    return "; ".join([usual, *(f"{tasks[word]}: {word}" for word in others)])
