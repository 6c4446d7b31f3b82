"""What float32 keeps of numbers that lie far from zero. Loads no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.errors import InputError

COARSE = 0.02  # of a typical change from row to row: a larger rounding distorts it
FLAT = 0.05  # of the range of a column: a larger rounding leaves only a few values
GAIN = 4  # how much finer the numbers must become to be worth subtracting a level

Floats64 = NDArray[np.float64]


def spacing(values: Any) -> float:
    """The distance of neighbours in float32 at the largest of `values`."""
    return float(np.spacing(np.float32(np.abs(np.asarray(values, np.float64)).max())))


def check_rounding(place: str, name: str, low: float, high: float, mend: str = "") -> None:
    """Check that the numbers of a column, from `low` to `high`, differ after rounding to float32.

    Raises:
        InputError: float32 keeps only a few of them apart.
    """
    if not low < high or spacing((low, high)) <= FLAT * (high - low):
        return
    raise InputError(
        f"{place}, column {name!r}: found numbers from {low:.15g} to {high:.15g}, which float32 "
        f"rounds to steps of {spacing((low, high)):g}, expected finer steps; subtract {low:.15g} "
        f"from the column, in later data too{mend}"
    )


def check_columns_rounding(place: str, names: Sequence[str], columns: NDArray[Any]) -> None:
    """The same for each column of an array (rows, columns); NaN and infinities do not count."""
    for name, column in zip(names, columns.T, strict=True):
        finite = column[np.isfinite(column)]
        if len(finite):
            check_rounding(place, name, float(finite.min()), float(finite.max()))


def level_to_subtract(values: Floats64, is_next: NDArray[np.bool_]) -> float:
    """The number to subtract from a column before rounding to float32; 0 where it keeps enough.

    Args:
        values: float64 (rows,), NaN where there is none.
        is_next: bool (rows - 1,), whether a row goes on the series of the row before.
    """
    change, finite = _typical_change(values, is_next), values[np.isfinite(values)]
    if not change or spacing(finite) <= COARSE * change:
        return 0.0
    level = float(np.sort(finite)[len(finite) // 2])
    return level if GAIN * spacing(finite - level) <= spacing(finite) else 0.0


def rounding_loss(values: Floats64, is_next: NDArray[np.bool_]) -> float:
    """The rounding of float32, if it is coarser than a typical change of the column; else 0."""
    change = _typical_change(values, is_next)
    step = spacing(values[np.isfinite(values)]) if change else 0.0
    return step if step > change else 0.0


def _typical_change(values: Floats64, is_next: NDArray[np.bool_]) -> float:
    """The median size of the changes from row to row, of those that are not 0; 0 without any."""
    sizes = np.abs(np.diff(values)[is_next])
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    return float(np.median(sizes)) if len(sizes) else 0.0
