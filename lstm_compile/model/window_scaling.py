"""The scaling of windows for the network, and of its output back to forecasts.

In this order, and back in the reverse order:

    targets   z = sign(x) log(1 + |x|)              where `log1p`
    targets   z_t = z_t - z_(t - season)            where `season`
    all       z = (z - shift) / scale               `scaling`, of each feature or of each series
    levels    z = (z - a) / b                       `last`, `mean` or `revin`, of each window

Everything depends on valid steps alone and is exact for windows of any length, 0 and 1 too.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import WINDOW_SCALINGS, ModelConfig
from lstm_compile.model.batch import Given
from lstm_compile.recurrence.lengths import valid_mask

LARGEST = 80.0  # exp of it is within float32
EPSILON = 1e-5  # added to the variance of a window, as in RevIN

_library = torch.library.Library("lstm_compile", "FRAGMENT")
_library.define(
    "last_steps(Tensor x, Tensor lengths, SymInt size) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


class Frame(NamedTuple):
    """The parts that were taken out of a window and go back into its forecast."""

    season: Tensor | None  # (batch, steps_out, targets), the last season; None without `season`
    shift: Tensor  # (levels,) or (batch, 1, levels), of the scaling
    scale: Tensor  # the same
    location: Tensor  # (batch, 1, levels), of the window; (1,) of 0 if windows are not scaled
    deviation: Tensor  # the same; 1 if windows are not divided


def symmetric_log(x: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return x.sign() * x.abs().log1p()


def symmetric_exp(z: Tensor) -> Tensor:
    """The inverse of `symmetric_log`: sign(z) (exp(|z|) - 1)."""
    size = z.abs()
    # not expm1: few runtimes know its operator
    return z.sign() * (torch.where(size < LARGEST, size, LARGEST).exp() - 1.0)


def differences(targets: Tensor, season: int) -> Tensor:
    """`targets` (batch, time, targets) minus their values `season` steps before.

    The first `season` steps stay as they are.
    """
    zero = torch.zeros(1, 1, 1, dtype=targets.dtype, device=targets.device)
    before = torch.cat([zero.expand(targets.shape[0], season, targets.shape[2]), targets], 1)
    return targets - before[:, : targets.shape[1]]


def enter(
    params: Mapping[str, Tensor], config: ModelConfig, x: Tensor, lengths: Tensor, given: Given
) -> tuple[Tensor, Frame]:
    """The input of the network, (batch, time, features), and the parts that were taken out.

    `x` is (batch, time, features), in the user's units, with any number in the padding; `given`
    holds location and scale of each series for scaling `series`.
    """
    size, levels = config.output_size, config.level_size
    valid = valid_mask(lengths, x.shape[1])[..., None]
    x = torch.where(valid, x, 0.0)
    targets, season = x[..., :size], None
    if config.log1p:
        targets = symmetric_log(targets)
    if config.season:
        season = _last_season(targets, lengths, config)
        targets = differences(targets, config.season)
    shift, scale = _scaling(params, config, given)
    z = (torch.cat([targets, x[..., size:]], -1) - shift) / scale
    moves = _counts(valid, config) if config.season else valid.expand_as(z[..., :levels])
    location, deviation = _window(z[..., :levels], moves, lengths, config)
    level = torch.where(moves, (z[..., :levels] - location) / deviation, 0.0)
    rest = torch.where(valid, z[..., levels:], 0.0)
    frame = Frame(season, shift[..., :levels], scale[..., :levels], location, deviation)
    return torch.cat([level, rest], -1), frame


def leave(frame: Frame, config: ModelConfig, y: Tensor) -> Tensor:
    """The network's output (batch, steps, targets(, quantiles)) in the user's units."""
    size = config.output_size

    def of_targets(part: Tensor) -> Tensor:
        part = part[..., :size]
        return part[..., None] if config.quantiles else part

    y = y * of_targets(frame.deviation) + of_targets(frame.location)
    y = y * of_targets(frame.scale) + of_targets(frame.shift)
    if frame.season is not None:
        y = _over_seasons(y, config.season)
        y = y + (frame.season[..., None] if config.quantiles else frame.season)
    return symmetric_exp(y) if config.log1p else y


def scaled_known(params: Mapping[str, Tensor], config: ModelConfig, known: Tensor) -> Tensor:
    """Known covariates (batch, steps, known), scaled as within windows."""
    columns = slice(config.level_size, config.level_size + config.known_size)
    if config.scaling == "none":
        return known
    return (known - params["scaler.shift"][columns]) / params["scaler.scale"][columns]


def _scaling(
    params: Mapping[str, Tensor], config: ModelConfig, given: Given
) -> tuple[Tensor, Tensor]:
    shift, scale = params["scaler.shift"], params["scaler.scale"]
    if config.scaling == "none":
        return torch.zeros_like(shift), torch.ones_like(scale)
    if given.series_location is None or given.series_scale is None:
        return shift, scale
    rows, levels = given.series_location.shape[0], config.level_size
    parts = ((given.series_location, shift), (given.series_scale, scale))
    shift, scale = (
        torch.cat([own, fixed[levels:].expand(rows, -1)], 1)[:, None] for own, fixed in parts
    )
    return shift, scale


def _counts(valid: Tensor, config: ModelConfig) -> Tensor:
    """(batch, time, levels) bool: the values that exist once targets are differences."""
    # in floats: with whole numbers tract fails on short rows
    step = torch.arange(valid.shape[1], dtype=torch.float32, device=valid.device)
    of_targets = valid & (step >= config.season)[:, None]
    return torch.cat(
        [of_targets.expand(-1, -1, config.output_size), valid.expand(-1, -1, config.past_size)], -1
    )


def _window(
    z: Tensor, moves: Tensor, lengths: Tensor, config: ModelConfig
) -> tuple[Tensor, Tensor]:
    """Location and deviation of each window, (batch, 1, levels) or (1,) each."""
    if config.scaling not in WINDOW_SCALINGS:
        zero = torch.zeros(1, dtype=z.dtype, device=z.device)
        return zero, zero + 1.0
    if config.scaling == "last":
        # counted from 1: tract fails on some graphs that subtract 1 from the lengths here
        number = torch.arange(1, z.shape[1] + 1, device=z.device)
        is_last = (number == lengths[:, None])[..., None] & moves
        location = torch.where(is_last, z, 0.0).sum(1, keepdim=True)
        return location, torch.ones_like(location)
    count = moves.to(z.dtype).sum(1, keepdim=True)
    count = torch.where(count > 0, count, 1.0)
    location = torch.where(moves, z, 0.0).sum(1, keepdim=True) / count
    if config.scaling == "mean":
        return location, torch.ones_like(location)
    variance = torch.where(moves, z - location, 0.0).square().sum(1, keepdim=True) / count
    return location, (variance + EPSILON).sqrt()


def _last_season(targets: Tensor, lengths: Tensor, config: ModelConfig) -> Tensor:
    """The values a season before each step to forecast; the last value where there is none."""
    season = last_steps(targets, lengths, config.season)
    missing = lengths[:, None] < torch.arange(config.season, 0, -1, device=lengths.device)
    season = torch.where(missing[..., None], season[:, -1:], season)
    repeats = -(-config.steps_out // config.season)
    return torch.cat([season] * repeats, 1)[:, : config.steps_out]


def _over_seasons(y: Tensor, season: int) -> Tensor:
    """Sums of `y` (batch, steps, ...) over each step and all that lie whole seasons before it."""
    steps = y.shape[1]
    if steps <= season:
        return y
    parts = [y[:, start : start + season] for start in range(0, steps, season)]
    for index in range(1, len(parts)):
        parts[index] = parts[index] + parts[index - 1][:, : parts[index].shape[1]]
    return torch.cat(parts, 1)


def last_steps(x: Tensor, lengths: Tensor, size: int) -> Tensor:
    """The last `size` valid steps of each row of `x` (batch, time, features).

    (batch, size, features), the last valid step last; zeros in front of shorter rows. In traced
    code this is one operator, which the ONNX translation writes as a GatherND within each row. An
    index would become a node that few runtimes load.
    """
    if torch.compiler.is_compiling():
        return torch.ops.lstm_compile.last_steps(x, lengths, size)  # type: ignore[no-any-return]
    return _last_steps(x, lengths, size)


def _last_steps(x: Tensor, lengths: Tensor, size: int) -> Tensor:
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], size, x.shape[2])
    step = lengths[:, None] - size + torch.arange(size, device=x.device)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return torch.where((step >= 0)[..., None], x[rows, step.clamp(min=0)], 0.0)


torch.library.impl(_library, "last_steps", "CompositeExplicitAutograd")(_last_steps)
torch.library.register_fake(
    "lstm_compile::last_steps",
    lambda x, lengths, size: x.new_empty(x.shape[0], size, x.shape[2]),
    lib=_library,
)
