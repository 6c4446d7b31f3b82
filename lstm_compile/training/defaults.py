"""What a run is set to where nobody said: by the task, and by the bundled data set. Loads no torch.

Layers, the upper over the lower: what was asked for (flags, a config file), the data set's own
settings, the task's, the defaults of the dataclasses.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from lstm_compile.config import ModelConfig, check_tasks, is_known
from lstm_compile.data.bundled_files import settings_of
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import is_text
from lstm_compile.errors import InputError
from lstm_compile.tasks import find_task, fitting_task, tasks_with
from lstm_compile.training.settings import TrainingConfig

Values = Mapping[str, Any]
SECTIONS: dict[str, type] = {  # of a config file
    "model": ModelConfig,
    "training": TrainingConfig,
    "table": TableOptions,
}


class Settings(NamedTuple):
    """Everything that a run is set to."""

    task: str | None  # None: the data decide
    model: dict[str, Any]  # fields of ModelConfig, where anything was said
    training: TrainingConfig
    table: TableOptions


def resolve(
    data: str,
    task: str | None = None,
    model: Values | None = None,
    training: Values | None = None,
    table: Values | None = None,
) -> Settings:
    """Put the layers together.

    Args:
        data: name of a bundled data set, or a path.
        task: asked for; None is the bundled data set's, or what the data decide.
        model: fields of ModelConfig that were asked for.
        training: fields of TrainingConfig that were asked for.
        table: fields of TableOptions that were asked for.

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
    return Settings(
        task,
        merged["model"],
        TrainingConfig(**merged["training"]),
        TableOptions(**merged["table"]),
    )


def complete(settings: Settings) -> dict[str, dict[str, Any]]:
    """Every setting that the task has, by section: what was said, else the default.

    Without a task they are those of all tasks that the data may decide on.

    Raises:
        InputError: settings that no such task takes.
    """
    tasks = (settings.task,) if settings.task else tasks_with(is_whole=True)
    errors = [error for task in tasks if (error := _refusal(settings, task))]
    if len(errors) == len(tasks):
        raise errors[0]
    said = {
        "model": settings.model,
        "training": asdict(settings.training),
        "table": asdict(settings.table),
    }
    return {
        title: {
            field.name: said[title].get(field.name, field.default)
            for field in fields(cls)
            if "help" in field.metadata and any(is_known(field, find_task(t)) for t in tasks)
        }
        for title, cls in SECTIONS.items()
    }


def _refusal(settings: Settings, task: str) -> InputError | None:
    """What a task has against settings, as far as that shows without data."""
    tokens = int(find_task(task).is_text)
    try:
        ModelConfig(
            task=task, input_size=1, output_size=1, vocabulary_size=tokens, **settings.model
        )
        check_tasks(settings.training, task)
        check_tasks(settings.table, task)
    except InputError as error:
        return error
    return None
