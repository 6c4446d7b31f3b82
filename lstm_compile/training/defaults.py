"""What a run is set to where nobody said: by the task, and by the bundled data set. Loads no torch.

Layers, the upper over the lower: what was asked for (flags, a config file), the data set's own
settings, the task's, the defaults of the dataclasses.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

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
    """Everything that a run is set to."""

    task: Task | None  # None: the data decide
    model: dict[str, Any]  # fields of ModelConfig, where anything was said
    training: TrainingConfig
    table: TableOptions


def resolve(
    data: str,
    task: Task | None = None,
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
    """Every setting that the task has, by section: what was said, else the default.

    Without a task they are those of all tasks that the data may decide on.

    Raises:
        InputError: settings that no such task takes.
    """
    tasks = (settings.task,) if settings.task else WHOLE
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
            if {*tasks} & {*field.metadata.get("only", ())}
        }
        for title, cls in SECTIONS.items()
    }


def _refusal(settings: Settings, task: Task) -> InputError | None:
    """What a task has against settings, as far as that shows without data."""
    tokens = int(task == LM)
    try:
        ModelConfig(
            task=task, input_size=1, output_size=1, vocabulary_size=tokens, **settings.model
        )
        check_tasks(settings.training, task)
        check_tasks(settings.table, task)
    except InputError as error:
        return error
    return None
