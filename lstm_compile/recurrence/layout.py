"""How the rows of a batch are laid out for a backend: in spans of time, one after the other.

A packed tensor is (steps, features). It holds the spans in order, each of them time-major. A step
of a span that lies beyond its row's length is padding, and no backend lets it have any effect.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Steps `start` to `start + steps` of the first `rows` packed rows."""

    start: int
    steps: int
    rows: int

    @property
    def size(self) -> int:
        """How many packed steps the span holds."""
        return self.steps * self.rows


@dataclass(slots=True)
class Layout(ABC):
    """Where each step of a batch lies in a packed tensor; its tensors are on the data's device."""

    spans: Sequence[Span]
    padding: Tensor  # (packed, 1) bool, True where a packed step is padding
    blank: Tensor | None  # int64, the packed steps that are padding and may be read; None: none
    mirror: Tensor | None  # (packed,) int64, the same row's step counted from its end
    final: Tensor  # (batch,) int64, the packed step that is each row's last valid one
    empty: Tensor | None  # (batch, 1) bool, True where a row has no valid step; None: all have one

    @property
    def ragged(self) -> bool:
        """Whether any row ends before its span does."""
        return self.blank is not None

    @abstractmethod
    def pack(self, x: Tensor) -> Tensor:
        """`x` (batch, time, features) as (packed, features), zero in the padding."""

    @abstractmethod
    def unpack(self, packed: Tensor) -> Tensor:
        """(batch, time, features) from (packed, features), zero at and after each row's length."""

    def arrange(self, state: Tensor) -> Tensor:
        """`state` (..., batch, features) in packed order, (..., rows, features)."""
        return state

    def restore(self, state: Tensor) -> Tensor:
        """`state` (..., rows, features) in the batch's order, (..., batch, features)."""
        return state

    def reverse(self, packed: Tensor) -> Tensor:
        """The packed steps, with the valid steps of each row in reverse."""
        assert self.mirror is not None, "laid out without mirror=True"
        return move(packed, self.mirror, None, self.mirror, None)

    def last(self, packed: Tensor, default: Tensor) -> Tensor:
        """(batch, features) of each row's last valid step, `default` (rows, features) if none."""
        picked = packed.index_select(0, self.final)
        if self.empty is None:
            return picked
        return torch.where(self.empty, self.restore(default), picked)

    def pieces(self, packed: Tensor) -> list[Tensor]:
        """(packed, features) as views (steps, rows, features), one for each span."""
        sizes, width = [span.size for span in self.spans], packed.shape[-1]
        parts = packed.split(sizes) if len(sizes) > 1 else [packed]  # a needless split costs time
        return [
            part.view(span.steps, span.rows, width)
            for part, span in zip(parts, self.spans, strict=True)
        ]


class CarriedState:
    """The state as it goes from span to span; the state of rows that have ended is set aside."""

    def __init__(self, *state: Tensor) -> None:
        self.state = list(state)  # each (rows, size)
        self.ended: list[list[Tensor]] = []

    def active(self, rows: int) -> list[Tensor]:
        """The state of the first `rows`, which go on."""
        if len(self.state[0]) > rows:
            self.ended.append([part[rows:] for part in self.state])
            self.state = [part[:rows] for part in self.state]
        return self.state

    def final(self) -> list[Tensor]:
        """The state of all rows, in packed order."""
        if not self.ended:
            return self.state
        return [torch.cat(parts) for parts in zip(self.state, *reversed(self.ended), strict=True)]


def joined(outputs: Sequence[Tensor]) -> Tensor:
    """The spans' outputs in one tensor; a single output is not copied."""
    return torch.cat(list(outputs)) if len(outputs) > 1 else outputs[0]


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
