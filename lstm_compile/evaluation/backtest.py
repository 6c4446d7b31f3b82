"""Backtests: forecasts from many origins, beside those of baselines on the same windows.

Only sums of errors are kept, so that memory does not grow with the number of windows.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.series.windows import Windows
from lstm_compile.evaluation.forecast_baselines import forecasts_of
from lstm_compile.evaluation.linear import Baseline
from lstm_compile.evaluation.verdict import Evaluation, best_of, paired_interval, verdict
from lstm_compile.model.forecaster import middle_of
from lstm_compile.tasks.losses import pinball
from lstm_compile.tasks.metrics import Metrics

BLOCK = 1024  # windows at once
MODEL = ""  # its name among those of the baselines
Predict = Callable[[Windows], Tensor]


class ForecastScores:
    """Running sums of the errors of forecasts, for each target and step ahead.

    `units` is float64 (targets,), the deviation of each target in training; `subtracted`, of the
    same shape or 0, is what forecasts and truth lack of the user's own numbers.
    """

    def __init__(
        self, config: ModelConfig, units: Tensor, subtracted: Tensor | float = 0.0
    ) -> None:
        self.config, self.units, self.subtracted = config, units, subtracted
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.rows: dict[str, list[Tensor]] = {"mase": [], "scaled_mse": []}  # of each window

    def add(self, forecast: Tensor, y: Tensor, naive_error: Tensor) -> None:
        """Add windows: forecasts (windows, horizon, targets(, quantiles)) and the truth, `y`.

        `y` is NaN where it is unknown; `naive_error` is (windows, targets), see `naive_errors`.
        """
        y, forecast = y.double(), forecast.double()
        if forecast.dim() == 4:
            self._add_quantiles(forecast, y)
            forecast = forecast[..., middle_of(self.config.quantiles)]
        error = forecast - y
        size, truth = error.abs(), y + self.subtracted
        both = (forecast + self.subtracted).abs() + truth.abs()
        values = {
            "mae": size,
            "rmse": error.square(),
            "scaled_mse": (error / self.units).square(),
            "mase": size / naive_error[:, None],
            "mape": torch.where(truth != 0, size / truth.abs(), torch.nan),
            "smape": torch.where(both == 0, 0.0, 2 * size / both),
        }
        for name, value in values.items():
            self._sum(name, value)
        for name, rows in self.rows.items():
            rows.append(values[name].flatten(1).nanmean(1))

    def _add_quantiles(self, forecast: Tensor, y: Tensor) -> None:
        q = self.config.quantiles
        self._sum("pinball", pinball(forecast - y[..., None], q))
        if len(q) > 1:
            inside = (y >= forecast[..., 0]) & (y <= forecast[..., -1])
            self._sum("coverage", torch.where(y.isnan(), torch.nan, inside.double()))

    def _sum(self, name: str, values: Tensor) -> None:
        is_there = values.isfinite()
        total, count = torch.where(is_there, values, 0.0).sum(0), is_there.sum(0)
        self.sums[name] = self.sums.get(name, 0) + total
        self.counts[name] = self.counts.get(name, 0) + count

    def metrics(self, pick: Any = slice(None)) -> Metrics:
        """Means over the steps and targets that `pick` selects of (horizon, targets)."""
        found = {}
        for name, total in self.sums.items():
            count = self.counts[name][pick].sum()
            mean = float(total[pick].sum() / count) if count else float("nan")
            found[name] = mean**0.5 if name == "rmse" else mean
        return found

    def details(self, targets: tuple[str, ...]) -> dict[str, Any]:
        """The metrics of each target, and of each step ahead of each target."""
        steps = range(len(self.sums["mae"]))
        return {
            name: {
                **self.metrics((slice(None), index)),
                "steps": [self.metrics((step, index)) for step in steps],
            }
            for index, name in enumerate(targets)
        }


def backtest(
    predict: Predict,
    config: ModelConfig,
    windows: Windows,
    baselines: Mapping[str, Baseline],
    units: Tensor,
    headline: str = "scaled_mse",
) -> Evaluation:
    """Compare forecasts with the truth and with baselines.

    `predict` gives (windows, horizon, targets(, quantiles)). There is at least one window, on the
    CPU. Rules are added to the baselines. `units` are (targets,), the deviation of each target in
    training; `headline` is the metric of the verdict, `scaled_mse` or `mase`.
    """
    season = config.season or windows.table.info.clock.season
    scores: dict[str, ForecastScores] = {}
    errors = naive_errors(windows, season)
    for rows in torch.arange(len(windows)).split(BLOCK):
        block = windows.select(rows)
        y, naive = block.y, errors[block.series]
        for name, forecast in ((MODEL, predict(block)), *forecasts_of(baselines, block, season)):
            fresh = ForecastScores(config, units.double(), windows.subtracted)
            scores.setdefault(name, fresh).add(forecast, y, naive)
    own, others = scores.pop(MODEL), {name: found.metrics() for name, found in scores.items()}
    best = best_of(config.task, others, headline)
    size = max(1, windows.shape.horizon)
    # blocks of neighbours: windows that overlap are not independent
    ours, theirs = (
        torch.stack([block.nanmean() for block in torch.cat(found.rows[headline]).split(size)])
        for found in (own, scores[best])
    )
    interval = paired_interval(ours, theirs, lambda mean: -mean)
    figures = own.metrics()
    sentence = verdict(config.task, figures, others, interval, headline)
    details = {name: found.details(windows.targets) for name, found in scores.items()}
    details = {"targets": own.details(windows.targets), "baselines": details}
    return Evaluation(config.task, len(windows), figures, others, sentence, interval, details)


def headline_of(loss: str) -> str:
    """The metric of the verdict on a model trained with `loss`: squares for mse, else sizes."""
    return "scaled_mse" if loss == "mse" else "mase"


def naive_errors(windows: Windows, season: int) -> Tensor:
    """The mean error of the seasonal naive rule before the test part, float64 (series, targets).

    MASE divides by it. If a series has no rows before the test part, all its rows count; an error
    of 0 becomes 1. Source: Hyndman and Koehler 2006.
    """
    table, targets = windows.table, len(windows.targets)
    known = torch.from_numpy(table.split.part_of(table.ticks) < 2)
    found = torch.ones(len(table.lengths), targets, dtype=torch.float64)
    for series, (start, length) in enumerate(zip(table.starts, table.lengths, strict=True)):
        rows = slice(int(start), int(start + length))
        x = windows.x[rows, :targets].double()
        x = torch.where(windows.is_unknown[rows], torch.nan, x)
        for part in (x[known[rows]], x):
            mean = (part[season:] - part[:-season]).abs().nanmean(0)
            if mean.isfinite().all():
                found[series] = torch.where(mean > 0, mean, 1.0)
                break
    return found
