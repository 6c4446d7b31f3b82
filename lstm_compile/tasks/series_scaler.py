"""The scaler of a forecasting model, fitted on the steps of training that were not filled."""

import numpy as np
import torch

from lstm_compile.config import ModelConfig, Scaling
from lstm_compile.data.series.windows import Windows
from lstm_compile.model.scaling import Scaler, fit_scaler
from lstm_compile.model.window_scaling import symmetric_log


def fit_series_scaler(windows: Windows, config: ModelConfig) -> Scaler:
    """Shift and scale of every feature, (features,) each, of windows of the training part.

    Rows after the last step that these forecast are not read. Scalings of windows and series come
    after `standard`.
    """
    kind: Scaling = config.scaling if config.scaling in ("none", "minmax") else "standard"
    is_seen = _seen(windows)
    parts = []
    for column, values in enumerate(windows.x.T):
        use = is_seen.clone()
        if column < windows.table.missing.shape[1]:
            use &= ~torch.from_numpy(windows.table.missing[:, column])
        if column < config.output_size:
            values, use = _target(windows, config, values, use)
        parts.append(fit_scaler(values[use][:, None], kind))
    return Scaler(*(torch.cat([getattr(part, name) for part in parts]) for name in Scaler._fields))


def target_deviation(windows: Windows) -> torch.Tensor:
    """The deviation of each target in the training part, (targets,); 1 if it is 0."""
    return _of_targets(windows).scale


def target_mean(windows: Windows) -> torch.Tensor:
    """The mean of each target in the training part, (targets,)."""
    return _of_targets(windows).shift


def _of_targets(windows: Windows) -> Scaler:
    is_seen, values = _seen(windows), windows.x[:, : len(windows.targets)]
    parts = [
        fit_scaler(column[is_seen & ~unknown][:, None], "standard")
        for column, unknown in zip(values.T, windows.is_unknown.T, strict=True)
    ]
    return Scaler(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _seen(windows: Windows) -> torch.Tensor:
    ticks = torch.from_numpy(np.asarray(windows.table.ticks))
    last = ticks[windows.origins + windows.shape.horizon - 1].max()
    return ticks <= last


def _target(
    windows: Windows, config: ModelConfig, values: torch.Tensor, use: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A target after `log1p` and `season`, as `window_scaling.enter` makes it; and which rows."""
    if config.log1p:
        values = symmetric_log(values)
    if config.season:
        season, lengths = config.season, torch.from_numpy(windows.table.lengths)
        starts = torch.from_numpy(windows.table.starts).repeat_interleave(lengths)
        before = torch.arange(len(values), device="cpu") - season
        is_inside = before >= starts
        use = use & is_inside & use[before.clamp(min=0)]
        values = values - values[before.clamp(min=0)]
    return values, use
