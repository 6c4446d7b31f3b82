"""What float32 keeps of numbers that lie far from zero. Loads no torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_compile.errors import InputError

COARSE = 0.02  # of a change from row to row: a larger rounding distorts it
TOO_COARSE = 0.5  # of the mean change: a larger rounding makes figures of the series wrong
NOISE = 2.0**-45  # of the largest number: smaller changes are the rounding of float64
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


class Rounding(NamedTuple):
    """What float32 leaves of the changes from row to row in each of several series."""

    step: Floats64  # float64 (series,), the distance of neighbours at the largest number
    change: Floats64  # float64 (series,), the mean size of the changes that are not 0; NaN without

    # bool (series,), whether most changes are smaller than the step, and than the step over COARSE
    is_lost: NDArray[np.bool_]
    is_coarse: NDArray[np.bool_]

    @property
    def is_wrong(self) -> NDArray[np.bool_]:
        """Whether figures of a series would be wrong, bool (series,)."""
        return self.step > TOO_COARSE * self.change

    @classmethod
    def of(cls, values: Floats64, lengths: NDArray[np.int64]) -> "Rounding":
        """That of float64 `values` (rows,), NaN where there is none, in series of `lengths`."""
        series, count = np.repeat(np.arange(len(lengths)), lengths), len(lengths)
        largest = np.zeros(count)
        np.maximum.at(largest, series, np.nan_to_num(np.abs(values)))
        with np.errstate(over="ignore"):
            step = np.spacing(largest.astype(np.float32)).astype(np.float64)
        sizes = np.abs(np.diff(values))
        is_change = (series[1:] == series[:-1]) & (sizes > NOISE * largest[series[1:]])
        sizes, of = sizes[is_change], series[1:][is_change]
        changes = np.bincount(of, minlength=count)
        with np.errstate(invalid="ignore"):
            change = np.bincount(of, sizes, count) / changes
        lost, coarse = (
            np.bincount(of, sizes < share * step[of], count) * 2 > changes
            for share in (1, 1 / COARSE)
        )
        return cls(step, change, lost, coarse)


def level_to_subtract(values: Floats64, lengths: NDArray[np.int64]) -> float:
    """The number to subtract from a column before rounding to float32; 0 where it keeps enough.

    Args:
        values: float64 (rows,), NaN where there is none.
        lengths: int64 (series,), the rows of each series.
    """
    coarse = values[np.repeat(Rounding.of(values, lengths).is_coarse, lengths)]
    coarse = coarse[np.isfinite(coarse)]
    if not len(coarse):
        return 0.0
    level = float(np.sort(coarse)[len(coarse) // 2])
    if GAIN * spacing(coarse - level) > spacing(coarse):
        return 0.0
    before, after = (Rounding.of(x, lengths).is_wrong for x in (values, values - level))
    return 0.0 if (after & ~before).any() else level
