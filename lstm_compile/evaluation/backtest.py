"""Backtests: forecasts from many origins, beside those of baselines on the same windows.

Only sums of errors are kept, so that memory does not grow with the number of windows.
"""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.series.windows import Windows
from lstm_compile.errors import InputError
from lstm_compile.evaluation.forecast_baselines import error_quantiles, forecasts_of
from lstm_compile.evaluation.linear import Baseline
from lstm_compile.evaluation.verdict import Evaluation, best_of, paired_interval, verdict
from lstm_compile.model.forecaster import median_of
from lstm_compile.tasks.losses import pinball
from lstm_compile.tasks.metrics import Metrics

BLOCK = 1024  # windows at once
SCALED_PINBALL = "scaled_pinball"  # in units of `naive_errors`, as MASE
HEADLINES = ("scaled_mse", "mase", SCALED_PINBALL)
MODEL = ""  # its name among those of the baselines
Predict = Callable[[Windows], Tensor]


class ForecastScores:
    """Running sums of the errors of forecasts, for each target and step ahead.

    `units` is float64 (targets,), the deviation of each target in training; `subtracted`, of the
    same shape or 0, is what forecasts and truth lack of the user's own numbers.
    """

    def __init__(
        self,
        config: ModelConfig,
        units: Tensor,
        subtracted: Tensor | float = 0.0,
        series: int = 1,
    ) -> None:
        self.config, self.units, self.subtracted = config, units, subtracted
        self.series: dict[str, Tensor] = {}  # sums and counts of each series, (2, series)
        self.series_count = series
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.rows: dict[str, list[Tensor]] = {}  # of each window, by the metrics of verdicts

    def add(
        self, forecast: Tensor, y: Tensor, naive_error: Tensor, owner: Tensor | None = None
    ) -> None:
        """Add windows: forecasts (windows, horizon, targets(, quantiles)) and the truth, `y`.

        `y` is NaN where it is unknown; `naive_error` is (windows, targets), see `naive_errors`;
        `owner` is int64 (windows,), the number of each window's series, or None for the first.
        Point figures are those of the median; quantiles without it have none.
        """
        y, forecast = y.double(), forecast.double()
        self.owner = (
            torch.zeros(len(y), dtype=torch.int64, device="cpu") if owner is None else owner
        )
        if forecast.dim() == 3:
            self._add_points(forecast, y, naive_error)
            return
        self._add_quantiles(forecast, y, naive_error)
        median = median_of(self.config.quantiles)
        if median is not None:
            self._add_points(forecast[..., median], y, naive_error)

    def _add_points(self, forecast: Tensor, y: Tensor, naive_error: Tensor) -> None:
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

    def _add_quantiles(self, forecast: Tensor, y: Tensor, naive_error: Tensor) -> None:
        q = self.config.quantiles
        cost = pinball(forecast - y[..., None], q)
        self._sum("pinball", cost)
        self._sum(SCALED_PINBALL, cost / naive_error[:, None])
        if len(q) > 1:
            inside = (y >= forecast[..., 0]) & (y <= forecast[..., -1])
            self._sum("coverage", torch.where(y.isnan(), torch.nan, inside.double()))

    def _sum(self, name: str, values: Tensor) -> None:
        is_there = values.isfinite()
        known = torch.where(is_there, values, 0.0)
        of_windows = torch.stack([part.flatten(1).sum(1).double() for part in (known, is_there)])
        empty = torch.zeros(2, self.series_count, dtype=torch.float64, device="cpu")
        self.series.setdefault(name, empty).index_add_(1, self.owner, of_windows)
        total, count = known.sum(0), is_there.sum(0)
        self.sums[name] = self.sums.get(name, 0) + total
        self.counts[name] = self.counts.get(name, 0) + count
        if name in HEADLINES:
            self.rows.setdefault(name, []).append(values.flatten(1).nanmean(1))

    def metrics(self, pick: Any = slice(None)) -> Metrics:
        """Means over the steps and targets that `pick` selects of (horizon, targets)."""
        found = {}
        for name, total in self.sums.items():
            found[name] = _mean(name, total[pick].sum(), self.counts[name][pick].sum())
        return found

    def of_series(self, ids: tuple[str, ...]) -> dict[str, Metrics]:
        """The metrics of each series that has a window, over its targets and steps."""
        return {
            name: {metric: _mean(metric, *sums[:, i]) for metric, sums in self.series.items()}
            for i, name in enumerate(ids)
            if any(sums[1, i] for sums in self.series.values())
        }

    def details(self, targets: tuple[str, ...]) -> dict[str, Any]:
        """The metrics of each target, and of each step ahead of each target."""
        steps = range(len(next(iter(self.sums.values()))))
        return {
            name: {
                **self.metrics((slice(None), index)),
                "steps": [self.metrics((step, index)) for step in steps],
            }
            for index, name in enumerate(targets)
        }


