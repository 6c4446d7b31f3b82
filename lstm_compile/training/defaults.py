"""The settings of a run: given ones, and defaults of tasks and bundled data. Loads no torch.

The first of these that has a setting decides: flags and a config file, the bundled data set, the
task, the defaults of the dataclasses.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any, NamedTuple, get_args

from lstm_compile.config import LM, WHOLE, ModelConfig, Task, check_tasks
from lstm_compile.data.bundled import settings_of
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import is_text
from lstm_compile.errors import InputError
from lstm_compile.training.settings import TrainingConfig

Values = Mapping[str, Any]
SECTIONS: dict[str, type] = {  # of a config file
    "model": ModelConfig,
    "training": TrainingConfig,
    "table": TableOptions,
}
TASK_SETTINGS: dict[str, dict[str, Values]] = {
    "forecast": {
        "model": {
            "num_layers": 1,
            "bidirectional": False,
            "dropout": 0.0,
            "head_dropout": 0.1,
            "pooling": "last",
            "scaling": "mean",
        },
        "training": {"epochs": 15, "batch_size": 64, "learning_rate": 2e-3, "epoch_size": 8192},
    },
    "tag": {"training": {"label_smoothing": 0.0}},
    "lm": {
        "model": {
            "hidden_size": 256,
            "num_layers": 1,
            "bidirectional": False,
            "dropout": 0.0,
            "head_dropout": 0.3,
        },
        "training": {
            "epochs": 20,
            "batch_size": 16,
            "unroll": 64,
            "learning_rate": 4e-3,
            "label_smoothing": 0.0,
            "weight_decay": 0.01,
        },
    },
}


class Settings(NamedTuple):
    """All settings of a run."""

    task: Task | None  # None: the data decide
    model: dict[str, Any]  # fields of ModelConfig that differ from its defaults or were given
    training: TrainingConfig
    table: TableOptions


def resolve(
    data: str,
    task: Task | None = None,
    model: Values | None = None,
    training: Values | None = None,
    table: Values | None = None,
) -> Settings:
    """Combine given settings with those of the data set and of the task.

    Args:
        data: name of a bundled data set, or a path.
        task: as given; None takes that of the bundled data set, or lets the data decide.
        model: the given fields of ModelConfig.
        training: the given fields of TrainingConfig.
        table: the given fields of TableOptions.

    Raises:
        InputError: a value of the wrong type or out of range.
    """
    own = tomllib.loads(settings_of(data)) if task in (None, "forecast") else {}
    task = task or own.get("task") or ("lm" if is_text(data) else None)
    layers = [TASK_SETTINGS.get(task or "", {}), own]
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
    """Every setting that the task has, by section: its value or its default.

    Without a task, the settings of all tasks that the data may decide on.

    Raises:
        InputError: no such task takes these settings.
    """
    tasks = (settings.task,) if settings.task else WHOLE
    require_some_task(partial(_check, settings), tasks)
    given = {
        "model": settings.model,
        "training": asdict(settings.training),
        "table": asdict(settings.table),
    }
    return {
        title: {
            field.name: given[title].get(field.name, field.default)
            for field in fields(cls)
            if {*tasks} & {*field.metadata.get("only", ())}
        }
        for title, cls in SECTIONS.items()
    }


def require_some_task(
    check: Callable[[Task], object], tasks: Sequence[Task] = get_args(Task)
) -> None:
    """Require that `check` accepts at least one of the tasks.

    Raises:
        InputError: that of the first task, if `check` raises one for every task.
    """
    errors = []
    for task in tasks:
        try:
            check(task)
        except InputError as error:
            errors.append(error)
    if len(errors) == len(tasks):
        raise errors[0]


def _check(settings: Settings, task: Task) -> None:
    """Refuse settings that the task does not take, as far as that shows without data."""
    tokens = int(task == LM)
    ModelConfig(task=task, input_size=1, output_size=1, vocabulary_size=tokens, **settings.model)
    check_tasks(settings.training, task)
    check_tasks(settings.table, task)
