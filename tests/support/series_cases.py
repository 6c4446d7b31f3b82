"""Small tables of series, and short runs on them: what the tests of forecasting share."""

import numpy as np

from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.series_table import Shares, look_ahead
from lstm_compile.data.series.windows import Shape, all_windows
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.training.defaults import resolve
from lstm_compile.training.prepare import JobRequest, prepare
from lstm_compile.training.run import run

SMALL = {"context": 8, "horizon": 3, "hidden_size": 6}
QUICK = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "device": "cpu"}


def hours(count, start="2020-01-01T00"):
    return np.datetime64(start, "h") + np.arange(count).astype("m8[h]")


def waves(count=200, seed=0, level=50.0):
    """A daily wave with a drift and some noise."""
    random = np.random.default_rng(seed)
    step = np.arange(count)
    return level + 10 * np.sin(2 * np.pi * step / 24) + 0.02 * step + random.normal(0, 0.5, count)


def write(path, columns):
    """A CSV file of columns by name; None and NaN are empty cells."""
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(columns), *(",".join(map(_cell, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def _cell(value):
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(value)


def hourly(path, count=200, **more):
    """One hourly series `y`, and what else is asked for."""
    return write(path, {"time": hours(count), "y": waves(count), **more})


def several(path, lengths=(120, 90), **more):
    """Series a, b, ... of different levels and lengths, with a static `kind`."""
    names = [chr(97 + index) for index in range(len(lengths))]
    columns = {
        "id": np.repeat(names, lengths),
        "time": np.concatenate([hours(length) for length in lengths]),
        "y": np.concatenate([waves(n, i, 20.0 + 100 * i) for i, n in enumerate(lengths)]),
        "kind": np.repeat(["even" if i % 2 == 0 else "odd" for i in range(len(lengths))], lengths),
    }
    return write(path, columns | more)


def read(path, **options):
    return read_series(path, TableOptions(**options))


def do(path, output, model=None, training=None, table=None, test=None):
    """A short run."""
    settings = resolve(
        path, "forecast", {**SMALL, **(model or {})}, {**QUICK, **(training or {})}, table
    )
    request = JobRequest(path, settings.model, settings.training, test, settings.table, "forecast")
    return run(prepare(request, output=output))


def windows_of(path, shape=(8, 3), split=None, **options):
    table = read_series(path, TableOptions(**options), split=split or Shares(0.1, 0.2))
    return all_windows(table, Shape(*shape))


def time_table(path, stamps, ids=None, **options):
    """A CSV table whose time column `when` has these cells, and one series or those of `ids`."""
    columns = {"when": list(stamps), "y": waves(len(stamps))}
    columns |= {} if ids is None else {"id": list(ids)}
    return read(write(path, columns), time="when", target=("y",), **options)


def next_stamps(table, count):
    """The next `count` times of each series, as the table writes them."""
    ticks = look_ahead(table, count).ticks.ravel()
    return table.format.cells(table.clock.stamps(ticks, table.stamp), True).to_pylist()