def _mean(name: str, total: Tensor, count: Tensor) -> float:
    mean = float(total / count) if count else float("nan")
    return mean**0.5 if name == "rmse" else mean


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
    training; `headline` is the metric of the verdict, one of `HEADLINES`. For `scaled_pinball` the
    baselines answer with quantiles too, see `error_quantiles`.

    Raises:
        InputError: a forecast is not finite.
    """
    season = config.season or windows.table.info.clock.season
    scores: dict[str, ForecastScores] = {}
    errors, spreads = naive_errors(windows, season), dict[str, Tensor]()
    if headline == SCALED_PINBALL:
        spreads = error_quantiles(baselines, windows, season, errors, config.quantiles)
    for rows in torch.arange(len(windows), device="cpu").split(BLOCK):
        block = windows.select(rows)
        y, naive = block.y, errors[block.series]
        for name, forecast in ((MODEL, predict(block)), *forecasts_of(baselines, block, season)):
            if name in spreads:
                forecast = forecast[..., None] + spreads[name] * naive[:, None, :, None]
            if name == MODEL:
                _check_finite(forecast, block)
            fresh = ForecastScores(config, units.double(), windows.subtracted, len(errors))
            scores.setdefault(name, fresh).add(forecast, y, naive, block.series)
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
    if windows.table.ids:
        details["series"] = own.of_series(windows.table.ids)
    return Evaluation(config.task, len(windows), figures, others, sentence, interval, details)


def _check_finite(forecast: Tensor, windows: Windows) -> None:
    """Refuse forecasts that no figure could count; a truth that is unknown is NaN too."""
    table = windows.table
    for row in (~forecast.isfinite()).flatten(1).any(1).nonzero()[:1, 0].tolist():
        begin = table.stamps(table.ticks[windows.origins[row : row + 1].numpy()])[0]
        raise InputError(
            f"{table.name(int(windows.series[row]))}, from {begin} on: the forecast is no finite "
            "number, as the values before lie too far from those of the training data; check them"
        )


def headline_of(loss: str, quantiles: tuple[float, ...] = ()) -> str:
    """The metric of the verdict on a model trained with `loss`: squares for mse, else sizes.

    Of quantiles without a median it is the pinball loss.
    """
    if quantiles and median_of(quantiles) is None:
        return SCALED_PINBALL
    return "scaled_mse" if loss == "mse" else "mase"


def naive_errors(windows: Windows, season: int) -> Tensor:
    """The mean error of the seasonal naive rule before the test part, float64 (series, targets).

    MASE divides by it. If a series has no rows before the test part, all its rows count; one that
    is shorter than a season takes the step before. An error of 0 becomes 1.
    Source: Hyndman and Koehler 2006.
    """
    table, targets = windows.table, len(windows.targets)
    known = torch.from_numpy(table.split.part_of(table.ticks) < 2)
    found = torch.ones(len(table.lengths), targets, dtype=torch.float64, device="cpu")
    for series, (start, length) in enumerate(zip(table.starts, table.lengths, strict=True)):
        rows = slice(int(start), int(start + length))
        x = windows.x[rows, :targets].double()
        x = torch.where(windows.is_unknown[rows], torch.nan, x)
        for lag, part in product((season, 1), (x[known[rows]], x)):
            mean = (part[lag:] - part[:-lag]).abs().nanmean(0)
            if mean.isfinite().all():
                found[series] = torch.where(mean > 0, mean, 1.0)
                break
    return found
