"""The input of a model: padded rows, and the inputs of a forecast beside its window."""

from typing import NamedTuple

from torch import Tensor


class Given(NamedTuple):
    """The inputs of a forecasting model beside its window; None if it does not take one.

    Attributes:
        known_future: float32 (batch, horizon, known), covariates of the steps to forecast.
        static: int64 (batch, statics), codes of categories.
        series_location: float32 (batch, levels), in the units of targets and past covariates.
        series_scale: float32 (batch, levels), above 0.
    """

    known_future: Tensor | None = None
    static: Tensor | None = None
    series_location: Tensor | None = None
    series_scale: Tensor | None = None


class Batch(NamedTuple):
    """Padded sequences.

    Attributes:
        x: float32 (batch, time, features), or int64 tokens (batch, time); exactly 0 from each
            sequence's length on.
        lengths: int64 (batch,), valid steps of each.
        y: int64 (batch,), int64 (batch, time) with `IGNORED` in the padding, float32 (batch,
            targets), or (batch, horizon, targets) with NaN where a value is unknown.
        given: for `forecast`.
        unit: (batch, targets), the unit of errors; None is the scale of the scaler.
        resets: bool (batch, time): the state is set to zeros before these steps; None: never.
    """

    x: Tensor
    lengths: Tensor
    y: Tensor
    given: Given = Given()
    unit: Tensor | None = None
    resets: Tensor | None = None
