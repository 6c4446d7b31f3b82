"""The tasks that a model can have: one module each, and one line each in `TASKS`.

To add a task on sequences, write a module with a `Task` called `TASK` and name it in `TASKS`; no
other file changes. A new kind of data also needs its reader and its parts. Loads no torch.
`lstm_compile.config` and the model read this table and the records, though they stand below: a
record says by plain values what its task needs.
"""

from importlib import import_module

from lstm_compile.errors import InputError
from lstm_compile.tasks.task import Task as Task

TASKS = {  # the module of each, in the order of messages
    "classify": "lstm_compile.tasks.classify",
    "regress": "lstm_compile.tasks.regress",
    "forecast": "lstm_compile.tasks.forecast",
    "tag": "lstm_compile.tasks.tag",
    "regress-steps": "lstm_compile.tasks.regress_steps",
    "lm": "lstm_compile.tasks.lm",
}


def find_task(name: str) -> Task:
    """The record of a task.

    Raises:
        InputError: there is no such task.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}; got {name!r}")
    task: Task = import_module(TASKS[name]).TASK
    return task


def all_losses() -> tuple[str, ...]:
    """`auto`, and the losses of all tasks."""
    tasks = [find_task(name) for name in TASKS]
    names = [loss for task in tasks for loss in (*task.losses, *task.quantile_losses)]
    return ("auto", *dict.fromkeys(names))


def tasks_with(**traits: object) -> tuple[str, ...]:
    """The names of all tasks whose fields and properties have these values, in order."""
    return tuple(
        name
        for name in TASKS
        if all(getattr(find_task(name), trait) == value for trait, value in traits.items())
    )


def stepwise(name: str) -> str:
    """The task that answers each step and is else like the task `name`.

    Raises:
        InputError: there is none.
    """
    like = find_task(name)
    found = tasks_with(data=like.data, has_classes=like.has_classes, per_step=True)
    if not found:
        raise InputError(f"it is for tasks classify and regress, the task is {name}")
    return found[0]


def fitting_task(wanted: str | None, **traits: object) -> str:
    """The task that data are learned with: the wanted one if it has these traits, else the first.

    `traits` are what the data are good for, as for `tasks_with`.
    """
    fitting = tasks_with(**traits)
    return wanted if wanted in fitting else fitting[0]
