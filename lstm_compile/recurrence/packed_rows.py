"""The layout that orders rows by length: each span of time holds only the rows still active."""

# ruff: noqa: D102 (the methods are those of Layout)

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstm_compile.recurrence.layout import Layout, Span, move
from lstm_compile.recurrence.resets import Segments

# from the number of active rows at each step, up to the end of the longest row, to spans
# (start, steps); the last may reach beyond it
CutTime = Callable[[list[int]], list[tuple[int, int]]]


@dataclass(slots=True)
class PackedRows(Layout):
    """Rows from the longest to the shortest."""

    source: Tensor  # (packed,) int64, where each packed step lies in the flat (batch * time)
    target: Tensor  # (batch * time,) int64, where each step lies in the packed tensor
    outside: Tensor | None  # int64, which of (batch * time) are padding; None: none
    order: Tensor | None  # (rows,) int64, the batch's row that each packed row is; None: its own
    rank: Tensor | None  # (batch,) int64, where each row of the batch is packed; None: its own
    shape: tuple[int, int]  # (batch, time)

    def pack(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        return move(flat, self.source, self.blank, self.target, self.outside)

    def unpack(self, packed: Tensor) -> Tensor:
        flat = move(packed, self.target, self.outside, self.source, self.blank)
        return flat.view(*self.shape, packed.shape[-1])

    def arrange(self, state: Tensor) -> Tensor:
        return state if self.order is None else state.index_select(-2, self.order)

    def restore(self, state: Tensor) -> Tensor:
        return state if self.rank is None else state.index_select(-2, self.rank)


def pack_rows(
    lengths: Tensor,
    time: int,
    device: torch.device,
    cut: CutTime,
    *,
    min_rows: int = 1,
    mirror: bool = False,
    segments: Segments | None = None,
) -> PackedRows:
    """Lay out one batch. In numpy, whose calls cost a fraction of torch's on so few numbers.

    Args:
        lengths: int64 (batch,) on the CPU, batch >= 1, at least one of them above 0; with
            `segments` their lengths.
        time: padded steps of the batch.
        device: of the data.
        cut: where to cut time into spans.
        min_rows: spans with fewer active rows run this many; the surplus rows are padding.
        mirror: whether the packed steps will be reversed.
        segments: parts of rows, which then run side by side in place of the rows. `arrange` takes
            one state for each segment, `restore` gives the state after each row's last segment.
    """
    length = lengths.numpy()
    counts = (len(length) - np.cumsum(np.bincount(length))[:-1]).tolist()
    spans = tuple(Span(start, steps, max(counts[start], min_rows)) for start, steps in cut(counts))
    begins = _begins(spans)
    if len(spans) == 1 and spans[0].rows == len(length):
        order = rank = np.arange(len(length))
        ordered, own = length, True
    else:
        order, rank, ordered = _ordered(length, min_rows)
        own = False
    first = order * time if segments is None else segments.first(time)[order]
    source, padding, opposite = _sources(begins, ordered, first, mirror)
    if segments is None:
        target, outside = _targets(begins, length, rank, time)
    else:
        target, outside = _targets_of_segments(source, padding, len(segments.last) * time)
        length, rank = length[segments.last], rank[segments.last]
    source[padding] = 0
    final = np.where(length > 0, begins[np.maximum(length - 1, 0)] + rank, 0)
    to = partial(_to, device=device)
    return PackedRows(
        spans,
        to(padding[:, None]),
        to(_where(padding)),
        to(opposite),
        to(final),
        None if length.all() else to((length == 0)[:, None]),
        to(source),
        to(target),
        to(_where(outside)),
        to(None if own else order),
        to(None if own and segments is None else rank),
        (len(length), time),
    )


def _ordered(length: Any, min_rows: int) -> tuple[Any, Any, Any]:
    """Rows from the longest to the shortest: which each is, where each is, how long each is."""
    order = np.argsort(-length, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    ordered = length[order]
    if missing := max(0, min_rows - len(length)):
        order, ordered = np.pad(order, (0, missing)), np.pad(ordered, (0, missing))
    return order, rank, ordered


def _to(array: Any, device: torch.device) -> Any:
    return None if array is None else torch.from_numpy(array).to(device, non_blocking=True)


def _where(mask: Any) -> Any:
    return np.flatnonzero(mask) if mask.any() else None


def _begins(spans: Sequence[Span]) -> Any:
    """(steps + 1,) int64: the packed step at which each step's rows begin, and where all end."""
    rows = np.repeat([span.rows for span in spans], [span.steps for span in spans])
    return np.concatenate([[0], np.cumsum(rows)])


def _sources(begins: Any, ordered: Any, first: Any, mirror: bool) -> Any:
    """Where each packed step comes from, which are padding, and which is opposite.

    `ordered` and `first` are each packed row's length and the place of its first step.
    """
    packed, rows = np.arange(begins[-1]), np.diff(begins)
    step = np.repeat(np.arange(len(rows)), rows)
    row = packed - np.repeat(begins[:-1], rows)
    length = ordered[row]
    padding = step >= length
    opposite = None
    if mirror:
        opposite = np.where(padding, packed, begins[np.maximum(length - 1 - step, 0)] + row)
    return first[row] + step, padding, opposite


def _targets(begins: Any, length: Any, rank: Any, time: int) -> Any:
    """Where each step of the padded rows is packed, and which are padding."""
    outside = np.arange(time) >= length[:, None]
    target = begins[np.minimum(np.arange(time), len(begins) - 1)] + rank[:, None]
    target[outside] = 0
    return target.ravel(), outside.ravel()


def _targets_of_segments(source: Any, padding: Any, size: int) -> Any:
    """The same for rows that were cut: the inverse of `source`."""
    packed = np.flatnonzero(~padding)
    target, outside = np.zeros(size, np.int64), np.ones(size, bool)
    target[source[packed]], outside[source[packed]] = packed, False
    return target, outside
