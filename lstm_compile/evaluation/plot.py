"""A picture of forecasts and the truth, with matplotlib (the extra `plot`)."""

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.series.windows import Windows, thinned
from lstm_compile.errors import InputError
from lstm_compile.evaluation.backtest import Predict
from lstm_compile.files import check_target, write_atomically
from lstm_compile.model.forecaster import median_of

SUFFIXES = (".png", ".svg", ".pdf")
WINDOWS = 4  # at equal distances
TARGETS = 6
FEW = 6  # steps ahead: if there are no more, each has a dot
PAST = 3  # horizons of the context that are shown


def check_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before any work is done.

    Raises:
        InputError: matplotlib is not installed, another suffix, or no folder to write in.
    """
    check_target(path, SUFFIXES, "a plot")
    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib; pip install 'lstm-compile[plot]'")


def plot_forecasts(path: Path, predict: Predict, config: ModelConfig, windows: Windows) -> None:
    """Draw a few windows: the steps before, the truth, and the forecast with its band.

    The file is `.png`, `.svg` or `.pdf`, written whole or not at all. `predict` gives (windows,
    horizon, targets(, quantiles)); of the windows, on the CPU, a few at equal distances are drawn.

    Raises:
        InputError: what `check_plot` refuses.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    shown = thinned(windows, most=WINDOWS)
    targets, forecasts = windows.targets[:TARGETS], predict(shown)
    figure = Figure(figsize=(4.5 * len(shown), 2.8 * len(targets)), layout="constrained")
    grid = figure.subplots(len(targets), len(shown), squeeze=False)
    ids = windows.table.ids
    for row, name in enumerate(targets):
        for column, axes in enumerate(grid[row]):
            _draw(axes, shown, column, row, forecasts[column, :, row], config)
            title = f"{ids[int(shown.series[column])]}: {name}" if ids else name
            axes.set_title(title, fontsize=9)
    lines = grid[0][0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=len(lines[0]), fontsize=8)
    sink = io.BytesIO()
    figure.savefig(sink, format=path.suffix.lower()[1:], dpi=110)
    write_atomically(path, sink.getvalue())


def _draw(
    axes: Any, windows: Windows, index: int, target: int, forecast: Tensor, config: ModelConfig
) -> None:
    origin, horizon = int(windows.origins[index]), windows.shape.horizon
    begin = max(int(windows.starts[index]), origin - PAST * horizon)
    stamps = windows.table.stamps(windows.table.ticks[begin : origin + horizon])
    before, ahead = stamps[: origin - begin], stamps[origin - begin :]
    marker = "." if horizon <= FEW else ""  # a line of one point is invisible
    level = windows.subtracted[target]
    past, truth = windows.x[begin:origin, target] + level, windows.y[index, :, target] + level
    axes.plot(before, past, marker=marker, ls="-", color="0.5", label="before")
    axes.plot(ahead, truth, marker=marker, ls="-", color="black", label="truth")
    forecast = forecast + level
    q, lines = config.quantiles, {"forecast": forecast}
    if q:
        look = {"color": "C0", "alpha": 0.25, "label": f"{q[0]:g} to {q[-1]:g}"}
        axes.fill_between(ahead, forecast[:, 0], forecast[:, -1], **look)
        median = median_of(q)
        lines = {f"quantile {each:g}": forecast[:, i] for i, each in enumerate(q)}
        if median is not None:
            lines = {"forecast": forecast[:, median]}
    for label, line in lines.items():
        axes.plot(ahead, line, marker=marker, ls="-", color="C0", label=label)
    axes.tick_params(axis="x", rotation=30, labelsize=7)
