"""Cells of Arrow arrays as NumPy numbers, times and codes; an error names the wrong cell."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lstm_compile.data.calendar import FIRST_YEAR, LAST_YEAR
from lstm_compile.data.tables.columns import Kind
from lstm_compile.data.tables.periods import ANY_PERIOD, from_periods, period_of

GAPS = ("", "na", "n/a", "#n/a", "null", "none", "nan", "?", "-")  # in text, in any case
_MONTH = r"^\s*\d{4}-\d\d\s*$"
_DATE = r"^\s*\d{4}-\d\d(-\d\d)?([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?(\d\d)?)?\s*$"
_HOUR = r"^\s*\d{4}-\d\d-\d\d[T ]\d\d\s*$"
_NUMBER = r"(?i)^\s*([-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf(inity)?|nan|true|false)\s*$"
# numbers as people write them: 1,5 and 1.234,5 and 1,234,567.8 and 1 234
DECIMAL_COMMA = r"(?i)^\s*[-+]?(\d+,\d*|,\d+)(e[-+]?\d+)?\s*$"
DECIMAL_POINT = r"(?i)^\s*[-+]?[\d.,]*\.[\d.,]*(e[-+]?\d+)?\s*$"
_MARK = "[,.' \u00a0\u202f]"  # between thousands, with the two blanks that do not break
_THOUSANDS = (
    rf"^\s*[-+]?\d{{1,3}}({_MARK.replace('.', '')}\d{{3}})+(\.\d*)?\s*$"
    rf"|^\s*[-+]?\d{{1,3}}({_MARK.replace(',', '')}\d{{3}})+,\d*\s*$"
)


MEND_FORMAT = "write them as YYYY-MM-DD or YYYY-MM-DD HH:MM:SS"
MEND_YEARS = (
    "drop the rows of other years, or count the rows: name a column of whole numbers with --time"
)
MEND_OFFSET = "write the offset in all rows or in none (then --time-zone names the zone)"
_YEARS = f"a date from {FIRST_YEAR} to {LAST_YEAR}"
_OFFSET = r"(?<=[T ]\d\d:\d\d)(:\d\d(\.\d+)?)?(?P<offset>Z|[+-]\d\d:?(\d\d)?)$"
_NO_MARKS = "write the number without marks between thousands"


class CellError(Exception):
    """A cell that does not hold what its column should.

    Attributes:
        index: its row in the array.
        found: its content, ready to print.
        expected: what the column should hold.
        mend: how to mend it; empty for the usual way.
    """

    def __init__(self, index: int, found: str, expected: str, mend: str = "") -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.index, self.found, self.expected, self.mend = index, found, expected, mend


def kind_of(kind: Any) -> Kind:
    """The kind of an Arrow type."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind_of(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return kind_of(kind.value_type)
    if is_date(kind):
        return "date"
    if str(kind) in ("string", "large_string", "string_view"):
        return "text"
    checks = ("is_boolean", "is_integer", "is_floating", "is_decimal", "is_null")
    return "number" if any(getattr(pa.types, check)(kind) for check in checks) else "other"


def is_date(kind: Any) -> bool:
    """Whether an Arrow type is a moment, a day, a time of day or a duration."""
    return bool(pa.types.is_temporal(kind)) and not pa.types.is_interval(kind)


def type_of_text(cells: Any) -> Any:
    """The type that at least half of the non-empty texts have: float64, a timestamp or text.

    Numbers with commas count as numbers, so that they are refused where a number is needed.
    """
    texts = cells.drop_null()
    filled = texts.filter(pc.invert(_is_gap(texts)))
    if len(texts) and not len(filled):
        return pa.string()
    numbers, dates = _matches(filled)
    if 2 * numbers.sum() >= len(filled):
        return pa.float64()
    return pa.timestamp("ns") if 2 * dates.sum() >= len(filled) else pa.string()


def kinds_of_texts(texts: Sequence[str]) -> list[Kind]:
    """The kind of each text by itself; a gap is text."""
    cells = pa.array(texts, pa.string())
    numbers, dates = _matches(cells)
    is_gap = _is_gap(cells).to_numpy(zero_copy_only=False)
    kinds = np.where(numbers, "number", np.where(dates, "date", "text"))
    return np.where(is_gap, "text", kinds).tolist()  # type: ignore[no-any-return]


