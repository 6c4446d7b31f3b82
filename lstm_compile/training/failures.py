"""What may go wrong in a step, in messages that name its rows."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lstm_compile.errors import RunError

Result = TypeVar("Result")
Place = Callable[[], tuple[str, str]]  # how messages call a batch, and what is in it

SHOWN_ROWS = 8
STEPS_PER_CHECK = {"cpu": 1, "cuda": 32}  # reading a result of a CUDA device waits for it
OUT_OF_MEMORY = ("DefaultCPUAllocator: ", "out of memory", "could not create a memory object")
ANOMALY = re.compile(r"Function '(\w+)' returned nan values")


class StepChecks:
    """Notes the steps that were skipped, and stops a training in which more than `allowed` were."""

    def __init__(self, allowed: int, note: Callable[[str], None], device: torch.device) -> None:
        self._allowed, self._note = allowed, note
        self._unread = list[tuple[Place, Tensor, Tensor]]()  # arguments of `add`
        self._most = STEPS_PER_CHECK[device.type]

    def add(self, place: Place, loss: Tensor, is_finite: Tensor, skipped: Tensor) -> None:
        """Take the result of a step; every so many steps all are read. See `read`."""
        self._unread.append((place, loss, is_finite))
        if len(self._unread) == self._most:
            self.read(skipped)

    def read(self, skipped: Tensor) -> None:
        """Read the results since the last call; int64 `skipped` counts those of the training.

        Raises:
            RunError: more than allowed; names the rows.
        """
        bad = [(place, loss) for place, loss, is_finite in self._unread if not is_finite]
        self._unread.clear()
        before = int(skipped) - len(bad) if bad else 0
        for count, (place, loss) in enumerate(bad, before + 1):
            batch, rows = place()
            what = f"the loss of {batch} is {float(loss)} ({rows})"
            if loss.isfinite():
                what = f"the gradients of {batch} are not finite ({rows})"
            if count > self._allowed:
                raise RunError(
                    f"{what}; look at their values, or lower --learning-rate"
                    + (f" ({self._allowed} before it were skipped)" if self._allowed else "")
                )
            self._note(f"{what}; skipped, {count} of at most {self._allowed}")


def explain_failure(
    step: Callable[[], Result], place: Place, try_step: Callable[[int], object], size: int
) -> Result:
    """Take a step on `size` rows; if it fails, say on which rows and what helps.

    `try_step` tries a step on a number of rows, to find one that fits in memory.

    Raises:
        RunError: an anomaly was found, or memory does not suffice.
    """
    try:
        return step()
    except (RuntimeError, MemoryError) as error:
        if found := ANOMALY.search(str(error)):
            batch, rows = place()
            raise RunError(
                f"the gradient of {found[1]} in {batch} is nan ({rows}); look at their values, or "
                "lower --learning-rate"
            ) from error
        if not is_out_of_memory(error):
            raise
    # outside of `except`, which keeps alive what the step had allocated
    raise RunError(f"{place()[0]}: not enough memory for {size} rows; {_advice(try_step, size)}")


def _advice(try_step: Callable[[int], object], size: int) -> str:
    while size := size // 2:
        if _does_fit(try_step, size):
            return f"{size} of the longest rows do fit: use --batch-size {size}"
    return "not even one row fits: lower --hidden-size or --num-layers, or shorten the rows"


def _does_fit(try_step: Callable[[int], object], size: int) -> bool:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        try_step(size)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, on the CPU or a CUDA device."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(text in str(error) for text in OUT_OF_MEMORY)


def list_rows(rows: Tensor) -> str:
    """The numbers of rows in a message, cut after `SHOWN_ROWS`."""
    shown = ", ".join(map(str, rows[:SHOWN_ROWS].tolist()))
    return shown + (f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else "")
