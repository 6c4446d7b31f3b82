"""Rows from the longest to the shortest, time cut into spans, each with only the rows still active.

A packed tensor is (steps, features): the spans one after the other, within a span time-major. Cells
of a span beyond a row's length are padding, which every backend leaves without effect.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstm_compile.recurrence.resets import Segments


class Span(NamedTuple):
    """Steps `start` to `start + steps` of the first `rows` packed rows."""

    start: int
    steps: int
    rows: int

    @property
    def size(self) -> int:
        """How many packed steps the span holds."""
        return self.steps * self.rows


class Moves(NamedTuple):
    """Where each packed step comes from and where it goes; all on the data's device."""

    source: Tensor  # (packed,) int64 into the flattened (batch * time)
    blank: Tensor | None  # int64, the packed steps that are padding; None: there are none
    target: Tensor  # (batch * time,) int64 into the packed steps
    outside: Tensor | None  # int64, which of (batch * time) are padding; None: none
    mirror: Tensor | None  # (packed,) int64, the same row's step counted from its end
    padding: Tensor  # (packed, 1) bool


class Packing(NamedTuple):
    """How one batch is packed."""

    spans: tuple[Span, ...]
    moves: Moves
    order: Tensor | None  # (rows,) int64, which row of the batch each packed row is; None: its own
    rank: Tensor | None  # (batch,) int64, where each row of the batch is packed; None: its own
    final: Tensor  # (batch,) int64, the packed step that is each row's last valid one
    empty: Tensor | None  # (batch, 1) bool, True where a row has no valid step; None: all have
    shape: tuple[int, int]  # (batch, time)

    @property
    def padding(self) -> Tensor:
        """(packed, 1) bool, True where a packed step is padding."""
        return self.moves.padding

    @property
    def ragged(self) -> bool:
        """Whether any span holds padding."""
        return self.moves.blank is not None

    def pack(self, x: Tensor) -> Tensor:
        """`x` (batch, time, features) as (packed, features), zero in the padding."""
        source, blank, target, outside, *_ = self.moves
        return move(x.reshape(-1, x.shape[-1]), source, blank, target, outside)

    def unpack(self, packed: Tensor) -> Tensor:
        """(batch, time, features) from (packed, features), zero at and after each row's length."""
        source, blank, target, outside, *_ = self.moves
        flat = move(packed, target, outside, source, blank)
        return flat.view(*self.shape, packed.shape[-1])

    def reverse(self, packed: Tensor) -> Tensor:
        """The packed steps with each row's valid ones in reverse."""
        mirror = self.moves.mirror
        assert mirror is not None, "packed without mirror=True"
        return move(packed, mirror, None, mirror, None)

    def arrange(self, state: Tensor) -> Tensor:
        """`state` (..., batch, features) in packed order, (..., rows, features)."""
        return state if self.order is None else state.index_select(-2, self.order)

    def restore(self, state: Tensor) -> Tensor:
        """`state` (..., rows, features) in the batch's order, (..., batch, features)."""
        return state if self.rank is None else state.index_select(-2, self.rank)

    def last(self, packed: Tensor, default: Tensor) -> Tensor:
        """(batch, features) of each row's last valid step, `default` (rows, features) if none."""
        picked = packed.index_select(0, self.final)
        if self.empty is None:
            return picked
        return torch.where(self.empty, self.restore(default), picked)

    def pieces(self, packed: Tensor) -> list[Tensor]:
        """(packed, features) as views (steps, rows, features), one a span."""
        return in_spans(packed, self.spans)


def in_spans(packed: Tensor, spans: Sequence[Span]) -> list[Tensor]:
    """(packed, features) as views (steps, rows, features), one a span."""
    width = packed.shape[-1]
    parts = packed.split([span.size for span in spans])
    return [
        part.view(span.steps, span.rows, width) for part, span in zip(parts, spans, strict=True)
    ]


