"""Sequences of different lengths in one flat tensor, and padded batches of them."""

import hashlib
import json
from dataclasses import dataclass, replace
from math import nan
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lstm_compile.data.schema import Categories, Schema, Vocabulary, numbered
from lstm_compile.data.tables.precision import check_columns_rounding
from lstm_compile.errors import InputError
from lstm_compile.model.batch import Batch
from lstm_compile.recurrence.lengths import check_lengths, valid_mask
from lstm_compile.tasks import fitting_task

if TYPE_CHECKING:
    from lstm_compile.data.tables.roles import FilledGaps, Roles

IGNORED = -100  # the label of padded steps, as in torch's cross_entropy


@dataclass(frozen=True, eq=False)
class Sequences:
    """Labelled sequences, one after the other; sequence i is x[offsets[i]:offsets[i + 1]].

    Attributes:
        x: float32 (total_steps, features), finite, in the file's own units; of text its tokens,
            uint8 or int32 (total_steps,).
        offsets: int64 (sequences + 1,), from 0 to total_steps, never falling.
        y: int64 (sequences,) indices into `classes`, or float32 (sequences, targets); where
            `per_step` says so, with total_steps in place of sequences.
        classes: one label a class code; empty for regression.
        targets: one name a target; empty for classification.
        roles: the columns of the long table that these come from, or None.
        per_step: whether every step has a label of its own.
        vocabulary: of text, else None.
        categories: of the last features, whose values are codes; None if there are none.
    """

    x: Tensor
    offsets: Tensor
    y: Tensor
    features: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[str, ...]
    roles: "Roles | FilledGaps | None" = None
    per_step: bool = False
    vocabulary: Vocabulary | None = None
    categories: Categories | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """Steps of each sequence, int64 (sequences,)."""
        return self.offsets.diff()

    @property
    def task(self) -> str:
        """The first task that fits the labels, such as `classify`."""
        return self.task_like(None)

    def task_like(self, wanted: str | None) -> str:
        """The wanted task where it fits the labels, else the first that does."""
        has_classes, per_step = bool(self.classes), self.per_step
        return fitting_task(wanted, is_whole=True, has_classes=has_classes, per_step=per_step)

    @property
    def strata(self) -> Tensor:
        """The classes or targets for a stratified split; all equal where steps have labels."""
        return torch.zeros(len(self), device="cpu") if self.per_step else self.y

    @property
    def schema(self) -> Schema:
        """The names, as a trained model carries them."""
        names = self.features, self.classes, self.targets
        return Schema(*names, vocabulary=self.vocabulary, categories=self.categories)

    def select(self, indices: Tensor) -> "Sequences":
        """Copy the sequences at `indices`, int64 (count,), in that order; repeats are allowed."""
        offsets = torch.nn.functional.pad(self.lengths[indices].cumsum(0), (1, 0))
        steps = self.steps_of(indices)
        y = self.y[steps if self.per_step else indices]
        return replace(self, x=self.x[steps], offsets=offsets, y=y)

    def steps_of(self, indices: Tensor) -> Tensor:
        """The rows of `x` that hold the steps of the sequences at `indices`, in their order."""
        lengths = self.lengths[indices]
        ends = lengths.cumsum(0)
        shifts = self.offsets[:-1][indices] - (ends - lengths)
        steps = torch.arange(int(lengths.sum()), device=lengths.device)
        return steps + shifts.repeat_interleave(lengths)

    def gather(self, indices: Tensor, time: int | None = None) -> Batch:
        """Cut a padded batch; see `gather`."""
        return gather(self, indices, time)

    @property
    def unit(self) -> None:
        """Errors are measured in the scaler's unit."""
        return

    def to(self, device: torch.device | str) -> "Sequences":
        """The same sequences with all tensors on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("x", "offsets", "y")}
        return replace(self, **moved)


def gather(sequences: Sequences, indices: Tensor, time: int | None = None) -> Batch:
    """Cut a padded batch out of the flat tensor, by indexing alone.

    Args:
        sequences: on any device.
        indices: int64 (batch,), on the same device; repeats are allowed.
        time: steps to pad to, at least the batch's longest; None takes the longest, which waits
            for the device. A batch without any step is padded to one.

    Returns:
        The batch, on the same device.
    """
    starts = sequences.offsets[indices]
    lengths = sequences.offsets[indices + 1] - starts
    if time is None:
        time = max(1, int(lengths.max())) if len(indices) else 1
    steps = torch.arange(time, device=indices.device)
    is_valid = steps < lengths[:, None]
    index = starts[:, None] + steps
    x = _rows(sequences.x, index, is_valid, 0)
    x = x if x.is_floating_point() else x.long()
    if sequences.per_step:
        return Batch(x, lengths, _rows(sequences.y, index, is_valid, ignored(sequences.y)))
    return Batch(x, lengths, sequences.y[indices])


def ignored(y: Tensor) -> float:
    """The label of padded steps: `IGNORED` for classes, NaN for numbers."""
    return nan if y.is_floating_point() else IGNORED


def fingerprint(sequences: Sequences) -> str:
    """The sha256 of the values, their shapes and the names, as 64 hexadecimal digits."""
    tensors = (sequences.x, sequences.offsets, sequences.y)
    names = (sequences.features, sequences.classes, sequences.targets)
    digest = hashlib.sha256(json.dumps([names, [tuple(t.shape) for t in tensors]]).encode())
    if sequences.vocabulary or sequences.categories:
        digest.update(sequences.schema.to_json().encode())
    for tensor in tensors:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _rows(x: Tensor, index: Tensor, is_valid: Tensor, padding: float) -> Tensor:
    if len(x) == 0:  # no row that padding could point to
        return x.new_full((*index.shape, *x.shape[1:]), padding)
    rows = x[torch.where(is_valid, index, 0)]
    return rows.masked_fill(~is_valid.view(*is_valid.shape, *[1] * (x.dim() - 1)), padding)


def from_padded(x: Tensor, y: Tensor, lengths: Tensor | None = None) -> Sequences:
    """Sequences to train on, from padded tensors; features, classes and targets are numbered.

    Args:
        x: (sequences, time, features), floating.
        y: (sequences,) int64 class codes from 0, or floating (sequences, targets).
        lengths: (sequences,) int64 on the CPU, or None where every step is valid; the values in
            the padding are ignored.

    Raises:
        InputError: shapes or dtypes that do not fit together, or values that are not finite.
    """
    _check_padded(x, y)
    check_lengths(lengths, len(x), x.shape[1])
    count = x.new_full((len(x),), x.shape[1], dtype=torch.int64) if lengths is None else lengths
    exact = x[valid_mask(count, x.shape[1]).to(x.device)]
    steps = exact.float()
    if not bool(steps.isfinite().all()):
        raise InputError(
            "x must be finite in every valid step, as float32 too; fill gaps before training"
        )
    offsets = torch.nn.functional.pad(count.cumsum(0), (1, 0)).to(x.device)
    features = numbered("feature", x.shape[2])
    _check_rounding("x", features, exact)
    if y.is_floating_point():
        _check_rounding("y", numbered("target", y.shape[1]), y)
        return Sequences(steps, offsets, y.float(), features, (), numbered("target", y.shape[1]))
    classes = tuple(map(str, range(int(y.max()) + 1)))
    return Sequences(steps, offsets, y, features, classes, ())


def _check_rounding(place: str, names: tuple[str, ...], columns: Tensor) -> None:
    if columns.dtype == torch.float64:
        check_columns_rounding(place, names, columns.numpy(force=True))


def _check_padded(x: Tensor, y: Tensor) -> None:
    if x.dim() != 3 or not x.is_floating_point() or len(x) == 0:
        raise InputError(
            "x must be floating, (sequences, time, features), with a sequence at least; "
            f"got {x.dtype} {tuple(x.shape)}"
        )
    expected = 2 if y.is_floating_point() else 1
    if y.dim() != expected or len(y) != len(x):
        raise InputError(
            f"y must be int64 classes ({len(x)},) or floating targets ({len(x)}, targets); "
            f"got {y.dtype} {tuple(y.shape)}"
        )
    if not y.is_floating_point() and (y.dtype != torch.int64 or bool((y < 0).any())):
        raise InputError(
            f"classes in y must be int64 and count from 0; got {y.dtype} {y.tolist()[:3]}"
        )
    if y.is_floating_point() and not bool(y.float().isfinite().all()):
        raise InputError("targets in y must be finite float32 numbers; leave such sequences out")
