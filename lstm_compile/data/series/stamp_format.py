"""How the stamps of a table are written, to write others the same way. Loads no torch."""

import re
from dataclasses import dataclass, replace
from math import isclose
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lstm_compile.data.series.clock import Clock
from lstm_compile.data.series.zones import offset_text, to_local
from lstm_compile.data.tables.periods import NUMBERS, to_numbers, to_periods
from lstm_compile.data.tables.values import is_date, kind_of

OFFSET = r"[T ]\d\d(?::\d\d(?::?\d\d(?:\.\d+)?)?)?(?P<offset>Z|[+-]\d\d:?(?:\d\d)?)$"
MOST_DECIMALS = 13
LARGEST_WHOLE = 2**53  # of the whole numbers that float64 holds
DATE_DECIMALS = 9  # of a second
COARSEST = 0.1  # of a step: how far times may be moved as they are rounded
_UNITS = {4: "Y", 7: "M", 10: "D", 13: "h", 16: "m", 19: "s"}  # by the length of an ISO stamp


@dataclass(frozen=True)
class StampFormat:
    """How the stamps of a table are written.

    Attributes:
        zone: that they are shown in, see `zones`; empty where they have none.
        form: of dates that are not written as ISO 8601: of `NUMBERS` or `PERIODS`; else empty.
        type: the Arrow type of the column; None where the file has no types.
        sample: one of its cells, where they are text.
        decimals: of numbers with fractions, and of the seconds of dates; None for all that they
            have.
    """

    zone: str = ""
    form: str = ""
    type: Any = None
    sample: str = ""
    decimals: int | None = None

    def of_times(self, times: NDArray[Any], clock: Clock) -> "StampFormat":
        """The format of such times, whose forecasts have as many decimals, or those of a step."""
        if clock.kind not in ("number", "fixed"):
            return self
        numbers, step = clock.ticks(times), clock.step
        if numbers.dtype.kind != "f":
            unit, most = rounding_of(numbers), DATE_DECIMALS if clock.kind == "fixed" else 0
            is_rounded = not is_multiple(step, unit) and unit / 2 <= COARSEST * step
            return replace(self, decimals=most - round(np.log10(unit)) if is_rounded else None)
        is_single = self.type is not None and pa.types.is_float32(self.type)
        decimals = decimals_of(numbers, np.float32 if is_single else np.float64)
        if decimals is not None and 10**-decimals / 2 > COARSEST * step:
            own = decimals_of(np.array([step]))
            decimals = None if own is None else max(own, decimals)
        return replace(self, decimals=decimals)

    def cells(self, stamps: NDArray[Any], as_text: bool = False) -> Any:
        """An Arrow array of stamps, moments in UTC or numbers, as the table writes them.

        `as_text` says that the cells go into a file without types.
        """
        is_text = self.type is not None and kind_of(self.type) == "text"
        if stamps.dtype.kind != "M":  # times of day and durations are numbers to the model
            return self._numbers(stamps, as_text)
        if self.decimals is not None:
            unit = 10 ** (DATE_DECIMALS - self.decimals)
            numbers = stamps.astype("M8[ns]").astype(np.int64) + unit // 2
            stamps = (numbers // unit * unit).astype("M8[ns]")
        shown = to_local(stamps, self.zone)
        if self.form in NUMBERS:
            cells = pa.array(to_numbers(shown, self.form))
            return cells if is_text else cells.cast(pa.int64()).cast(self.type or pa.int64())
        if self.form:
            return pa.array(to_periods(shown, self.form, self.sample))
        if as_text or is_text:
            return pa.array(self._texts(stamps, shown))
        if self._is_dates(shown):
            is_typed = self.type is not None and pa.types.is_date(self.type)
            return pa.array(shown.astype("M8[D]")).cast(self.type if is_typed else pa.date32())
        unit = getattr(self.type, "unit", "us")
        unit = unit if _fits(stamps, unit) else "ns"
        numbers = pa.array(stamps.astype(f"M8[{unit}]").astype(np.int64))
        return numbers.cast(pa.timestamp(unit, self.zone or None))

    def _numbers(self, numbers: NDArray[Any], as_text: bool) -> Any:
        numbers = numbers if self.decimals is None else np.round(numbers, self.decimals)
        is_whole = self.decimals is not None and self.decimals <= 0
        if is_whole and np.abs(numbers).max(initial=0) < LARGEST_WHOLE:
            numbers = numbers.astype(np.int64)  # text would have an exponent
        cells = pa.array(numbers)
        if self.type is None or (as_text and is_date(self.type)):
            return cells
        if pa.types.is_time32(self.type):
            cells = cells.cast(pa.int32())
        return cells.cast(self.type)

    def _is_dates(self, shown: NDArray[Any]) -> bool:
        """Whether these stamps are written as days, without a time."""
        is_date_type = self.type is not None and pa.types.is_date(self.type)
        is_bare = bool(self.sample) and len(self.sample) <= len("2024-01-31")
        return (is_date_type or is_bare) and _fits(shown, "D")

    def _texts(self, stamps: NDArray[Any], shown: NDArray[Any]) -> list[str]:
        """ISO 8601 texts like `sample`, or longer where these stamps need it."""
        match = re.search(OFFSET, self.sample)
        offset = match["offset"] if match else ""
        bare = self.sample.removesuffix(offset)
        digits = len(bare.partition(".")[2])
        unit = "ns" if digits else _UNITS.get(len(bare), "s" if bare or self.zone else "D")
        unit = "D" if self._is_dates(shown) and unit != "M" else unit
        unit = next(each for each in (unit, "D", "m", "s", "ns") if _fits(shown, each))
        texts = np.datetime_as_string(shown.astype(f"M8[{unit}]")).tolist()
        if unit == "ns":
            needed = max(len(text.rstrip("0").partition(".")[2]) for text in texts)
            texts = [text[: 20 + max(digits, needed)] for text in texts]
        texts = [text.replace("T", "T" if "T" in bare else " ") for text in texts]
        if not self.zone or unit in ("Y", "M", "D"):
            return texts
        if offset == "Z" and self.zone == "UTC":
            return [text + "Z" for text in texts]
        ends = offset_text(stamps, self.zone)
        if offset[1:] and ":" not in offset:
            ends = [end.replace(":", "") for end in ends]
        return [text + end for text, end in zip(texts, ends, strict=True)]


def decimals_of(numbers: NDArray[Any], kind: Any = np.float64) -> int | None:
    """The most decimals of numbers that are stored as `kind`; None if they are rounded nowhere."""
    stored = numbers.astype(kind)
    fits = (d for d in range(MOST_DECIMALS) if (np.round(numbers, d).astype(kind) == stored).all())
    return next(fits, None)


def rounding_of(ticks: NDArray[Any]) -> float:
    """The power of ten, up to 1e9, that numbers or nanoseconds are multiples of."""
    if ticks.dtype.kind == "f":
        decimals = decimals_of(ticks)
        least = float(np.spacing(np.abs(ticks).max(initial=1)))
        return least if decimals is None else 10.0**-decimals
    powers = (10**digits for digits in range(DATE_DECIMALS, 0, -1))
    return next((power for power in powers if not (ticks % power).any()), 1)


def is_multiple(step: float, unit: float) -> bool:
    """Whether a step is a whole number of units."""
    return isclose(step / unit, round(step / unit), rel_tol=1e-9)


def _fits(stamps: NDArray[Any], unit: str) -> bool:
    return bool((stamps.astype(f"M8[{unit}]") == stamps).all())
