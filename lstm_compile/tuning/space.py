"""Which settings a study tries: ranges and choices for fields of the model and its training.

Loads neither torch nor optuna.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from lstm_compile.config import ModelConfig
from lstm_compile.errors import InputError
from lstm_compile.tasks import find_task
from lstm_compile.tasks.task import OneOf as OneOf
from lstm_compile.tasks.task import Range as Range
from lstm_compile.tasks.task import Space as Space
from lstm_compile.training.defaults import CHECKS, tunable_fields
from lstm_compile.training.settings import TrainingConfig

SECTIONS: dict[str, type] = {"model": ModelConfig, "training": TrainingConfig}


def section_of(name: str) -> str:
    """The section that has a setting: `model` or `training`.

    Raises:
        InputError: no section has it.
    """
    known = {f.name: title for title, cls in SECTIONS.items() for f in tunable_fields(cls)}
    if name not in known:
        raise InputError(f"space: unknown setting {name!r}; known are {', '.join(sorted(known))}")
    return known[name]


def default_space(task: str, fixed: Mapping[str, Any]) -> Space:
    """The space of a task without the fixed settings."""
    return {name: part for name, part in find_task(task).space.items() if name not in fixed}


def read_space(path: Path) -> Space:
    """Read a space from a TOML file: each key is a setting, with a list of values or a range.

    `hidden_size = { low = 16, high = 128, log = true }`, `pooling = ["last", "mean"]`.

    Raises:
        InputError: not TOML, an unknown setting, or a value that a setting cannot have.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a readable TOML file ({error})") from error
    try:
        space = {name: _part(name, value) for name, value in document.items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not space:
        raise InputError(f"{path}: holds no setting; add one, such as pooling = ['last', 'max']")
    return space


def describe(part: Range | OneOf) -> str:
    """`16 to 128 (log)` or `last, mean`."""
    if isinstance(part, OneOf):
        return ", ".join(map(str, part.values))
    return f"{part.low:g} to {part.high:g}{' (log)' if part.log else ''}"


def _part(name: str, value: Any) -> Range | OneOf:
    hint = get_type_hints(SECTIONS[section_of(name)])[name]
    if isinstance(value, list) and value:
        values = tuple(tuple(each) if isinstance(each, list) else each for each in value)
        _check(name, *values)
        return OneOf(values)
    if isinstance(value, dict) and {"low", "high"} <= set(value) <= {"low", "high", "log"}:
        low, high, log = value["low"], value["high"], value.get("log", False)
        if hint not in (int, float) or not isinstance(log, bool):
            raise InputError(f"space: {name} takes a list of values, found {value!r}")
        _check(name, low, high)
        if not low < high or (log and low <= 0):
            least = "above 0 and " if log else ""
            raise InputError(f"space: {name} needs low {least}below high, found {value!r}")
        return Range(low, high, log, hint is int)
    raise InputError(
        f"space: {name} must be a list of values or {{ low = ..., high = ..., log = true }}, found "
        f"{value!r}"
    )


def _check(name: str, *values: Any) -> None:
    """Refuse values that the field refuses in every task."""
    for value in values:
        try:
            CHECKS[section_of(name)](**{name: value})
        except InputError as error:
            raise InputError(f"space: {error}") from error
