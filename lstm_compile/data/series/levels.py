"""Columns of series as float32: a level is subtracted from those it would round too coarsely."""

from typing import NamedTuple

import numpy as np

from lstm_compile.data.schema import SeriesSchema
from lstm_compile.data.series.grid import GridRows
from lstm_compile.data.tables.precision import Floats64, Rounding, level_to_subtract, spacing
from lstm_compile.data.tables.sequence_index import SequenceIndex
from lstm_compile.errors import InputError


class Levels(NamedTuple):
    """What is subtracted from the columns of a table."""

    subtracted: tuple[float, ...]  # see `SeriesSchema`
    notes: tuple[str, ...]


def subtract_levels(
    rows: GridRows, names: tuple[str, ...], trained: SeriesSchema | None, index: SequenceIndex
) -> tuple[GridRows, Levels]:
    """Rows of float64 columns as float32; the levels are those of training where it is known.

    Raises:
        InputError: float32 would round away the changes of a series.
    """
    columns = dict(zip(names, rows.x.T, strict=True))
    if trained:
        levels = dict(zip(names, trained.subtracted or (0.0,) * len(names), strict=True))
    else:
        levels = {name: level_to_subtract(x, rows.lengths) for name, x in columns.items()}
    notes = [
        f"{name} is kept as {name} - {level:.15g}, else float32 rounds it to {spacing(level):g}"
        for name, level in levels.items()
        if level
    ]
    for name, x in columns.items():
        rounding = Rounding.of(x - levels[name], rows.lengths)
        _check(rounding, name, x, levels[name], rows, index, is_new=not trained)
    subtracted = tuple(levels.values()) if any(levels.values()) else ()
    x = rows.x - subtracted if subtracted else rows.x
    return rows._replace(x=x.astype(np.float32)), Levels(subtracted, tuple(notes))


def _check(
    rounding: Rounding,
    name: str,
    x: Floats64,
    level: float,
    rows: GridRows,
    index: SequenceIndex,
    *,
    is_new: bool,
) -> None:
    """Refuse the first series whose changes float32 rounds away."""
    if not rounding.is_wrong.any():
        return
    series = int(rounding.is_wrong.argmax())
    start = int(rows.lengths[:series].sum())
    own = x[start : start + rows.lengths[series]]
    kept = f", kept as {name} - {level:.15g}" if level else ""
    is_one = len(index.ids) == 1
    one = "" if is_one else f"series {index.ids[series]!r}: "
    if not is_new:
        mend = "train a model on data of this level"
    elif is_one:
        mend = "leave out the rows of another level"
    else:
        mend = (
            f"leave series of other levels out, or subtract {np.nanmedian(own):.15g} from this "
            "one, in later data too, and add it to its forecasts"
        )
    raise InputError(
        f"{index.files.sources[0].path}, column {name!r}: {one}found numbers from "
        f"{np.nanmin(own):.15g} to {np.nanmax(own):.15g}{kept}, which float32 rounds to steps of "
        f"up to {spacing(own[np.isfinite(own)] - level):g}, expected finer steps, as they change "
        f"by less from row to row; "
        f"{mend}"
    )
