"""Data that a program holds as padded tensors already."""

import torch
from torch import Tensor

from lstm_compile.data.schema import numbered
from lstm_compile.data.sequences import Sequences
from lstm_compile.errors import InputError
from lstm_compile.recurrence.lengths import check_lengths, valid_mask


def from_padded(x: Tensor, y: Tensor, lengths: Tensor | None = None) -> Sequences:
    """Sequences to train on, from padded tensors; features, classes and targets are numbered.

    Args:
        x: (sequences, time, features), floating.
        y: (sequences,) int64 class codes from 0, or floating (sequences, targets).
        lengths: (sequences,) int64 on the CPU, or None where every step is valid; what stands in
            the padding is not looked at.

    Raises:
        InputError: shapes or dtypes that do not fit together, or values that are not finite.
    """
    _check(x, y)
    check_lengths(lengths, len(x), x.shape[1])
    count = x.new_full((len(x),), x.shape[1], dtype=torch.int64) if lengths is None else lengths
    steps = x[valid_mask(count, x.shape[1]).to(x.device)].float()
    if not bool(steps.isfinite().all()):
        raise InputError("x must be finite in every valid step; fill gaps before training")
    offsets = torch.nn.functional.pad(count.cumsum(0), (1, 0)).to(x.device)
    features = numbered("feature", x.shape[2])
    if y.is_floating_point():
        return Sequences(steps, offsets, y.float(), features, (), numbered("target", y.shape[1]))
    classes = tuple(str(code) for code in range(int(y.max()) + 1))
    return Sequences(steps, offsets, y, features, classes, ())


def _check(x: Tensor, y: Tensor) -> None:
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
    if y.is_floating_point() and not bool(y.isfinite().all()):
        raise InputError("targets in y must be finite; leave such sequences out")
