"""Scaling of features and targets: two tensors, `shift` and `scale`, that live in the model.

Scaled values are (x - shift) / scale, in the model's graph; a constant feature has scale 1.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import Scaling


class Scaler(NamedTuple):
    """What is subtracted and what is divided by, (features,) each."""

    shift: Tensor
    scale: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """`x` (..., features) in scaled units."""
        return (x - self.shift) / self.scale

    def invert(self, x: Tensor) -> Tensor:
        """`x` (..., features) back in the user's units."""
        return x * self.scale + self.shift


class Moments(NamedTuple):
    """What a scaler is fitted on, float64 (features,) each; nothing where `count` is 0.

    Attributes:
        count: rows.
        mean: their mean.
        spread: the sum of squares around it.
        low: the smallest value.
        high: the largest.
    """

    count: int
    mean: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor

    def merge(self, other: "Moments") -> "Moments":
        """Those of the rows of both.

        Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances, 1979.
        """
        if not self.count or not other.count:
            return self if self.count else other
        count, apart = self.count + other.count, other.mean - self.mean
        share = other.count / count
        spread = self.spread + other.spread + apart**2 * (self.count * share)
        low, high = self.low.minimum(other.low), self.high.maximum(other.high)
        return Moments(count, self.mean + apart * share, spread, low, high)


def moments_of(values: Tensor) -> Moments:
    """The moments of `values` (rows, features), in float64, so that large offsets lose nothing."""
    exact = values.double()
    if not len(exact):
        return Moments(0, *exact.new_zeros(4, exact.shape[1]))
    spread, mean = torch.var_mean(exact, 0, correction=0)
    return Moments(len(exact), mean, spread * len(exact), exact.amin(0), exact.amax(0))


def fit_scaler(values: Tensor | Moments, kind: Scaling) -> Scaler:
    """The scaler of `values` (rows, features): valid steps of the training part, nothing else."""
    found = values if isinstance(values, Moments) else moments_of(values)
    width = len(found.mean)
    if kind == "none" or not found.count:
        return Scaler(torch.zeros(width), torch.ones(width))
    shift, scale = found.low, found.high - found.low
    if kind == "standard":
        shift, scale = found.mean, (found.spread / found.count).sqrt()
    constant = scale <= 1e-12 * found.low.abs().maximum(found.high.abs())
    return Scaler(shift.float(), torch.where(constant, 1.0, scale).float())
