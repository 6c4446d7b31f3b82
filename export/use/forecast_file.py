"""The next horizon of every series of a table, from any model; loads no torch itself."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.series_table import Ahead, SeriesTable, Split, look_ahead
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.export.runtime import Floats, Inputs, location_and_scale, pad
from lstm_compile.formatting import free_name

BATCH = 256  # series that are answered together
Progress = Callable[[str, int, int], None]


class Steps(NamedTuple):
    """The steps that are forecast."""

    name: str  # of the time column
    stamps: Any  # (series, horizon)
    quantiles: tuple[float, ...]


class Forecasts(NamedTuple):
    """The forecasts of each series of a table, in the table's order."""

    ids: list[str] | None  # None if series have no names
    values: Floats  # (series, horizon, targets(, quantiles)), in the targets' units
    steps: Steps


def forecast_series(
    config: ModelConfig,
    schema: Schema,
    forecast: Callable[[Inputs], Floats],
    path: Path,
    options: TableOptions | None = None,
    progress: Progress | None = None,
) -> Forecasts:
    """Read a table and forecast the steps after the last target of each series.

    Args:
        config: of the model.
        schema: of the model.
        forecast: the model: from inputs by the names of its file to whole horizons.
        path: the table: a file, a folder or a glob.
        options: its columns; those that are not named are as in training.
        progress: called with `rows` (read) or `series` (answered), how many, and of how many.

    Raises:
        InputError: the table cannot be read or does not fit the model.
    """
    # all rows are one part; its gaps are filled with the means of training
    split = Split(math.inf, math.inf)
    tell = partial(progress, "rows") if progress else None
    table = read_series(path, options, schema=schema, split=split, progress=tell)
    ahead = look_ahead(table, config.horizon)
    parts = []
    for start in range(0, len(table.lengths), BATCH):
        rows = np.arange(start, min(start + BATCH, len(table.lengths)))
        parts.append(forecast(_inputs(config, table, ahead, rows)))
        if progress is not None:
            progress("series", int(rows[-1]) + 1, len(table.lengths))
    stamps = table.stamps(ahead.ticks.ravel()).reshape(ahead.ticks.shape)
    steps = Steps(table.roles.options.time or "time", stamps, config.quantiles)
    return Forecasts(None if table.ids is None else [*table.ids], np.concatenate(parts), steps)


def forecast_columns(schema: Schema, found: Forecasts) -> dict[str, Any]:
    """The columns of the output file by name, one row a series and step.

    `id` where the series have one, the time, and one column a target, or one a target and quantile
    called `TARGET_0.1`.
    """
    count, horizon = found.values.shape[:2]
    flat = found.values.reshape(count * horizon, *found.values.shape[2:])
    answers: dict[str, Any] = {}
    for index, name in enumerate(schema.targets):
        if found.steps.quantiles:
            names = [f"{name}_{q:g}" for q in found.steps.quantiles]
            answers |= {quantile: flat[:, index, i] for i, quantile in enumerate(names)}
        else:
            answers[name] = flat[:, index]
    answers = {free_name(found.steps.name, answers): found.steps.stamps.ravel(), **answers}
    if found.ids is None:
        return answers
    ids = np.repeat(np.array(found.ids, object), horizon)
    return {free_name("id", answers): ids, **answers}


def _inputs(config: ModelConfig, table: SeriesTable, ahead: Ahead, rows: Any) -> Inputs:
    """The inputs of the model's file for series number `rows`."""
    places = zip(table.starts[rows], table.history[rows], strict=True)
    histories = [table.x[start : start + count] for start, count in places]
    pairs = [location_and_scale(history[:, : config.level_size]) for history in histories]
    location, scale = (np.stack(part).astype(np.float32) for part in zip(*pairs, strict=True))
    given = {
        "known_future": ahead.known[rows],
        "static": table.statics[rows],
        "series_location": location,
        "series_scale": scale,
    }
    x, lengths = pad([history[-config.context :] for history in histories])
    return {"x": x, "lengths": lengths, **{name: given[name] for name in config.given}}
