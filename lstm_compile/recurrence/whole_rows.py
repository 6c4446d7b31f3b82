"""The layout that leaves all rows in the batch's own order and runs all of them through all steps.

It is taken where `recurrence.packed_rows` gains nothing: the rows are few, or all of one length. No
row is moved, and rows that have ended run on as padding.
"""

# ruff: noqa: D102 (the methods are those of Layout)

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.recurrence.layout import Layout, Span


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


def whole_rows(
    lengths: Tensor,
    shortest: int,
    longest: int,
    time: int,
    device: torch.device,
    spans: Sequence[tuple[int, int]],
    *,
    mirror: bool,
) -> WholeRows:
    """Lay out one batch as it stands.

    Args:
        lengths: int64 (batch,) on the CPU.
        shortest: of the lengths.
        longest: of the lengths, above 0.
        time: padded steps of the batch.
        device: of the data.
        spans: each (start, steps); where all lengths are equal, they may reach beyond them.
        mirror: whether the packed steps will be reversed.
    """
    rows = len(lengths)
    all_spans = [Span(start, steps, rows) for start, steps in spans]
    step, row = torch.arange(sum(span.steps for span in all_spans))[:, None], torch.arange(rows)
    padding = step >= lengths
    last = lengths - 1
    opposite = None
    if mirror:
        opposite = torch.where(padding, step, last - step).mul_(rows).add_(row).flatten()
    final = (last if shortest else last.clamp_(min=0)).mul_(rows).add_(row)

    def to(part: Tensor) -> Tensor:
        return part if device.type == "cpu" else part.to(device, non_blocking=True)

    return WholeRows(
        all_spans,
        to(padding.view(-1, 1)),
        None if shortest == longest else to(padding.view(-1).nonzero().view(-1)),
        None if opposite is None else to(opposite),
        to(final),
        None if shortest else to((lengths == 0)[:, None]),
        longest,
        time,
    )
