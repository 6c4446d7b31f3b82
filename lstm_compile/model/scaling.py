"""Scaling of features and targets: two tensors, `shift` and `scale`, that live in the model.

Scaled values are (x - shift) / scale, in the model's graph; a constant feature has scale 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import Scaling
from lstm_compile.errors import InputError


class Scaler(NamedTuple):
    """The numbers to subtract and to divide by, (features,) each."""

    shift: Tensor
    scale: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """`x` (..., features) in scaled units."""
        return (x - self.shift) / self.scale

    def invert(self, x: Tensor) -> Tensor:
        """`x` (..., features) back in the user's units."""
        return x * self.scale + self.shift


class Moments(NamedTuple):
    """What a scaler is fitted on, float64 (features,); meaningless if `rows` is 0."""

    rows: int
    mean: Tensor
    spread: Tensor  # the sum of squares around the mean
    low: Tensor  # the smallest value
    high: Tensor  # the largest

    def merge(self, other: "Moments") -> "Moments":
        """The moments of the rows of both.

        Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances, 1979.
        """
        if not self.rows or not other.rows:
            return self if self.rows else other
        rows, apart = self.rows + other.rows, other.mean - self.mean
        share = other.rows / rows
        spread = self.spread + other.spread + apart**2 * (self.rows * share)
        low, high = self.low.minimum(other.low), self.high.maximum(other.high)
        return Moments(rows, self.mean + apart * share, spread, low, high)


def moments_of(values: Tensor) -> Moments:
    """The moments of `values` (rows, features), in float64: exact for large offsets too."""
    exact = values.double()
    if not len(exact):
        return Moments(0, *exact.new_zeros(4, exact.shape[1]))
    spread, mean = torch.var_mean(exact, 0, correction=0)
    return Moments(len(exact), mean, spread * len(exact), exact.amin(0), exact.amax(0))


def fit_scaler(values: Tensor | Moments, kind: Scaling) -> Scaler:
    """The scaler of `values` (rows, features): the valid steps of the training part alone.

    Raises:
        InputError: the values of a feature span more than float32 holds.
    """
    found = values if isinstance(values, Moments) else moments_of(values)
    width = len(found.mean)
    if kind == "none" or not found.rows:
        return Scaler(
            torch.zeros(width, device="cpu").float(), torch.ones(width, device="cpu").float()
        )
    shift, scale = found.low, found.high - found.low
    if kind == "standard":
        shift, scale = found.mean, (found.spread / found.rows).sqrt()
    if not bool(scale.float().isfinite().all()):
        raise InputError(
            f"scaling {kind}: the values of a column span more than float32 holds (3.4e38); divide "
            "them by a constant"
        )
    constant = scale <= 1e-12 * found.low.abs().maximum(found.high.abs())
    return Scaler(shift.float(), torch.where(constant, 1.0, scale).float())
