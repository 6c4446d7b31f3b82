"""Rows in the batch's own order, all of them through all steps.

The plan of a batch for which `recurrence.packed_rows` wins nothing, as its rows are few or of one
length: no row is moved, ended ones run on as padding. Tensors (steps * batch, features),
time-major, are called packed as well.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.recurrence.packed_rows import Span, in_spans, move


class Whole(NamedTuple):
    """Spans of all rows; a stand-in for `Packing`."""

    spans: Sequence[Span]
    padding: Tensor  # (packed, 1) bool
    blank: Tensor | None  # int64, the packed steps that are padding; None: none up to `longest`
    final: Tensor  # (batch,) int64, the packed step that is each row's last valid one
    empty: Tensor | None  # (batch, 1) bool, True where a row has no valid step; None: all have
    mirror: Tensor | None  # (packed,) int64, the same row's step counted from its end
    longest: int  # steps of the longest row; the spans may reach beyond
    time: int  # padded steps of the batch

    @property
    def ragged(self) -> bool:
        """Whether rows end before the longest."""
        return self.blank is not None

    def pack(self, x: Tensor) -> Tensor:
        """`x` (batch, time, features) as (packed, features), zero in the padding."""
        rows = x[:, : self.longest].transpose(0, 1).flatten(0, 1)
        if missing := len(self.padding) - len(rows):
            rows = pad(rows, (0, 0, 0, missing))
        return rows if self.blank is None else rows.index_fill(0, self.blank, 0.0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(batch, time, features) from (packed, features), zero at and after each row's length."""
        if self.blank is not None:
            # nobody but autograd has seen what a kernel returned
            alone = not (torch.is_grad_enabled() and packed.requires_grad)
            packed = (packed.index_fill_ if alone else packed.index_fill)(0, self.blank, 0.0)
        y = packed.view(-1, self.spans[0].rows, packed.shape[-1])[: self.longest].transpose(0, 1)
        missing = self.time - self.longest
        return pad(y, (0, 0, 0, missing)) if missing else y

    def reverse(self, packed: Tensor) -> Tensor:
        """The packed steps with each row's valid ones in reverse."""
        assert self.mirror is not None, "planned without mirror=True"
        return move(packed, self.mirror, None, self.mirror, None)

    def arrange(self, state: Tensor) -> Tensor:
        """`state` in packed order, which is its own."""
        return state

    def restore(self, state: Tensor) -> Tensor:
        """`state` in the batch's order."""
        return state

    def last(self, packed: Tensor, default: Tensor) -> Tensor:
        """(batch, features) of each row's last valid step, `default` (batch, features) if none."""
        picked = packed.index_select(0, self.final)
        return picked if self.empty is None else torch.where(self.empty, default, picked)

    def pieces(self, packed: Tensor) -> list[Tensor]:
        """(packed, features) as views (steps, rows, features), one a span."""
        return in_spans(packed, self.spans)


def whole_rows(
    lengths: Tensor,
    least: int,
    longest: int,
    time: int,
    device: torch.device,
    cut: Sequence[tuple[int, int]],
    *,
    mirror: bool,
) -> Whole:
    """Plan one batch as it stands.

    Args:
        lengths: int64 (batch,) on the CPU.
        least: of the lengths.
        longest: of the lengths, above 0.
        time: padded steps of the batch.
        device: of the data.
        cut: the spans (start, steps); where lengths are all equal, they may reach beyond them.
        mirror: whether the packed steps will be reversed.
    """
    rows = len(lengths)
    spans = [Span(start, steps, rows) for start, steps in cut]
    step, row = torch.arange(sum(span.steps for span in spans))[:, None], torch.arange(rows)
    padding = step >= lengths
    before = lengths - 1
    opposite = None
    if mirror:
        opposite = torch.where(padding, step, before - step).mul_(rows).add_(row).flatten()
    final = (before if least else before.clamp_(min=0)).mul_(rows).add_(row)

    def to(part: Tensor) -> Tensor:
        return part if device.type == "cpu" else part.to(device, non_blocking=True)

    return Whole(
        spans,
        to(padding.view(-1, 1)),
        None if least == longest else to(padding.view(-1).nonzero().view(-1)),
        to(final),
        None if least else to((lengths == 0)[:, None]),
        None if opposite is None else to(opposite),
        longest,
        time,
    )
