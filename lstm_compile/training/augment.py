"""Augmentation of training batches: pure functions of a batch and a generator.

Batches are on any device; generators are on the CPU, so that all devices have the same random
numbers. Padding stays 0.
"""

import torch
from torch import Generator, Tensor

from lstm_compile.data.sequences import ignored
from lstm_compile.model.batch import Batch
from lstm_compile.model.scaling import Scaler
from lstm_compile.training.settings import TrainingConfig


def augment(batch: Batch, scaler: Scaler, training: TrainingConfig, generator: Generator) -> Batch:
    """Crop, add noise, drop features, in this order; what is off draws no random number."""
    if training.time_crop:
        batch = crop_time(batch, training.time_crop, generator)
    if training.noise:
        batch = add_noise(batch, training.noise, scaler, generator)
    if training.feature_dropout:
        batch = drop_features(batch, training.feature_dropout, scaler, generator)
    return batch


def crop_time(batch: Batch, largest: float, generator: Generator) -> Batch:
    """Keep one random window of each sequence, moved to its front; the shape of `x` stays.

    At most the share `largest` of a sequence's steps, 0 to 1, rounded down to whole steps, is cut
    away. All numbers up to it are equally likely, and all places of the window. A sequence keeps at
    least one step.
    """
    rows, time = batch.x.shape[:2]
    draws = torch.rand(2, rows, dtype=torch.float64, generator=generator, device="cpu").to(
        batch.lengths.device
    )
    most = (batch.lengths.double() * largest).long().minimum((batch.lengths - 1).clamp(min=0))
    cut = _up_to(most, draws[0])
    start, lengths = _up_to(cut, draws[1]).to(batch.x.device), batch.lengths - cut
    steps = torch.arange(time, device=batch.x.device)
    index = (start[:, None] + steps).clamp(max=time - 1)
    x = batch.x.gather(1, _across(index, batch.x))
    if batch.y.dim() == 2 + batch.y.is_floating_point():  # a label a step
        y = batch.y.gather(1, _across(index, batch.y))
        is_padding = _across(steps >= lengths[:, None].to(y.device), y)
        batch = batch._replace(y=y.masked_fill(is_padding, ignored(y)))
    return _padded(batch._replace(lengths=lengths), x)


def add_noise(batch: Batch, deviation: float, scaler: Scaler, generator: Generator) -> Batch:
    """Add Gaussian noise to every valid value.

    `deviation` is in units of each feature's `scaler.scale`, which is 1 without scaling.
    """
    noise = torch.randn(batch.x.shape, dtype=batch.x.dtype, generator=generator, device="cpu")
    return _padded(batch, batch.x + noise.to(batch.x.device) * (deviation * scaler.scale))


def drop_features(batch: Batch, probability: float, scaler: Scaler, generator: Generator) -> Batch:
    """Set whole features of random sequences to `scaler.shift`, which the LSTM sees as 0.

    That is the mean for standard scaling, the minimum for minmax, 0 without scaling. Unlike in
    dropout, the other features are not scaled up: the sequence shall look like one without it.
    Columns with a scale of 0 are codes, and stay.
    """
    draws = torch.rand(batch.x.shape[0], 1, batch.x.shape[2], generator=generator, device="cpu")
    is_dropped = (draws < probability).to(batch.x.device) & (scaler.scale > 0)
    return _padded(batch, torch.where(is_dropped, scaler.shift, batch.x))


def _up_to(most: Tensor, uniform: Tensor) -> Tensor:
    """Whole numbers from 0 to `most`, all equally likely; int64 like `most`."""
    return (uniform * (most + 1)).long().minimum(most)


def _padded(batch: Batch, x: Tensor) -> Batch:
    is_padding = torch.arange(x.shape[1], device=x.device) >= batch.lengths[:, None].to(x.device)
    return batch._replace(x=x.masked_fill(_across(is_padding, x), 0))


def _across(steps: Tensor, x: Tensor) -> Tensor:
    """Expand values of steps, (rows, time), to the features of `x`; tokens have no features."""
    return steps[..., None].expand_as(x) if x.dim() == 3 else steps
