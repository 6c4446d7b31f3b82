"""Sequences of different lengths in one flat tensor, and padded batches cut from them."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import Task
from lstm_compile.data.roles import Roles
from lstm_compile.data.schema import Schema


@dataclass(frozen=True, eq=False)
class Sequences:
    """Labelled sequences, one after the other; sequence i is x[offsets[i]:offsets[i + 1]].

    Attributes:
        x: float32 (total_steps, features), finite, in the file's own units.
        offsets: int64 (sequences + 1,), from 0 to total_steps, never falling.
        y: int64 (sequences,) indices into `classes`, or float32 (sequences, targets).
        features: one name a feature.
        classes: one label a class code; empty for regression.
        targets: one name a target; empty for classification.
        roles: the columns of the long table that these come from, or None.
    """

    x: Tensor
    offsets: Tensor
    y: Tensor
    features: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    roles: Roles | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Steps of each sequence, int64 (sequences,)."""
        return self.offsets.diff()

    @property
    def task(self) -> Task:
        """`classify`, or `regress` where there are no classes."""
        return "classify" if self.classes else "regress"

    @property
    def schema(self) -> Schema:
        """The names, as a trained model carries them."""
        return Schema(self.features, self.classes, self.targets)

    def select(self, indices: Tensor) -> "Sequences":
        """Copy the sequences at `indices`, int64 (count,), in that order; repeats are allowed."""
        lengths = self.lengths[indices]
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        shifts = self.offsets[:-1][indices] - offsets[:-1]
        steps = torch.arange(int(offsets[-1]), device=offsets.device)
        x = self.x[steps + shifts.repeat_interleave(lengths)]
        return replace(self, x=x, offsets=offsets, y=self.y[indices])

    def gather(self, indices: Tensor, time: int | None = None) -> "Batch":
        """Cut a padded batch; see `gather`."""
        return gather(self, indices, time)

    @property
    def unit(self) -> None:
        """Errors are measured in the scaler's unit."""
        return

    def to(self, device: torch.device | str) -> "Sequences":
        """Give the same sequences with all tensors on `device`."""
        return replace(
            self, x=self.x.to(device), offsets=self.offsets.to(device), y=self.y.to(device)
        )


class Given(NamedTuple):
    """What a forecasting model may be given beside its window; None where it takes none.

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
        x: float32 (batch, time, features); exactly 0 from each sequence's length on.
        lengths: int64 (batch,), valid steps of each.
        y: int64 (batch,), float32 (batch, targets), or (batch, horizon, targets) with NaN where
            nobody knows.
        given: for `forecast`.
        unit: (batch, targets), what errors are measured in; None is the scaler's unit.
    """

    x: Tensor
    lengths: Tensor
    y: Tensor
    given: Given = Given()
    unit: Tensor | None = None


def gather(sequences: Sequences, indices: Tensor, time: int | None = None) -> Batch:
    """Cut a padded batch out of the flat tensor, by indexing alone.

    Args:
        sequences: on any device.
        indices: int64 (batch,), on the same device; repeats are allowed.
        time: steps to pad to, at least the batch's longest; None looks the longest up, which
            waits for the device. A batch without any step is padded to one.

    Returns:
        The batch, on the same device.
    """
    starts = sequences.offsets[indices]
    lengths = sequences.offsets[indices + 1] - starts
    if time is None:
        time = max(1, int(lengths.max())) if len(indices) else 1
    steps = torch.arange(time, device=indices.device)
    is_valid = steps < lengths[:, None]
    x = _rows(sequences.x, starts[:, None] + steps, is_valid)
    return Batch(x, lengths, sequences.y[indices])


def fingerprint(sequences: Sequences) -> str:
    """Compute the sha256 of the values, their shapes and the names, as 64 hexadecimal digits."""
    tensors = (sequences.x, sequences.offsets, sequences.y)
    names = (sequences.features, sequences.classes, sequences.targets)
    digest = hashlib.sha256(json.dumps([names, [tuple(t.shape) for t in tensors]]).encode())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _rows(x: Tensor, index: Tensor, is_valid: Tensor) -> Tensor:
    if len(x) == 0:  # no row that padding could point to
        return x.new_zeros(*index.shape, x.shape[1])
    rows = x[torch.where(is_valid, index, 0)]
    return rows.masked_fill(~is_valid[..., None], 0.0)
