"""The settings of a run: given ones, and defaults of tasks and bundled data. Loads no torch.

The first of these that has a setting decides: flags and a config file, the bundled data set, the
task, the defaults of the dataclasses.
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, asdict, fields
from functools import partial
from typing import Any, NamedTuple

from lstm_compile.config import ModelConfig, check_tasks, is_known
from lstm_compile.data.bundled import settings_of
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import is_text
from lstm_compile.errors import InputError
from lstm_compile.tasks import TASKS, find_task, fitting_task, tasks_with
from lstm_compile.training.settings import TrainingConfig

Values = Mapping[str, Any]
SECTIONS: dict[str, type] = {  # of a config file
    "model": ModelConfig,
    "training": TrainingConfig,
    "table": TableOptions,
}


def tunable_fields(cls: type) -> list[Field[Any]]:
    """The fields that are settings: those that have a text for `--help`."""
    return [field for field in fields(cls) if "help" in field.metadata]


class Settings(NamedTuple):
    """All settings of a run."""

    task: str | None  # None: the data decide
    model: dict[str, Any]  # fields of ModelConfig that differ from its defaults or were given
    training: TrainingConfig
    table: TableOptions


def resolve(
    data: str,
    task: str | None = None,
    model: Values | None = None,
    training: Values | None = None,
    table: Values | None = None,
) -> Settings:
    """Combine given settings with those of the data set, by name or path, and of the task.

    Without a task, that of a bundled data set is taken, or the data decide.

    Raises:
        InputError: a value of the wrong type or out of range.
    """
    is_open = task is None or find_task(task).is_series
    own = tomllib.loads(settings_of(data)) if is_open else {}
    task = task or own.get("task") or (fitting_task(None, is_text=True) if is_text(data) else None)
    layers = [find_task(task).settings if task else {}, own]
    asked = {"model": model or {}, "training": training or {}, "table": table or {}}
    merged = {
        section: {k: v for layer in (*layers, asked) for k, v in layer.get(section, {}).items()}
        for section in asked
    }
    made = TrainingConfig(**merged["training"]), TableOptions(**merged["table"])
    return Settings(task, merged["model"], *made)


def complete(settings: Settings) -> dict[str, dict[str, Any]]:
    """Every setting that the task has, by section: its value or its default.

    Without a task, the settings of all tasks that the data may decide on.

    Raises:
        InputError: no such task takes these settings.
    """
    tasks = (settings.task,) if settings.task else tasks_with(is_whole=True)
    require_some_task(partial(_check, settings), tasks)
    training, table = asdict(settings.training), asdict(settings.table)
    given = {"model": settings.model, "training": training, "table": table}
    return {
        title: {
            field.name: given[title].get(field.name, field.default)
            for field in tunable_fields(cls)
            if any(is_known(field, find_task(t)) for t in tasks)
        }
        for title, cls in SECTIONS.items()
    }


def require_some_task(check: Callable[[str], object], tasks: Iterable[str] = tuple(TASKS)) -> None:
    """Require that `check` accepts at least one of the tasks.

    Raises:
        InputError: that of the first task, if `check` raises one for every task.
    """
    tasks, errors = tuple(tasks), []
    for task in tasks:
        try:
            check(task)
        except InputError as error:
            errors.append(error)
    if len(errors) == len(tasks):
        raise errors[0]


def _check_model(**values: Any) -> None:
    """Check that some task takes the values; the data decide task and sizes later."""
    require_some_task(lambda task: ModelConfig(task=task, input_size=1, output_size=1, **values))


CHECKS: dict[str, Callable[..., object]] = {**SECTIONS, "model": _check_model}  # of given values


def _check(settings: Settings, task: str) -> None:
    """Refuse settings that the task does not take, as far as that shows without data."""
    tokens = int(find_task(task).is_text)
    ModelConfig(task=task, input_size=1, output_size=1, vocabulary_size=tokens, **settings.model)
    check_tasks(settings.training, task)
    check_tasks(settings.table, task)
