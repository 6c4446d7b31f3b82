"""Rows cut where their state is reset: the segments then run side by side, as rows do.

`resets` is (batch, time) bool, True where the state is reset before that step. Values in the
padding have no effect.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstm_compile.errors import InputError


class Segments(NamedTuple):
    """The segments of a batch, in the order of its rows; numpy int64, but for `lengths`.

    A row of length 0 is one segment of length 0.
    """

    lengths: Tensor  # (segments,) int64 on the CPU, steps of each
    rows: Any  # (segments,) the row that it is a part of
    starts: Any  # (segments,) the step of the row at which it begins
    last: Any  # (batch,) the segment that ends each row
    origin: Any  # (segments,) which of 2 * batch states it begins from: see `both_states`

    def first(self, time: int) -> Any:
        """The place of each segment's first step in the flattened (batch * time)."""
        return self.rows * time + self.starts


def cut_rows(lengths: Tensor, resets: Tensor) -> Segments:
    """Cut rows of `lengths` (batch,) at `resets` (batch, time), both on the CPU, time >= 1."""
    length, batch = lengths.numpy(), len(lengths)
    begins = resets.numpy() & (np.arange(resets.shape[1]) < length[:, None])
    is_set_back = begins[:, 0].copy()
    begins[:, 0] = True
    rows, starts = np.nonzero(begins)
    last = np.cumsum(begins.sum(1)) - 1
    ends = np.append(starts[1:], 0)
    ends[last] = length
    is_set_back = (starts > 0) | is_set_back[rows]
    lengths = torch.from_numpy(ends - starts)
    return Segments(lengths, rows, starts, last, rows + batch * is_set_back)


def both_states(state: Tensor, reset_state: Tensor) -> Tensor:
    """The initial states (..., batch, features) of all rows, then the states after a reset."""
    return torch.cat([state, reset_state], -2)


def begin(states: Tensor, segments: Segments) -> Tensor:
    """The initial state of each segment, (..., segments, features), out of `both_states`."""
    return states.index_select(-2, torch.from_numpy(segments.origin).to(states.device))


def check_resets(resets: Tensor | None, batch: int, time: int, *, bidirectional: bool) -> None:
    """Refuse resets that do not fit a (batch, time) input.

    Raises:
        InputError: wrong shape or dtype, or a model that also reads from the end.
    """
    if resets is None:
        return
    if bidirectional:
        raise InputError(
            "resets need a model of one direction: a direction that reads from the end cannot "
            "go on from a state; cut the sequences there, or use bidirectional=False"
        )
    if not isinstance(resets, Tensor):
        raise InputError(f"resets must be a bool tensor, got {type(resets).__name__}")
    if tuple(resets.shape) != (batch, time):
        raise InputError(
            f"resets must have shape (batch, time) = {(batch, time)}, got {tuple(resets.shape)}"
        )
    if resets.dtype != torch.bool:
        raise InputError(f"resets must be bool, got {resets.dtype}; use resets.bool()")