class Carried:
    """The state on its way from span to span; that of rows that ended is put away."""

    def __init__(self, h: Tensor, c: Tensor) -> None:
        self.state = [h, c]  # each (rows, H)
        self.ended: list[list[Tensor]] = []

    def active(self, rows: int) -> list[Tensor]:
        """The h and c of the first `rows`, which go on."""
        if len(self.state[0]) > rows:
            self.ended.append([part[rows:] for part in self.state])
            self.state = [part[:rows] for part in self.state]
        return self.state

    def final(self) -> list[Tensor]:
        """The h and c of all rows, in packed order."""
        if not self.ended:
            return self.state
        return [torch.cat(parts) for parts in zip(self.state, *reversed(self.ended), strict=True)]


def pack_rows(
    lengths: Tensor,
    time: int,
    device: torch.device,
    cut: Callable[[list[int]], list[tuple[int, int]]],
    *,
    min_rows: int = 1,
    mirror: bool = False,
    segments: Segments | None = None,
) -> Packing:
    """Plan one batch. In numpy, whose calls cost a fraction of torch's on so few numbers.

    Args:
        lengths: int64 (batch,) on the CPU, batch >= 1, at least one of them above 0; of the
            segments where there are any.
        time: padded steps of the batch.
        device: of the data.
        cut: from the number of active rows at each step up to the longest row's last, to spans
            (start, steps); the last may reach beyond it.
        min_rows: spans with fewer active rows run this many; the others are padding.
        mirror: whether the packed steps will be reversed.
        segments: what runs in place of the rows; the states that come and go are then those that
            each segment begins from, and those after each row's last.
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
        target, outside = _undone(source, padding, len(segments.last) * time)
        length, rank = length[segments.last], rank[segments.last]
    source[padding] = 0
    moves = source, _where(padding), target, _where(outside), opposite, padding[:, None]
    final = np.where(length > 0, begins[np.maximum(length - 1, 0)] + rank, 0)
    to = partial(_to, device=device)
    return Packing(
        spans,
        Moves(*map(to, moves)),
        to(None if own else order),
        to(None if own and segments is None else rank),
        to(final),
        None if length.all() else to((length == 0)[:, None]),
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
    own = ordered[row]
    padding = step >= own
    opposite = None
    if mirror:
        opposite = np.where(padding, packed, begins[np.maximum(own - 1 - step, 0)] + row)
    return first[row] + step, padding, opposite


def _targets(begins: Any, length: Any, rank: Any, time: int) -> Any:
    """Where each step of the padded rows goes, and which are padding."""
    outside = np.arange(time) >= length[:, None]
    target = begins[np.minimum(np.arange(time), len(begins) - 1)] + rank[:, None]
    target[outside] = 0
    return target.ravel(), outside.ravel()


def _undone(source: Any, padding: Any, size: int) -> Any:
    """The same for rows that were cut: whatever undoes `source`."""
    packed = np.flatnonzero(~padding)
    target, outside = np.zeros(size, np.int64), np.ones(size, bool)
    target[source[packed]], outside[source[packed]] = packed, False
    return target, outside


def joined(outputs: Sequence[Tensor]) -> Tensor:
    """The spans' outputs in one tensor; a single one as it is."""
    return torch.cat(list(outputs)) if len(outputs) > 1 else outputs[0]


def _where(mask: Any) -> Any:
    return np.flatnonzero(mask) if mask.any() else None


def move(
    x: Tensor, index: Tensor, blank: Tensor | None, back: Tensor, back_blank: Tensor | None
) -> Tensor:
    """`x[index]`, zeros at `blank`; `back` and `back_blank` undo it, and move its gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Move.apply(x, index, blank, back, back_blank)  # type: ignore[no-any-return, no-untyped-call]
    moved = x.index_select(0, index)
    # rows by number: a mask would be read for every value, at ten times the cost on the CPU
    return moved if blank is None else moved.index_fill_(0, blank, 0.0)


class _Move(torch.autograd.Function):
    """A gather whose gradient is a gather: autograd's own would scatter and add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *plan: Tensor | None) -> Tensor:
        ctx.plan = plan
        return move(x, *plan)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, blank, back, back_blank = ctx.plan
        return move(gradient, back, back_blank, index, blank), None, None, None, None
