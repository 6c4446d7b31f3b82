"""What float32 keeps of numbers that lie far from zero. Loads no torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_compile.errors import InputError

COARSE = 0.02  # of a change from row to row: a larger step distorts it
TOO_COARSE = 0.5  # of the mean change: a larger step makes figures of the series wrong
NOISE = 4  # distances of neighbours in float64: smaller changes are its rounding
TINY = float(np.finfo(np.float32).tiny)  # smaller numbers are as good as 0
FEW = 20  # numbers that remain of those that are merged
MERGED = 0.1  # of the numbers of a column, or of the changes of a series
SAMPLED = 20_000  # rows

Floats64 = NDArray[np.float64]


def spacing(values: Any) -> float:
    """The distance of neighbours in float32 at the largest of `values`."""
    return float(np.spacing(np.float32(np.abs(np.asarray(values, np.float64)).max())))


def check_columns_rounding(
    place: str, names: Sequence[str], columns: NDArray[Any], mend: str = ""
) -> None:
    """Check that rounding to float32 leaves the numbers of each column (rows, columns) apart.

    NaN and infinities do not count. Of many rows only some are looked at.

    Raises:
        InputError: more than a tenth of a column become the same as others, and few remain.
    """
    for name, column in zip(names, sample(columns).T, strict=True):
        numbers, counts = np.unique(column[np.isfinite(column)], return_counts=True)
        if len(numbers) < 2:
            continue
        is_apart = np.diff(numbers) > np.maximum(_noise(numbers, numbers[1:]), TINY)
        is_lost = (np.diff(numbers.astype(np.float32)) == 0) & is_apart
        is_merged = np.append(is_lost, False) | np.append(False, is_lost)
        merged = numbers[is_merged]
        few = len(np.unique(merged.astype(np.float32))) <= FEW
        if few and counts[is_merged].sum() > MERGED * counts.sum():
            raise InputError(
                f"{place}, column {name!r}: found numbers from {merged[0]:.15g} to "
                f"{merged[-1]:.15g}, which float32 rounds to steps of {spacing(merged):g}, "
                f"expected finer steps; subtract {merged[0]:.15g} from the column, in later data "
                f"too{mend}"
            )


def sample(columns: NDArray[Any], rows: int | None = None, start: int = 0) -> NDArray[Any]:
    """Some of the rows of columns; of a block that begins at row `start` of so many `rows`."""
    every = max(1, (len(columns) if rows is None else rows) // SAMPLED)
    return columns[-start % every :: every]


def _noise(numbers: Floats64, largest: Floats64) -> Floats64:
    """The largest difference that may be the rounding of float64; 0 where all numbers are whole.

    `largest` are the numbers whose rounding counts.
    """
    is_whole = np.isnan(numbers) | (numbers == np.rint(numbers))
    return np.zeros_like(largest) if is_whole.all() else NOISE * np.spacing(np.abs(largest))


class Rounding(NamedTuple):
    """What rounding to float32 does to the changes from row to row of several series.

    float64 (series,) each. Numbers are rounded in steps that grow with their size.
    """

    step: Floats64  # the mean step of the numbers that change
    change: Floats64  # the mean size of a change; NaN without any
    lost: Floats64  # the share of the changes that are smaller than their step
    coarse: Floats64  # likewise, than their step over COARSE

    @property
    def is_wrong(self) -> NDArray[np.bool_]:
        """Whether figures of a series would be wrong, bool (series,)."""
        return (self.step > TOO_COARSE * self.change) | (self.lost > MERGED)

    @classmethod
    def of(cls, values: Floats64, lengths: NDArray[np.int64]) -> "Rounding":
        """That of float64 `values` (rows,), NaN where there is none, in series of `lengths`."""
        series, count = np.repeat(np.arange(len(lengths)), lengths), len(lengths)
        sizes, larger = np.abs(np.diff(values)), np.abs(values)
        larger = np.maximum(larger[1:], larger[:-1])
        is_change = (series[1:] == series[:-1]) & (sizes > _noise(values, larger))
        sizes, larger, of = sizes[is_change], larger[is_change], series[1:][is_change]
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.spacing(larger.astype(np.float32)).astype(np.float64)
            changes = np.bincount(of, minlength=count)
            means = [
                np.bincount(of, each, count) / changes
                for each in (steps, sizes, sizes < steps, sizes < steps / COARSE)
            ]
        return cls(*means)


def level_to_subtract(values: Floats64, lengths: NDArray[np.int64]) -> float:
    """The number to subtract from a column before rounding to float32; 0 where it keeps enough.

    Args:
        values: float64 (rows,), NaN where there is none.
        lengths: int64 (series,), the rows of each series.
    """
    before = Rounding.of(values, lengths)
    is_coarse = before.coarse > MERGED
    coarse = values[np.repeat(is_coarse, lengths)]
    coarse = coarse[np.isfinite(coarse)]
    if not len(coarse):
        return 0.0
    level = float(np.sort(coarse)[len(coarse) // 2])
    after = Rounding.of(values - level, lengths)
    gains = (after.coarse > MERGED).sum() < is_coarse.sum()
    return level if gains and not (after.is_wrong & ~before.is_wrong).any() else 0.0
