"""The two layouts of a batch: rows ordered by length, or rows left as they are.

`PackedRows` orders rows by length, so that each span of time holds only the rows still active.
`WholeRows` is taken where that gains nothing, as the rows are few or all of one length. It moves no
row, and runs rows that have ended on as padding.
"""

# ruff: noqa: D102 (the methods are those of Layout)

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.recurrence.layout import Layout, Span, move
from lstm_compile.recurrence.resets import Segments

# from the number of active rows at each step, up to the end of the longest row, to spans
# (start, steps); the last may reach beyond it
CutTime = Callable[[list[int]], list[tuple[int, int]]]


class Rows(NamedTuple):
    """What runs side by side: the rows of a batch, or the segments that resets cut them into.

    A layout of segments arranges one state for each segment, and restores the state after each
    row's last one.
    """

    lengths: Tensor | None  # int64 on the CPU, of each row or segment; None: every step is valid
    shortest: int  # of the lengths
    longest: int  # likewise
    shape: tuple[int, int]  # (batch, time), padding included
    device: torch.device  # of the data
    mirror: bool = False  # whether the packed steps will be reversed
    segments: Segments | None = None

    def ends(self) -> Tensor:
        """The lengths, also where every step is valid."""
        if self.lengths is not None:
            return self.lengths
        return torch.full(self.shape[:1], self.shape[1], device="cpu")


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


def pack_rows(rows: Rows, cut: CutTime, *, min_rows: int = 1) -> PackedRows:
    """Lay out rows by length; at least one of them has a valid step.

    It is computed in numpy, whose calls cost a fraction of torch's on so few numbers. Spans with
    fewer active rows than `min_rows` run that many; the surplus rows are padding.
    """
    (_, time), segments, to = rows.shape, rows.segments, partial(_to, device=rows.device)
    length = rows.ends().numpy()
    counts = (len(length) - np.cumsum(np.bincount(length))[:-1]).tolist()
    spans = tuple(Span(start, steps, max(counts[start], min_rows)) for start, steps in cut(counts))
    active = np.repeat([span.rows for span in spans], [span.steps for span in spans])
    begins = np.concatenate([[0], np.cumsum(active)])  # where each step's rows begin; where all end
    if len(spans) == 1 and spans[0].rows == len(length):
        order = rank = np.arange(len(length))
        ordered, own = length, True
    else:
        (order, rank, ordered), own = _ordered(length, min_rows), False
    first = order * time if segments is None else segments.first(time)[order]
    source, padding, opposite = _sources(begins, ordered, first, rows.mirror)
    if segments is None:
        target, outside = _targets(begins, length, rank, time)
    else:
        target, outside = _targets_of_segments(source, padding, len(segments.last) * time)
        length, rank = length[segments.last], rank[segments.last]
    source[padding] = 0
    final = np.where(length > 0, begins[np.maximum(length - 1, 0)] + rank, 0)
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
        rows.shape,
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


def _sources(begins: Any, ordered: Any, first: Any, mirror: bool) -> Any:
    """Where each packed step comes from, which are padding, and the mirror step in its row.

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


@dataclass(slots=True)
class WholeRows(Layout):
    """Spans that each hold all rows of the batch."""

    longest: int  # steps of the longest row; the spans may reach beyond
    time: int  # padded steps of the batch

    def pack(self, x: Tensor) -> Tensor:
        rows = x[:, : self.longest].transpose(0, 1).flatten(0, 1)
        if missing := len(self.padding) - len(rows):
            rows = pad(rows, (0, 0, 0, missing))
        return rows if self.blank is None else rows.index_fill(0, self.blank, 0.0)

    def unpack(self, packed: Tensor) -> Tensor:
        if self.blank is not None:
            # without autograd nothing else holds what a kernel returned: fill it in place
            alone = not (torch.is_grad_enabled() and packed.requires_grad)
            packed = (packed.index_fill_ if alone else packed.index_fill)(0, self.blank, 0.0)
        y = packed.view(-1, self.spans[0].rows, packed.shape[-1])[: self.longest].transpose(0, 1)
        missing = self.time - self.longest
        return pad(y, (0, 0, 0, missing)) if missing else y


def whole_rows(rows: Rows, spans: Sequence[tuple[int, int]]) -> WholeRows:
    """Lay out a batch as it stands, in spans (start, steps); at least one row has a valid step.

    Where all lengths are equal, the spans may reach beyond them.
    """
    batch, lengths = rows.shape[0], rows.ends()
    all_spans = [Span(start, steps, batch) for start, steps in spans]
    steps = sum(span.steps for span in all_spans)
    step, row = torch.arange(steps, device="cpu")[:, None], torch.arange(batch, device="cpu")
    padding = step >= lengths
    last = lengths - 1
    opposite = None
    if rows.mirror:
        opposite = torch.where(padding, step, last - step).mul_(batch).add_(row).flatten()
    final = (last if rows.shortest else last.clamp_(min=0)).mul_(batch).add_(row)

    def to(part: Tensor) -> Tensor:
        return part if rows.device.type == "cpu" else part.to(rows.device, non_blocking=True)

    return WholeRows(
        all_spans,
        to(padding.view(-1, 1)),
        None if rows.shortest == rows.longest else to(padding.view(-1).nonzero().view(-1)),
        None if opposite is None else to(opposite),
        to(final),
        None if rows.shortest else to((lengths == 0)[:, None]),
        rows.longest,
        rows.shape[1],
    )
