"""What may go wrong in a step, said with the rows that it happened to."""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lstm_compile.errors import RunError

Result = TypeVar("Result")

SHOWN_ROWS = 8
OUT_OF_MEMORY = ("DefaultCPUAllocator: ", "out of memory", "could not create a memory object")
ANOMALY = re.compile(r"Function '(\w+)' returned nan values")


class Taken(NamedTuple):
    """A step that was taken; nobody has asked its device yet how it went."""

    where: Callable[[], tuple[str, str]]  # names the batch, and its rows
    loss: Tensor
    is_finite: Tensor


def look_at(
    unread: list[Taken], skipped: Tensor, allowed: int, note: Callable[[str], None]
) -> None:
    """Tell of steps that were skipped, and stop where they are too many; empties `unread`.

    Args:
        unread: the last steps.
        skipped: int64, how many steps of the run were skipped, those of `unread` counted.
        allowed: how many may be.
        note: called with a line for each that was.

    Raises:
        RunError: more were; names the rows.
    """
    bad = [step for step in unread if not step.is_finite]
    unread.clear()
    before = int(skipped) - len(bad) if bad else 0
    for count, step in enumerate(bad, before + 1):
        (batch, rows), loss = step.where(), float(step.loss)
        what = f"the loss of {batch} is {loss} ({rows})"
        if math.isfinite(loss):
            what = f"the gradients of {batch} are not finite ({rows})"
        if count > allowed:
            raise RunError(
                f"{what}; look at their values, or lower --learning-rate"
                + (f" ({allowed} before it were skipped)" if allowed else "")
            )
        note(f"{what}; skipped, {count} of at most {allowed}")


def attempted(
    step: Callable[[], Result],
    where: Callable[[], tuple[str, str]],
    fits: Callable[[int], object],
    sizes: Sequence[int],
) -> Result:
    """Take a step; where it fails, say on which rows and what helps.

    Args:
        step: what to do.
        where: names the batch, and its rows.
        fits: tries a step on so many rows.
        sizes: how many rows the step had, and the fewer to try, falling.

    Raises:
        RunError: an anomaly was found, or memory did not suffice.
    """
    try:
        return step()
    except (RuntimeError, MemoryError) as error:
        if found := ANOMALY.search(str(error)):
            batch, rows = where()
            raise RunError(
                f"the gradient of {found[1]} in {batch} is nan ({rows}); look at their values, or "
                "lower --learning-rate"
            ) from error
        if not is_out_of_memory(error):
            raise
    # outside of `except`, which keeps alive what the step had allocated
    raise RunError(f"{where()[0]}: not enough memory for {sizes[0]} rows; {_advice(fits, sizes)}")


def _advice(fits: Callable[[int], object], sizes: Sequence[int]) -> str:
    for size in sizes[1:]:
        if _does_fit(fits, size):
            return f"{size} of the longest rows do fit: use --batch-size {size}"
    return "not even one row fits: lower --hidden-size or --num-layers, or shorten the rows"


def _does_fit(fits: Callable[[int], object], size: int) -> bool:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        fits(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, on the CPU or a CUDA device."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(text in str(error) for text in OUT_OF_MEMORY)


def halves(size: int) -> list[int]:
    """`size`, half of it and so on down to 1, rounded down."""
    return [size >> shift for shift in range(size.bit_length())]


def listed(rows: Tensor) -> str:
    """Numbers of rows as a person reads them, cut after `SHOWN_ROWS`."""
    shown = ", ".join(map(str, rows[:SHOWN_ROWS].tolist()))
    return shown + (f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else "")
