"""What becomes of missing values: filled in place, once all rows are in order."""

import math

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.tables.columns import Missing
from lstm_compile.errors import InputError


def fill(
    place: str,
    x: NDArray[np.float32],
    lengths: NDArray[np.int64],
    features: tuple[str, ...],
    missing: Missing,
    means: tuple[float, ...],
) -> int:
    """Replace every NaN and infinity in `x`, in place.

    Args:
        place: the data, for messages.
        x: float32 (rows, features), the sequences one after the other.
        lengths: int64 (sequences,).
        features: names of the columns.
        missing: `forward` takes the last value before in the sequence, and the mean where there is
            none; `mean` takes the mean; `zero` 0.
        means: one a feature, NaN where unknown; empty for `zero`.

    Returns:
        How many values were filled.

    Raises:
        InputError: a column without any value has no mean, or `means` are those of other features.
    """
    if missing != "zero" and len(means) != len(features):
        raise InputError(
            f"{place}: the model has means of {len(means)} features, expected {len(features)}; "
            "train it again"
        )
    filled = 0
    for index, name in enumerate(features):
        is_gap = ~np.isfinite(x[:, index])
        if count := int(is_gap.sum()):
            mean = float("nan") if missing == "zero" else means[index]
            _fill_column(place, x[:, index], is_gap, lengths, name, missing, mean)
            filled += count
    return filled


def column_means(x: NDArray[np.float32], missing: Missing) -> tuple[float, ...]:
    """The mean of each column's values, as a float32 has it; NaN where a column has none.

    Empty where `missing` needs no mean.
    """
    if missing not in ("mean", "forward"):
        return ()
    return tuple(_mean(x[:, index]) for index in range(x.shape[1]))


def _mean(column: NDArray[np.float32]) -> float:
    values = column[np.isfinite(column)]
    return float(np.float32(values.mean(dtype=np.float64))) if len(values) else math.nan


def _fill_column(
    place: str,
    column: NDArray[np.float32],
    is_gap: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    name: str,
    missing: Missing,
    mean: float,
) -> None:
    if missing == "zero":
        column[is_gap] = 0
        return
    if math.isnan(mean):
        raise InputError(
            f"{place}, column {name!r}: found no value in any row, expected one to fill gaps with "
            f"(--missing {missing}); leave the column out with --features"
        )
    if missing == "mean":
        column[is_gap] = mean
        return
    last = np.maximum.accumulate(np.where(is_gap, -1, np.arange(len(column))))
    starts = np.repeat(lengths.cumsum() - lengths, lengths)
    gaps = np.flatnonzero(is_gap)
    sources = last[gaps]
    column[gaps] = np.where(sources >= starts[gaps], column[sources], np.float32(mean))
