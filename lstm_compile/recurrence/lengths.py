"""Sequences of different lengths in one padded tensor: masks, reversal, the last valid step.

Everywhere, `lengths` is (batch,) int64, a sequence's valid steps come first, and None means that
every step of every sequence is valid.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lstm_compile.errors import InputError

WHOLE = (torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32)


def valid_mask(lengths: Tensor, time: int) -> Tensor:
    """(batch, time) bool, True where the step lies within its sequence."""
    return torch.arange(time, device=lengths.device) < lengths.unsqueeze(1)


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """`x` (batch, time, features) with exact zeros in place of all padding."""
    if lengths is None:
        return x
    return torch.where(valid_mask(lengths, x.shape[1])[..., None], x, 0.0)


def reverse_within_length(x: Tensor, lengths: Tensor | None) -> Tensor:
    """`x` (batch, time, features) with each row's valid steps reversed and its padding in place."""
    if lengths is None:
        return x.flip(1)
    batch, time = x.shape[:2]
    step = torch.arange(time, device=x.device)
    source = torch.where(step < lengths[:, None], lengths[:, None] - 1 - step, step)
    flat = source + time * torch.arange(batch, device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, flat.flatten()).view(x.shape)


# what `lstm` takes: a tensor of whole numbers on any device, a NumPy array or a sequence of ints
Lengths = Tensor | Sequence[int] | Any


def as_lengths(lengths: Lengths, batch: int, time: int) -> Tensor:
    """Lengths as int64 (batch,), a tensor on its device, all else on the CPU.

    Raises:
        InputError: what `check_lengths` refuses, or no whole numbers.
    """
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths, device="cpu")
            lengths = lengths if lengths.numel() else lengths.long()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"lengths must be {batch} whole numbers, got {lengths!r:.60}"
            ) from error
    if lengths.dtype in WHOLE:
        lengths = lengths.long()
    check_lengths(lengths, batch, time)
    return lengths


def is_abstract(x: Tensor) -> bool:
    """Whether a tensor has a shape but no numbers: on "meta", or of a FakeTensorMode."""
    return x.is_meta or (type(x) is not Tensor and isinstance(x, FakeTensor))


def check_lengths(lengths: Tensor | None, batch: int, time: int) -> None:
    """Refuse lengths that do not fit a (batch, time) input.

    Values are read only where that is free, on the CPU; on a device they act as if clamped to
    [0, time].

    Raises:
        InputError: wrong shape or dtype, or a length outside [0, time].
    """
    if lengths is None:
        return
    if tuple(lengths.shape) != (batch,):
        raise InputError(f"lengths must have shape ({batch},), got {tuple(lengths.shape)}")
    if lengths.dtype != torch.int64:
        raise InputError(f"lengths must be int64, got {lengths.dtype}; use lengths.long()")
    if torch.compiler.is_compiling() or lengths.device.type != "cpu" or is_abstract(lengths):
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        return
    least, most = extremes(lengths) if batch else (0, 0)
    check_range(least, most, time)


def check_range(least: int, most: int, time: int) -> None:
    """Refuse lengths from `least` to `most` that do not fit `time` steps.

    Raises:
        InputError: a length outside [0, time].
    """
    if least < 0 or most > time:
        raise InputError(
            f"lengths must lie in [0, {time}], the time steps of x; got {least} to {most}"
        )


def extremes(lengths: Tensor) -> tuple[int, int]:
    """The smallest and the largest of the lengths, at least one of them, on the CPU."""
    if torch._C._are_functorch_transforms_active():
        return int(lengths.min()), int(lengths.max())
    values = lengths.tolist()  # on so few numbers plain Python is the fastest
    return min(values), max(values)