def _matches(texts: Any) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which texts are numbers, and which are dates."""
    patterns = (f"{_NUMBER}|{DECIMAL_COMMA}|{_THOUSANDS}", f"{_DATE}|{ANY_PERIOD}")
    number, date = (
        pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)
        for pattern in patterns
    )
    return number, date


def comma_to_point(cells: Any) -> Any:
    """Texts, in which numbers with a decimal comma have a point in its place."""
    is_number = pc.match_substring_regex(cells, DECIMAL_COMMA)
    return pc.if_else(is_number, pc.replace_substring(cells, ",", "."), cells)


def comma_advice(text: str) -> str:
    """What to do about a text that is a number with commas; empty if it is none."""
    if re.search(DECIMAL_COMMA, text):
        return _which("comma", ",")
    if not re.search(_THOUSANDS, text):
        return ""
    is_comma_last = text.count(",") == 1 and text.find(".") < text.find(",")
    return f"{_NO_MARKS}, and add --decimal ," if is_comma_last else _NO_MARKS


def point_advice(text: str) -> str:
    """What to do about a number with a point, where commas are expected."""
    if "," in text or text.count(".") > 1:
        return _NO_MARKS
    return _which("point", ".")


def _which(name: str, mark: str) -> str:
    return (
        f"if the {name} is the decimal mark, add --decimal {mark}; if it parts thousands, write "
        "the number without it"
    )


def plain(cells: Any) -> Any:
    """The same cells as an Arrow array without dictionary, runs, views or extension type."""
    kind = cells.type
    if isinstance(kind, pa.BaseExtensionType):
        return plain(cells.storage)
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(cells))
    if pa.types.is_dictionary(kind):
        values = plain(cells.dictionary)
        return pa.DictionaryArray.from_arrays(cells.indices, values).dictionary_decode()
    if str(kind) == "string_view":
        return cells.cast(pa.large_string())
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        return cells.cast(pa.decimal128(kind.precision, kind.scale))
    if pa.types.is_float16(kind):
        return cells.cast(pa.float32())
    return cells


def to_floats(cells: Any) -> NDArray[Any]:
    """Numbers, float32 or float64 (rows,), NaN where a cell is empty.

    Raises:
        CellError: a cell is no number.
    """
    kind = kind_of(cells.type)
    if kind == "text":
        return _texts_to_floats(cells)
    if kind != "number":
        raise _wrong_type(cells, "a number")
    if not pa.types.is_floating(cells.type):
        if pa.types.is_boolean(cells.type):
            cells = cells.cast(pa.uint8())
        try:
            cells = cells.cast(pa.float64(), safe=False)
        except pa.ArrowException as error:
            raise _wrong_type(cells, "a number") from error
    return np.asarray(cells.fill_null(np.nan).to_numpy(zero_copy_only=False))


def to_texts(cells: Any) -> list[str | None]:
    """Texts, None where a cell is empty.

    Raises:
        CellError: the column is not of text.
    """
    if kind_of(cells.type) != "text" and cells.null_count < len(cells):
        raise _wrong_type(cells, "text")
    return list(cells.to_pylist())


def to_times(cells: Any) -> NDArray[Any]:
    """Times as numbers that sort in order: int64, float64 or, for dates, datetime64 (rows,).

    Raises:
        CellError: a cell is empty, infinite, or neither a number nor a date.
    """
    if cells.null_count:
        raise CellError(_first(cells.is_null()), "an empty cell", "a time")
    kind = kind_of(cells.type)
    if kind == "text":
        return _texts_to_times(cells)
    if kind == "other" or pa.types.is_boolean(cells.type):
        raise _wrong_type(cells, "a number or a date")
    if pa.types.is_timestamp(cells.type) or pa.types.is_date(cells.type):
        return _within_nanoseconds(np.asarray(cells.to_numpy(zero_copy_only=False)), cells)
    if pa.types.is_time32(cells.type):
        cells = cells.cast(pa.int32())
    wide = not pa.types.is_floating(cells.type) and not pa.types.is_decimal(cells.type)
    values = _cast(cells, pa.int64() if wide else pa.float64(), "a time")
    return _finite(np.asarray(values.to_numpy(zero_copy_only=False)))


def _within_nanoseconds(times: NDArray[Any], cells: Any) -> NDArray[Any]:
    """Dates that int64 counts in nanoseconds; earlier and later ones would become others."""
    years = times.astype("M8[Y]").astype(np.int64) + 1970
    for index in np.flatnonzero((years < FIRST_YEAR) | (years > LAST_YEAR))[:1]:
        raise CellError(int(index), _shown(cells, int(index)), _YEARS, MEND_YEARS)
    return times


def to_codes(cells: Any, known: dict[Any, int], key: Callable[[Any], Any]) -> NDArray[np.int32]:
    """The code of each cell in `known`, int32 (rows,); new cells get the next codes.

    Raises:
        CellError: a cell is empty, or neither text nor a number nor a date.
    """
    encoded = to_names(cells).dictionary_encode()  # in order of first appearance
    values = map(key, encoded.dictionary.to_pylist())
    codes = np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int32)
    numbers: NDArray[np.int32] = codes[encoded.indices.to_numpy()]
    return numbers


def to_names(cells: Any) -> Any:
    """Cells that name a sequence or a class, as an Arrow array whose cells can be compared.

    Raises:
        CellError: a cell is empty, or neither text nor a number nor a date.
    """
    if pa.types.is_floating(cells.type):
        cells = pc.if_else(pc.is_nan(cells), None, cells)
    if cells.null_count:
        raise CellError(_first(cells.is_null()), "an empty cell", "a value")
    if kind_of(cells.type) == "other":
        raise _wrong_type(cells, "text or a number")
    # as text: Python's dates have no nanoseconds
    return cells.cast(pa.string()) if is_date(cells.type) else cells


def _is_gap(texts: Any) -> Any:
    lower = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
    return pc.is_in(lower, pa.array(GAPS, texts.type))


def _texts_to_floats(cells: Any) -> NDArray[Any]:
    try:
        parsed = cells.cast(pa.float64())
    except pa.ArrowException:
        lower = pc.utf8_lower(pc.utf8_trim_whitespace(cells))
        bare = pc.if_else(_is_gap(cells), None, lower)
        are_words = pc.is_in(lower, pa.array(["true", "false"], lower.type))
        for word, digit in (("true", "1"), ("false", "0")):
            bare = pc.if_else(pc.equal(bare, word), digit, bare)
        parsed = _cast(bare, pa.float64(), "a number", cells)
        _check_words(cells, are_words, parsed)
    values = np.asarray(parsed.fill_null(np.nan).to_numpy(zero_copy_only=False))
    for index in np.flatnonzero(np.isinf(values)):
        if "inf" not in str(cells[index]).lower():
            raise CellError(int(index), _shown(cells, int(index)), "a number within float32")
    return values


def _check_words(cells: Any, are_words: Any, numbers: Any) -> None:
    """Refuse `true` and `false` beside other numbers than the 1 and 0 that they become."""
    others = numbers.filter(pc.invert(are_words)).drop_null()
    is_more = pc.any(pc.invert(pc.is_in(others, pa.array([0.0, 1.0, np.nan])))).as_py()
    for index in pc.indices_nonzero(are_words).to_pylist()[: int(is_more or 0)]:
        raise CellError(index, _shown(cells, index), "a number as in the other rows")


def _texts_to_times(cells: Any) -> NDArray[Any]:
    cells = pc.utf8_trim_whitespace(cells)
    if pc.all(pc.match_substring_regex(cells, _MONTH)).as_py():
        cells = pc.binary_join_element_wise(cells, "01", "-")
    if len(cells) and (name := period_of(str(cells[0]))):
        return _periods(cells.cast(pa.string()), name)
    kinds = [pa.int64(), pa.float64(), pa.timestamp("ns"), pa.timestamp("ns", "UTC")]
    for kind in kinds:
        try:
            times = _finite(np.asarray(cells.cast(kind).to_numpy(zero_copy_only=False)))
            return _within_nanoseconds(times, cells) if times.dtype.kind == "M" else times
        except pa.ArrowException:
            continue
    _check_format(cells)
    fits = [kind for kind in kinds if _casts(cells.slice(0, 1), kind)] or kinds[2:3]
    kind = fits[-1] if fits[-1] != kinds[0] else kinds[1]
    if pa.types.is_timestamp(kind) and not _casts(cells, kind):
        _check_date(cells, _first_bad(cells, kind))
    _cast(cells, kind, "a number or an ISO 8601 date")
    raise CellError(0, _shown(cells, 0), "numbers or ISO 8601 dates, one kind in all rows")


def _check_date(cells: Any, index: int) -> None:
    """Find fault with a cell that is an ISO 8601 date, but too early or late, or of another kind.

    The first cell shows whether stamps have an offset.
    """
    first, text = str(cells[0]), str(cells[index])
    if not re.search(f"{_DATE}|{_HOUR}", text):
        return
    if not FIRST_YEAR <= int(text[:4]) <= LAST_YEAR:
        raise CellError(index, _shown(cells, index), _YEARS, MEND_YEARS)
    offset, own = (re.search(_OFFSET, each) for each in (first, text))
    if bool(offset) != bool(own):
        word = f"an offset like {offset['offset']}" if offset else "no offset"
        expected, mend = f"a stamp with {word}, as in the first row", MEND_OFFSET
        raise CellError(index, _shown(cells, index), expected, mend)


def _check_format(cells: Any) -> None:
    """Find fault with the format of times, if that of most of them is not known."""
    known = f"{_DATE}|{_HOUR}|{ANY_PERIOD}|{_THOUSANDS}|{DECIMAL_COMMA}|{_NUMBER}"
    is_known = pc.match_substring_regex(cells, known).to_numpy(zero_copy_only=False)
    if is_known.sum() * 2 < len(cells):
        row, rows = int(is_known.argmin()), "most" if is_known.any() else "all"
        mend = f"{rows} rows are written like this: {MEND_FORMAT}"
        raise CellError(row, _shown(cells, row), "a number or an ISO 8601 date", mend)


def _periods(cells: Any, name: str) -> NDArray[Any]:
    dates = from_periods(cells, name)
    for index in np.flatnonzero(np.isnat(dates))[:1]:
        expected = f"a {name.split()[0]} like {_shown(cells, 0)}, as in the first row"
        raise CellError(int(index), _shown(cells, int(index)), expected)
    return dates


def _cast(cells: Any, kind: Any, expected: str, raw: Any = None) -> Any:
    try:
        return cells.cast(kind)
    except pa.ArrowException as error:
        index = _first_bad(cells, kind)
        raise CellError(index, _shown(cells if raw is None else raw, index), expected) from error


def _first_bad(cells: Any, kind: Any) -> int:
    """Bisect for the first cell that cannot be cast; there must be one."""
    low, high = 0, len(cells)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if _casts(cells.slice(low, middle - low), kind) else (low, middle)
        )
    return low


def _casts(cells: Any, kind: Any) -> bool:
    try:
        cells.cast(kind)
    except pa.ArrowException:
        return False
    return True


def _finite(times: NDArray[Any]) -> NDArray[Any]:
    if times.dtype.kind == "f" and not np.isfinite(times).all():
        index = int(np.flatnonzero(~np.isfinite(times))[0])
        raise CellError(index, str(times[index]), "a finite time")
    return times


def _wrong_type(cells: Any, expected: str) -> CellError:
    return CellError(0, f"{_shown(cells, 0)} ({cells.type})", expected)


def _first(mask: Any) -> int:
    return int(np.flatnonzero(mask.to_numpy(zero_copy_only=False))[0])


def _shown(cells: Any, index: int) -> str:
    if is_date(cells.type):
        cells = cells.cast(pa.string())
    text = repr(cells[index].as_py())
    return text if len(text) <= 60 else text[:57] + "..."
