"""Sequences of different lengths in one padded tensor: masks, reversal, the last valid step.

Everywhere, `lengths` is (batch,) int64, a sequence's valid steps come first, and None means that
every step of every sequence is valid.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lstm_compile.errors import InputError

WHOLE = (
    *(torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


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


# what `lstm` takes: a tensor of whole numbers on any device, an array, or a sequence of ints
Lengths = Tensor | Sequence[int] | Any


def as_lengths(lengths: Lengths, x: Tensor) -> Tensor:
    """Lengths of the rows of `x` as int64 (batch,), a tensor on its device, all else on the CPU.

    Raises:
        InputError: what `check_lengths` refuses, or no whole numbers.
    """
    batch, time = x.shape[:2]
    if not isinstance(lengths, Tensor):
        lengths = _on_the_cpu(lengths, batch)
    elif lengths.layout is not torch.strided:
        raise InputError(f"lengths must be dense, got {lengths.layout}; use lengths.to_dense()")
    if lengths.dtype in WHOLE:
        lengths = lengths.long()
    check_lengths(lengths, batch, time)
    check_numbers("lengths", lengths, x)
    return lengths


def _on_the_cpu(lengths: Any, batch: int) -> Tensor:
    """A list, an array of any layout, or what NumPy makes an array of, as int64.

    Raises:
        InputError: it holds anything but whole numbers.
    """
    try:
        if isinstance(lengths, Sequence) and not isinstance(lengths, str | bytes):
            return torch.tensor([_whole(each) for each in lengths], dtype=torch.int64, device="cpu")
        if torch.compiler.is_compiling():
            return torch.as_tensor(lengths, device="cpu")
        if np.ma.is_masked(lengths):
            raise TypeError("a masked number is none")
        array = np.asarray(lengths)
        if array.dtype == object:  # an error, if it has no rows
            array = np.array([_whole(each) for each in array])
        if array.size and array.dtype.char not in np.typecodes["AllInteger"]:
            raise TypeError(array.dtype)
        # a copy, as torch takes no negative strides and no foreign byte order
        return torch.from_numpy(array.astype(np.int64))
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        kind = getattr(lengths, "dtype", type(lengths).__name__)
        found = " ".join(repr(lengths).split())
        raise InputError(
            f"lengths must be {batch} whole numbers, got {found:.60} ({kind})"
        ) from error


def _whole(number: Any) -> int:
    """A whole number of any type, a tensor of one number included; True is none."""
    if isinstance(number, bool) or (isinstance(number, Tensor) and number.dtype == torch.bool):
        raise TypeError(number)
    return operator.index(number)


def is_abstract(x: Tensor) -> bool:
    """Whether a tensor has a shape but no numbers: on "meta", or of a FakeTensorMode."""
    return x.is_meta or (type(x) is not Tensor and isinstance(x, FakeTensor))


def check_numbers(name: str, given: Tensor, x: Tensor) -> None:
    """Refuse a tensor without numbers beside an `x` that has some.

    Raises:
        InputError: `given` is on "meta" or fake, `x` is not.
    """
    if not torch.compiler.is_compiling() and is_abstract(given) and not is_abstract(x):
        found = f"{type(given).__name__} on {given.device}"
        raise InputError(f"{name} must hold numbers as x on {x.device} does, got {found}")


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
        advice = "; use lengths.long() if they count steps" * lengths.is_floating_point()
        raise InputError(f"lengths must be int64, got {lengths.dtype}{advice}")
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
