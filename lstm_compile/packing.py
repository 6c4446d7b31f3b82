"""Rows from the longest to the shortest, time cut into spans, each with only the rows still active.

A packed tensor is (steps, features): the spans one after the other, within a span time-major. Cells
of a span beyond a row's length are padding, which every backend leaves without effect.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


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
    padding: Tensor  # (packed, 1) bool
    target: Tensor  # (batch * time,) int64 into the packed steps
    outside: Tensor  # (batch * time, 1) bool, True at and after a row's length
    mirror: Tensor  # (packed,) int64, the same row's step counted from its end


class Packing(NamedTuple):
    """How one batch is packed."""

    spans: tuple[Span, ...]
    moves: Moves
    order: Tensor  # (rows,) int64, which row of the batch each packed row is
    rank: Tensor  # (batch,) int64, where each row of the batch is packed
    final: Tensor  # (rows,) int64, the packed step that is each row's last, -1 where it has none
    shape: tuple[int, int]  # (batch, time)
    ragged: bool  # whether any span holds padding

    def pack(self, x: Tensor) -> Tensor:
        """`x` (batch, time, features) as (packed, features), zero in the padding."""
        moves = self.moves
        flat = x.reshape(-1, x.shape[-1])
        return _move(flat, moves.source, moves.padding, moves.target, moves.outside)

    def unpack(self, packed: Tensor) -> Tensor:
        """(batch, time, features) from (packed, features), zero at and after each row's length."""
        moves = self.moves
        flat = _move(packed, moves.target, moves.outside, moves.source, moves.padding)
        return flat.view(*self.shape, packed.shape[-1])

    def reverse(self, packed: Tensor) -> Tensor:
        """The packed steps with each row's valid ones in reverse."""
        return _move(packed, self.moves.mirror, None, self.moves.mirror, None)

    def last(self, packed: Tensor, default: Tensor) -> Tensor:
        """(rows, features) of each row's last valid step, `default`'s row where there is none."""
        picked = packed.index_select(0, self.final.clamp(min=0))
        return torch.where((self.final >= 0)[:, None], picked, default)

    def pieces(self, packed: Tensor) -> list[Tensor]:
        """(packed, features) as views (steps, rows, features), one a span."""
        parts = packed.split([span.size for span in self.spans])
        return [
            part.view(span.steps, span.rows, -1)
            for part, span in zip(parts, self.spans, strict=True)
        ]


def pack_rows(
    lengths: Tensor,
    time: int,
    device: torch.device,
    cut: Callable[[Sequence[int]], list[tuple[int, int]]],
    min_rows: int = 1,
) -> Packing:
    """Plan one batch.

    Args:
        lengths: int64 (batch,) on the CPU, batch >= 1, at least one of them above 0.
        time: padded steps of the batch.
        device: of the data.
        cut: from the number of active rows at each step up to the longest row's last, to spans
            (start, steps); the last may reach beyond it.
        min_rows: spans with fewer active rows run this many; the others are padding.
    """
    ordered, order = lengths.sort(descending=True, stable=True)
    rank = order.argsort()
    if missing := max(0, min_rows - len(lengths)):
        ordered, order = pad(ordered, (0, missing)), pad(order, (0, missing))
    active = _active(ordered)
    spans = tuple(Span(start, steps, max(active[start], min_rows)) for start, steps in cut(active))
    begins = _begins(spans)
    moves = _moves(begins, ordered, order, lengths, rank, time)
    last = begins[(ordered - 1).clamp(min=0)] + torch.arange(len(ordered))
    final = torch.where(ordered > 0, last, -1)
    to = partial(Tensor.to, device=device, non_blocking=True)
    return Packing(
        spans, Moves(*map(to, moves)), to(order), to(rank), to(final),
        (len(lengths), time), bool(moves.padding.any()),
    )  # fmt: skip


def _active(ordered: Tensor) -> list[int]:
    """How many rows are longer than 0, 1, ... steps, up to the longest."""
    longest = int(ordered[0])
    ends = torch.bincount(ordered, minlength=longest + 1)
    counts: list[int] = (len(ordered) - ends.cumsum(0)[:longest]).tolist()
    return counts


def _begins(spans: Sequence[Span]) -> Tensor:
    """(steps + 1,) int64: the packed step at which each step's rows begin, and where all end."""
    rows = torch.tensor([span.rows for span in spans])
    steps = torch.tensor([span.steps for span in spans])
    return pad(rows.repeat_interleave(steps).cumsum(0), (1, 0))


def _moves(
    begins: Tensor, ordered: Tensor, order: Tensor, lengths: Tensor, rank: Tensor, time: int
) -> Moves:
    packed = torch.arange(int(begins[-1]))
    step = torch.arange(len(begins) - 1).repeat_interleave(begins.diff())
    row = packed - begins[step]
    length = ordered[row]
    padding = step >= length
    mirror = torch.where(padding, packed, begins[(length - 1 - step).clamp(min=0)] + row)
    source = order[row] * time + step.clamp(max=time - 1)
    outside = torch.arange(time) >= lengths[:, None]
    reached = torch.arange(time).clamp(max=len(begins) - 1)
    target = torch.where(outside, 0, begins[reached] + rank[:, None])
    return Moves(source, padding[:, None], target.flatten(), outside.view(-1, 1), mirror)


def _move(
    x: Tensor, index: Tensor, blank: Tensor | None, back: Tensor, back_blank: Tensor | None
) -> Tensor:
    """`x[index]`, zero where `blank`; `back` and `back_blank` undo it, and move its gradient."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Move.apply(x, index, blank, back, back_blank)  # type: ignore[no-any-return, no-untyped-call]
    return _moved(x, index, blank)


def _moved(x: Tensor, index: Tensor, blank: Tensor | None) -> Tensor:
    moved = x.index_select(0, index)
    return moved if blank is None else moved.masked_fill_(blank, 0.0)


class _Move(torch.autograd.Function):
    """A gather whose gradient is a gather: autograd's own would scatter and add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *plan: Tensor | None) -> Tensor:
        ctx.plan = plan
        return _moved(x, plan[0], plan[1])  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, blank, back, back_blank = ctx.plan
        return _move(gradient, back, back_blank, index, blank), None, None, None, None
