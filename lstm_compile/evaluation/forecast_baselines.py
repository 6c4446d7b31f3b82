"""Baselines of forecasts: rules without training, and ridge regression on windows."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.data.series.windows import Windows, all_windows, split_windows, thinned
from lstm_compile.evaluation.linear import Baseline, LinearSums, moments, ridge

RIDGE_ON_WINDOWS = "ridge on windows"
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
MOST_COLUMNS = 4096  # of the context
MOST_WINDOWS = 16_384  # that ridge regression is fitted on
HELD_OUT = 0.2  # share of windows that choose the penalty if there is no validation part
BLOCK = 1024
Rule = Callable[[Windows, int], Tensor]


def naive(windows: Windows, season: int = 1) -> Tensor:  # noqa: ARG001 (as all rules)
    """The last value, float32 (windows, horizon, targets)."""
    last = windows.x[windows.origins - 1, : len(windows.targets)]
    return last[:, None].expand(-1, windows.shape.horizon, -1)


def seasonal_naive(windows: Windows, season: int) -> Tensor:
    """The value one season before; the last value if the series is shorter than a season."""
    ahead = torch.arange(windows.shape.horizon, device="cpu")
    rows = windows.origins[:, None] + ahead % season - season
    rows = torch.where(rows >= _starts(windows)[:, None], rows, windows.origins[:, None] - 1)
    return windows.x[rows][..., : len(windows.targets)]


def seasonal_ratio(windows: Windows, season: int) -> Tensor:
    """The last season times its growth over the one before; unknown growth counts as 1."""
    level = windows.subtracted
    last, before = _sums_of_seasons(windows, season).clamp(min=0)
    growth = torch.where(before > 0, last / before.where(before > 0, 1.0), 1.0)[:, None]
    ahead = torch.arange(windows.shape.horizon, device="cpu") // season + 1
    return (seasonal_naive(windows, season).double() + level) * growth ** ahead[:, None] - level


def rules_for(season: int) -> dict[str, Rule]:
    """The rules for a season of this many steps; 1 is no season."""
    seasonal = {"seasonal naive": seasonal_naive, "seasonal ratio": seasonal_ratio}
    return {"naive": naive, **(seasonal if season > 1 else {})}


def window_features(windows: Windows, steps: int | None = None) -> Tensor:
    """All numbers of the context except the calendar's, and known covariates of the horizon.

    float64 (windows, columns), in the features' units. A short context is filled up in front with
    its first step. The calendar of the past is left out: the horizon's tells the same. `steps` is
    how many steps of the context count, the last ones; None: all.
    """
    columns, steps = _columns(windows), steps or windows.shape.context
    begins = windows.origins[:, None] + torch.arange(-steps, 0, device="cpu")
    rows = torch.maximum(begins, windows.starts[:, None])
    parts = [windows.x[rows][..., columns].flatten(1)]
    known = windows.gather(torch.arange(len(windows), device="cpu")).given.known_future
    if known is not None:
        parts.append(known.flatten(1))
    return torch.cat(parts, 1).double()


def fit_forecast_baselines(
    known: Windows, train: Windows, validation: Windows | None = None
) -> dict[str, Baseline]:
    """Ridge regression of the whole horizon on the same inputs; rules need no fitting.

    Unknown targets count as the values that they were filled with. The result is fitted on `known`,
    each of `PENALTIES` is tried on `train`, and the windows of `validation` choose one of them;
    None takes the end of `train`. Of long contexts the last steps count, as many as make
    `MOST_COLUMNS`: memory grows with the square of the columns.
    """
    if validation is None:
        train, validation = _cut_by_time(train)
    steps = max(1, min(known.shape.context, MOST_COLUMNS // len(_columns(known))))
    tried, total = (_moments(thinned(part, most=MOST_WINDOWS), steps) for part in (train, known))
    judged = thinned(validation, most=BLOCK)
    features, truth = window_features(judged, steps), _filled(judged)
    scale = truth.std(0, correction=0).clamp(min=1e-12)

    def loss(l2: float) -> float:
        fitted = ridge(tried, l2)
        error = (features @ fitted.weight + fitted.bias - truth) / scale
        return float(error.square().mean())

    return {RIDGE_ON_WINDOWS: ridge(total, min(PENALTIES, key=loss))}


def forecasts_of(
    baselines: Mapping[str, Baseline], windows: Windows, season: int
) -> Iterator[tuple[str, Tensor]]:
    """The forecasts of each rule and fitted baseline, (windows, horizon, targets) each."""
    for name, rule in rules_for(season).items():
        yield name, rule(windows, season)
    for name, baseline in baselines.items():
        of_horizon = windows.shape.horizon * len(windows.table.info.known_features)
        steps = (len(baseline.weight) - of_horizon) // len(_columns(windows))
        flat = window_features(windows, steps) @ baseline.weight + baseline.bias
        yield name, flat.unflatten(1, (windows.shape.horizon, len(windows.targets)))


def error_quantiles(
    baselines: Mapping[str, Baseline],
    windows: Windows,
    season: int,
    units: Tensor,
    quantiles: tuple[float, ...],
) -> dict[str, Tensor]:
    """What turns the forecasts of each baseline into quantiles: the quantiles of its own errors.

    They are taken from windows of the same series before the test part, or from all if there are
    none. float64 (horizon, targets, quantiles) by name, in `units` (series, targets).
    """
    everything = all_windows(windows.table, windows.shape)
    before = split_windows(everything)["known"]
    judged = thinned(before if len(before) else everything, most=BLOCK)
    truth, unit = judged.y.double(), units[judged.series][:, None]
    shares = torch.tensor(quantiles, dtype=torch.float64, device="cpu")
    found = {}
    for name, forecast in forecasts_of(baselines, judged, season):
        errors = ((truth - forecast) / unit).unbind(-1)  # torch's quantile takes 16 million numbers
        parts = [error.nanquantile(shares, 0).T for error in errors]
        found[name] = torch.stack(parts, 1)
    return found


def _cut_by_time(windows: Windows) -> tuple[Windows, Windows]:
    """The windows before a time, and those after it; (all, all) if none lies before it.

    No step is forecast by windows of both parts.
    """
    ticks = torch.from_numpy(windows.table.ticks)
    begin, end = (ticks[windows.origins + step] for step in (0, windows.shape.horizon - 1))
    cut = begin.sort().values[int(len(windows) * (1 - HELD_OUT))]
    parts = [windows.select(mask.nonzero()[:, 0]) for mask in (end < cut, begin >= cut)]
    return (parts[0], parts[1]) if len(parts[0]) else (windows, windows)


def _filled(windows: Windows) -> Tensor:
    rows = windows.origins[:, None] + torch.arange(windows.shape.horizon, device="cpu")
    return windows.x[rows][..., : len(windows.targets)].flatten(1).double()


def _columns(windows: Windows) -> list[int]:
    """The features without those of the calendar and without codes of categories."""
    calendar = 2 * len(windows.table.info.calendar)
    numbers = len(windows.features) - len(windows.schema.category_sizes)
    count = numbers - windows.table.info.indicator
    return [*range(count - calendar), *range(count, numbers)]


def _moments(windows: Windows, steps: int) -> LinearSums:
    """Summed up block by block: all features at once would be large."""
    blocks = map(windows.select, torch.arange(len(windows), device="cpu").split(BLOCK))
    return moments((window_features(block, steps), _filled(block)) for block in blocks)


def _starts(windows: Windows) -> Tensor:
    """The first row of each window's series."""
    return torch.from_numpy(windows.table.starts)[windows.series]


def _sums_of_seasons(windows: Windows, season: int) -> Tensor:
    """Sums of the user's numbers in the last season before each origin and the one before that.

    float64 (2, windows, targets), 0 where the series is shorter. They are differences of cumulative
    sums: a season can have millions of steps.
    """
    targets = len(windows.targets)
    found = torch.zeros(2, len(windows), targets, dtype=torch.float64, device="cpu")
    has_two = windows.origins - 2 * season >= _starts(windows)
    for series in windows.series[has_two].unique():
        members = (has_two & (windows.series == series)).nonzero()[:, 0]
        ends = windows.origins[members]
        begin = int(ends.min()) - 2 * season
        values = windows.x[begin : int(ends.max()), :targets].double() + windows.subtracted
        sums, places = pad(values.cumsum(0), (0, 0, 1, 0)), ends - begin
        last, middle, first = (sums[places - seasons * season] for seasons in range(3))
        found[:, members] = torch.stack([last - middle, middle - first])
    return found
