"""Columns of series as float32: a level is subtracted from those it would round too coarsely."""

from typing import NamedTuple

import numpy as np

from lstm_compile.data.schema import SeriesSchema
from lstm_compile.data.series.grid import GridRows
from lstm_compile.data.tables.precision import level_to_subtract, rounding_loss, spacing


class Levels(NamedTuple):
    """What is subtracted from the columns of a table."""

    subtracted: tuple[float, ...]  # see `SeriesSchema`
    notes: tuple[str, ...]


def subtract_levels(
    rows: GridRows, names: tuple[str, ...], trained: SeriesSchema | None
) -> tuple[GridRows, Levels]:
    """Rows of float64 columns as float32; the levels are those of training where it is known."""
    columns = dict(zip(names, rows.x.T, strict=True))
    if trained:
        levels = dict(zip(names, trained.subtracted or (0.0,) * len(names), strict=True))
    else:
        levels = {name: level_to_subtract(x, rows.is_next) for name, x in columns.items()}
    notes = [
        f"{name} is kept as {name} - {level:.15g}, else float32 rounds it to {spacing(level):g}"
        for name, level in levels.items()
        if level
    ]
    for name, x in columns.items():
        if step := rounding_loss(x - levels[name], rows.is_next):
            notes.append(f"most changes of {name} are lost, as float32 rounds it to {step:g}")
    subtracted = tuple(levels.values()) if any(levels.values()) else ()
    x = rows.x - subtracted if subtracted else rows.x
    return rows._replace(x=x.astype(np.float32)), Levels(subtracted, tuple(notes))
