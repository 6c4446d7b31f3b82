"""The input of a model: padded rows, and the inputs of a forecast beside its window."""

from typing import NamedTuple

from torch import Tensor


class Given(NamedTuple):
    """The inputs of a forecasting model beside its window; None if it does not take one."""

    known_future: Tensor | None = None  # float32 (batch, horizon, known), of the steps to forecast
    static: Tensor | None = None  # int64 (batch, statics), codes of categories
    # float32 (batch, levels), in the units of targets and past covariates
    series_location: Tensor | None = None
    series_scale: Tensor | None = None  # likewise, above 0


class Batch(NamedTuple):
    """Padded sequences."""

    # float32 (batch, time, features), or int64 tokens (batch, time); exactly 0 in the padding
    x: Tensor
    # int64 (batch,), valid steps of each; on the CPU beside data on a device, none is waited for
    lengths: Tensor
    # int64 (batch,), int64 (batch, time) with `IGNORED` in the padding, float32 (batch, targets),
    # or (batch, time or horizon, targets) with NaN in the padding and where a value is unknown
    y: Tensor
    given: Given = Given()  # for `forecast`
    unit: Tensor | None = None  # (batch, targets), of errors; None is the scale of the scaler
    # bool (batch, time): the state is set to zeros before these steps; None: never
    resets: Tensor | None = None
