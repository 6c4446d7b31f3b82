"""Rows of different lengths in one piece: in the batch's own order, through all steps.

The plan of a batch too small for `lstm_compile.packing` to win anything: no row is moved, ended
ones run on as padding. Tensors (steps * batch, features), time-major, are called packed as well.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.packing import Span, move


class Whole(NamedTuple):
    """One span of all rows; a stand-in for `Packing`."""

    spans: tuple[Span, ...]
    padding: Tensor  # (packed, 1) bool
    blank: Tensor  # int64, the packed steps that are padding
    final: Tensor  # (batch,) int64, the packed step that is each row's last valid one
    empty: Tensor | None  # (batch, 1) bool, True where a row has no valid step; None: all have
    mirror: Tensor | None  # (packed,) int64, the same row's step counted from its end
    time: int  # padded steps of the batch

    @property
    def ragged(self) -> bool:
        """Whether there is padding."""
        return True

    def pack(self, x: Tensor) -> Tensor:
        """`x` (batch, time, features) as (packed, features), zero in the padding."""
        rows = x[:, : self.spans[0].steps].transpose(0, 1).flatten(0, 1)
        return rows.index_fill(0, self.blank, 0.0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(batch, time, features) from (packed, features), zero at and after each row's length."""
        steps, rows = self.spans[0].steps, self.spans[0].rows
        # nobody but autograd has seen what a kernel returned
        alone = not (torch.is_grad_enabled() and packed.requires_grad)
        fill = packed.index_fill_ if alone else packed.index_fill
        y = fill(0, self.blank, 0.0).view(steps, rows, -1).transpose(0, 1)
        return y if steps == self.time else pad(y, (0, 0, 0, self.time - steps))

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
        """(packed, features) as the one view (steps, rows, features)."""
        return [packed.view(self.spans[0].steps, self.spans[0].rows, -1)]


def whole_rows(
    lengths: Tensor, least: int, longest: int, time: int, device: torch.device, *, mirror: bool
) -> Whole:
    """Plan one batch as it stands.

    Args:
        lengths: int64 (batch,) on the CPU.
        least: of the lengths.
        longest: of the lengths, above 0.
        time: padded steps of the batch.
        device: of the data.
        mirror: whether the packed steps will be reversed.
    """
    rows = len(lengths)
    step, row = torch.arange(longest)[:, None], torch.arange(rows)
    padding = step >= lengths
    before = lengths - 1
    opposite = None
    if mirror:
        opposite = torch.where(padding, step, before - step).mul_(rows).add_(row).flatten()
    final = (before if least else before.clamp_(min=0)).mul_(rows).add_(row)

    def to(part: Tensor) -> Tensor:
        return part if device.type == "cpu" else part.to(device, non_blocking=True)

    return Whole(
        (Span(0, longest, rows),),
        to(padding.view(-1, 1)),
        to(padding.view(-1).nonzero().view(-1)),
        to(final),
        None if least else to((lengths == 0)[:, None]),
        None if opposite is None else to(opposite),
        time,
    )
