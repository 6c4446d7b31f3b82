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


def fit_scaler(values: Tensor, kind: Scaling) -> Scaler:
    """The scaler of `values` (rows, features): valid steps of the training part and nothing else.

    Sums run in float64, so that large offsets lose nothing.
    """
    if kind == "none" or not len(values):
        return Scaler(torch.zeros(values.shape[1]), torch.ones(values.shape[1]))
    exact = values.double()
    if kind == "standard":
        shift, scale = exact.mean(0), exact.std(0, correction=0)
    else:
        low, high = exact.amin(0), exact.amax(0)
        shift, scale = low, high - low
    constant = scale <= 1e-12 * exact.abs().amax(0)
    return Scaler(shift.float(), torch.where(constant, 1.0, scale).float())
