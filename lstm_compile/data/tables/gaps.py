"""Missing values: filled in place, once all rows are in order."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.tables.columns import Missing
from lstm_compile.errors import InputError


@dataclass(frozen=True)
class GapFiller:
    """How NaN and infinities in the features are replaced.

    Attributes:
        place: the data, for messages.
        features: names of the columns.
        missing: `forward` takes the last value before in the sequence, and the mean where there is
            none; `mean` takes the mean; `zero` 0.
        means: one a feature, NaN where unknown; empty for `zero`.
    """

    place: str
    features: tuple[str, ...]
    missing: Missing
    means: tuple[float, ...]

    def fill(self, x: NDArray[np.float32], lengths: NDArray[np.int64]) -> int:
        """Replace every NaN and infinity in `x`, in place.

        Args:
            x: float32 (rows, features), the sequences one after the other.
            lengths: int64 (sequences,).

        Returns:
            How many values were filled.

        Raises:
            InputError: a column without any value has no mean, or `means` are those of other
                features.
        """
        count, expected = len(self.means), len(self.features)
        if self.missing != "zero" and count != expected:
            raise InputError(
                f"{self.place}: the model has means of {count} features, expected {expected}; "
                "train it again"
            )
        return sum(self._fill_column(x[:, index], index, lengths) for index in range(expected))

    def _fill_column(
        self, column: NDArray[np.float32], index: int, lengths: NDArray[np.int64]
    ) -> int:
        is_gap = ~np.isfinite(column)
        count = int(is_gap.sum())
        if count and self.missing == "zero":
            column[is_gap] = 0
        elif count:
            mean = self._mean_of(index)
            if self.missing == "mean":
                column[is_gap] = mean
            else:
                _fill_forward(column, is_gap, lengths, mean)
        return count

    def _mean_of(self, index: int) -> float:
        if math.isnan(self.means[index]):
            raise InputError(
                f"{self.place}, column {self.features[index]!r}: found no value in any row, "
                f"expected one to fill gaps with (--missing {self.missing}); leave the column out "
                "with --features"
            )
        return self.means[index]


def _fill_forward(
    column: NDArray[np.float32], is_gap: NDArray[np.bool_], lengths: NDArray[np.int64], mean: float
) -> None:
    last = np.maximum.accumulate(np.where(is_gap, -1, np.arange(len(column))))
    starts = np.repeat(lengths.cumsum() - lengths, lengths)
    gaps = np.flatnonzero(is_gap)
    sources = last[gaps]
    column[gaps] = np.where(sources >= starts[gaps], column[sources], np.float32(mean))


def column_means(x: NDArray[np.float32], missing: Missing) -> tuple[float, ...]:
    """The mean of the finite values of each column, as a float32 has it.

    NaN where a column has no value; empty where `missing` needs no mean.
    """
    if missing not in ("mean", "forward"):
        return ()
    return tuple(_mean(x[:, index]) for index in range(x.shape[1]))


def _mean(column: NDArray[np.float32]) -> float:
    values = column[np.isfinite(column)]
    return float(np.float32(values.mean(dtype=np.float64))) if len(values) else math.nan
