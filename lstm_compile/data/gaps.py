"""What becomes of missing values: filled in place, once all rows are in order."""

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.columns import Missing
from lstm_compile.errors import InputError


def fill(
    place: str,
    x: NDArray[np.float32],
    lengths: NDArray[np.int64],
    features: tuple[str, ...],
    missing: Missing,
) -> int:
    """Replace every NaN and infinity in `x`, in place.

    Args:
        place: the data, for messages.
        x: float32 (rows, features), the sequences one after the other.
        lengths: int64 (sequences,).
        features: names of the columns.
        missing: `forward` takes the last value before in the sequence, and the mean where there is
            none; `mean` that of all values of the column in this data; `zero` 0.

    Returns:
        How many values were filled.

    Raises:
        InputError: a column without any value has no mean.
    """
    filled = 0
    for index, name in enumerate(features):
        is_gap = ~np.isfinite(x[:, index])
        if count := int(is_gap.sum()):
            _fill_column(place, x[:, index], is_gap, lengths, name, missing)
            filled += count
    return filled


def _fill_column(
    place: str,
    column: NDArray[np.float32],
    is_gap: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    name: str,
    missing: Missing,
) -> None:
    if missing == "zero":
        column[is_gap] = 0
        return
    if is_gap.all():
        raise InputError(
            f"{place}, column {name!r}: found no value in any row, expected one to fill gaps with "
            f"(--missing {missing}); leave the column out with --features"
        )
    mean = np.float32(column[~is_gap].mean(dtype=np.float64))
    if missing == "mean":
        column[is_gap] = mean
        return
    last = np.maximum.accumulate(np.where(is_gap, -1, np.arange(len(column))))
    starts = np.repeat(lengths.cumsum() - lengths, lengths)
    gaps = np.flatnonzero(is_gap)
    sources = last[gaps]
    column[gaps] = np.where(sources >= starts[gaps], column[sources], mean)
