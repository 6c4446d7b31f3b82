"""Location and scale of each series, computed from its own past only."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

CONSTANT = 1e-6  # a deviation below this share of the values is rounding error


@dataclass(frozen=True, eq=False)
class History:
    """Cumulative sums over the rows of all series, minus the first value of each series.

    Attributes:
        first: float64 (series, columns).
        starts: int64 (series,), the first row of each.
        sums: float64 (rows + 1, columns), of all rows before.
        squares: float64 (rows + 1, columns).
    """

    first: Tensor
    starts: Tensor
    sums: Tensor
    squares: Tensor

    @classmethod
    def of(cls, x: Tensor, starts: Tensor) -> "History":
        """The sums of `x` (rows, columns), whose series begin at the rows `starts`."""
        lengths = torch.diff(starts, append=starts.new_tensor([len(x)]))
        first = x[starts].double()
        # far from zero, the squares would lose the digits of the deviations
        centred = x.double() - first.repeat_interleave(lengths, 0)
        sums, squares = (pad(v.cumsum(0), (0, 0, 1, 0)) for v in (centred, centred.square()))
        return cls(first, starts, sums, squares)

    def at(self, origins: Tensor, series: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each series before an origin, float32 (origins, columns) each.

        The deviation of a constant series is 1, and so is that of one without a past.
        """
        begin = self.starts[series]
        count = (origins - begin).clamp(min=1).double()[:, None]
        mean = (self.sums[origins] - self.sums[begin]) / count
        square = (self.squares[origins] - self.squares[begin]) / count
        scale = (square - mean.square()).clamp(min=0).sqrt()
        location = mean + self.first[series]
        is_constant = scale <= CONSTANT * location.abs()
        return location.float(), torch.where(is_constant, 1.0, scale).float()

    def to(self, device: torch.device | str) -> "History":
        """The same sums on `device`."""
        parts = (self.first, self.starts, self.sums, self.squares)
        return History(*(part.to(device) for part in parts))
