"""The runs of a folder: what each learned from, its figure and its settings. Loads no torch."""

import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lstm_compile.errors import InputError, reason
from lstm_compile.formatting import near_file
from lstm_compile.model.header import inspect_safetensors
from lstm_compile.model.run_folder import CONFIG_FILE, MODEL_FILE, RUNS
from lstm_compile.tasks import find_task
from lstm_compile.training.defaults import SECTIONS, complete, resolve

Order = Literal["date", "data", "metric", "size"]
OF_RUN = ("threads", "backend")  # settings that a run fills in by itself


class RunSummary(NamedTuple):
    """One run; what is not known is empty."""

    run: str  # its folder
    date: str  # ISO 8601, local time, of the newest model or else of the settings
    data: str = ""
    task: str = ""
    metric: str = ""  # the headline of the task
    value: float | None = None
    part: str = ""  # that the value is of: `test` or `validation`
    epochs: int = 0  # up to the best one
    stopped: str = ""  # why it ended; empty while it goes on, or after it was killed
    bytes: int = 0  # of the model
    settings: dict[str, Any] | None = None  # that differ from the defaults of task and data
    problem: str = ""  # why the model cannot be read


def list_runs(folder: Path = RUNS, order: Order = "date") -> list[RunSummary]:
    """The runs in a folder: the newest first, or in another order.

    `metric` has the best run of each data set first, `size` the smallest model.

    Raises:
        InputError: there is no such folder, or it holds no run.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; train a run with `lstm-compile train`, or name another"
            f"{near_file(folder)}"
        )
    places = [folder, *sorted(folder.iterdir())]
    found = [
        _summary(p) for p in places if any((p / n).is_file() for n in (CONFIG_FILE, MODEL_FILE))
    ]
    if not found:
        raise InputError(f"{folder}: holds no run; train one with `lstm-compile train`")
    found.sort(key=lambda run: run.date, reverse=True)
    keys = {"data": _by_data, "metric": _by_metric, "size": lambda run: run.bytes}
    return sorted(found, key=keys[order]) if order in keys else found


def _by_data(run: RunSummary) -> tuple[str, ...]:
    return run.data, run.task


def _by_metric(run: RunSummary) -> tuple[Any, ...]:
    if run.value is None:
        return True, run.data, run.task, "", 0.0
    sign = -1 if run.metric in find_task(run.task).rising else 1
    return False, run.data, run.task, run.metric, sign * run.value


def _summary(folder: Path) -> RunSummary:
    config, model = folder / CONFIG_FILE, folder / MODEL_FILE
    changed = (model if model.is_file() else config).stat().st_mtime
    date = datetime.fromtimestamp(changed).astimezone().isoformat(timespec="seconds")
    found = RunSummary(str(folder), date)
    try:
        settings = tomllib.loads(config.read_text("utf-8")) if config.is_file() else {}
        found = found._replace(data=str(settings.get("data", "")), task=settings.get("task", ""))
        if model.is_file():
            found = _with_figures(found, inspect_safetensors(model))
        return found._replace(settings=_changed(found, settings))
    except (InputError, OSError, ValueError) as error:
        return found._replace(problem=reason(error))


def _with_figures(found: RunSummary, model: dict[str, Any]) -> RunSummary:
    """The run with what its model file says."""
    training, task = model["training"], find_task(model["task"])
    part = next((name for name in ("test", "validation") if training.get(name)), "")
    figures = training.get(part, {})
    metric = task.headline if task.headline in figures else next(iter(figures), "")
    return found._replace(
        data=str(training.get("data", found.data)), task=task.name, metric=metric,
        value=figures.get(metric), part=part, epochs=int(training.get("epochs", 0)),
        stopped=str(training.get("stopped", "")), bytes=model["bytes"],
    )  # fmt: skip


def _changed(found: RunSummary, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from the defaults of the run's task and data."""
    if not found.task:
        return {}
    usual = complete(resolve(found.data, found.task))
    changed: dict[str, Any] = {}
    for title in SECTIONS:
        for name, value in settings.get(title, {}).items():
            default = usual[title].get(name, value)
            default = list(default) if isinstance(default, tuple) else default
            if value != default and name not in OF_RUN and title != "table":
                changed[name] = value
    return changed
