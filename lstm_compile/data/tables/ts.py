"""The `.ts` text format of sktime and the UCR and UEA archives.

Comments start with `#` or `%`; the header is `@key value` lines up to `@data`; then one case a
line: dimensions separated by `:`, the values of a dimension by `,`, the class or target last,
unless the header says that there is none. A missing value is `?` or `NaN`. Source:
https://www.sktime.net/en/stable/api_reference/file_specifications/ts.html
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lstm_compile.config import MAX_SIZE
from lstm_compile.data.schema import numbered
from lstm_compile.data.tables.precision import check_columns_rounding
from lstm_compile.data.tables.table import Table
from lstm_compile.data.text_files import check_encoding
from lstm_compile.errors import InputError

LONGEST_LINE = 1 << 24  # characters
MISSING = ("?", "nan", "")
LARGEST = float(np.finfo(np.float32).max)
Line = tuple[int, str]  # its number from 1, and its text
HeaderKeys = dict[str, tuple[int, list[str]]]  # the line number and values of each key


@dataclass(frozen=True)
class Header:
    """The `@` lines. The first case tells the number of dimensions where `dimensions` is None."""

    dimensions: int | None
    is_regression: bool
    is_labelled: bool
    classes: tuple[str, ...] | None


def read_ts(
    path: Path, labelled: bool = True, *, with_gaps: bool = False, is_new: bool = False
) -> Table:
    """Read a `.ts` file, whose format has no names for features.

    `labelled` False ignores the class or target of each case; `with_gaps` takes missing values,
    which become NaN; `is_new` says that a model is to be trained on it.

    Raises:
        InputError: not in the format, or a value is missing; names the file and the line.
    """
    lines = _read_lines(path)
    header, end = _read_header(path, lines)
    if labelled and not header.is_labelled:
        raise InputError(f"{path}: its header says that it has no labels; only predict reads it")
    dimensions, parsed, last = header.dimensions, [], list[Line]()
    for number, text in lines:  # one by one: a file with an early fault is not read on
        if not header.is_labelled:
            text += ":"
        dimensions = dimensions or text.count(":")
        if dimensions > MAX_SIZE:
            raise InputError(f"{path}: {dimensions} dimensions, expected at most {MAX_SIZE}")
        parsed.append(_parse_case(path, (number, text), dimensions, header, with_gaps))
        last.append((number, text.rpartition(":")[2].strip()))
    if not parsed:
        raise InputError(f"{path}, line {end}: no case follows `@data`")
    x, lengths = np.concatenate(parsed), np.array([len(case) for case in parsed], dtype=np.int64)
    y = _parse_y(path, header, last) if labelled else np.zeros((len(last), 0))
    if is_new:
        check_columns_rounding(str(path), numbered("feature", x.shape[1]), x)
        if labelled and not isinstance(y, list):
            check_columns_rounding(str(path), ("target",), y)
    labels = y if isinstance(y, list) else y.astype(np.float32)
    return Table(
        path,
        x.astype(np.float32),
        lengths,
        labels,
        classes=header.classes,
        lines=[line for line, _ in last],
    )


def _read_lines(path: Path) -> Iterator[Line]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), ""), 1):
                if len(text) > LONGEST_LINE:
                    raise InputError(
                        f"{path}, line {number}: longer than {LONGEST_LINE} characters; expected a "
                        "case a line, is a line break lost?"
                    )
                line = text.strip()
                if line and not line.startswith(("#", "%")):
                    yield number, line
    except UnicodeDecodeError as error:
        check_encoding(path)
        raise InputError(f"{path}: not a text file in UTF-8") from error


def _read_header(path: Path, lines: Iterator[Line]) -> tuple[Header, int]:
    """The header, and the number of its last line."""
    keys: HeaderKeys = {}
    for number, line in lines:
        if not line.startswith("@"):
            raise InputError(f"{path}, line {number}: expected `@key value` before `@data`")
        key, *values = line[1:].split() or [""]
        if key.lower() == "data":
            return _parse_header(path, keys), number
        keys[key.lower()] = (number, values)
    raise InputError(f"{path}: no `@data` line, so this is not a complete .ts file")


def _parse_header(path: Path, keys: HeaderKeys) -> Header:
    if _is_true(keys, "timestamps"):
        raise InputError(
            f"{path}, line {keys['timestamps'][0]}: `@timeStamps true` is not supported; "
            f"write the values at equal steps, without time stamps"
        )
    is_regression, is_classification = _is_true(keys, "targetlabel"), _is_true(keys, "classlabel")
    is_labelled = is_regression or is_classification
    is_told = keys.keys() & {"targetlabel", "classlabel"}
    if is_regression == is_classification and (is_labelled or not is_told):
        raise InputError(
            f"{path}: the header needs `@classLabel true` or `@targetlabel true`, and only one, or "
            "`@classLabel false` where the cases have no label"
        )
    classes = tuple(keys["classlabel"][1][1:]) if is_classification else ()
    return Header(_parse_dimensions(path, keys), is_regression, is_labelled, classes or None)


def _is_true(keys: HeaderKeys, key: str) -> bool:
    _, values = keys.get(key, (0, []))
    return [value.lower() for value in values[:1]] == ["true"]


def _parse_dimensions(path: Path, keys: HeaderKeys) -> int | None:
    if "dimensions" not in keys:
        return 1 if _is_true(keys, "univariate") else None
    number, values = keys["dimensions"]
    if len(values) == 1 and re.fullmatch("[1-9][0-9]{0,8}", values[0]):
        return int(values[0])
    raise InputError(
        f"{path}, line {number}: `@dimensions` must be a whole number above 0, "
        f"found {' '.join(values)!r}"
    )


def _parse_case(
    path: Path, case: Line, dimensions: int, header: Header, with_gaps: bool
) -> NDArray[np.float64]:
    """One case as float64 (steps, dimensions)."""
    number, text = case
    series = text.split(":")[:-1]
    if len(series) != dimensions or not series:
        label = " and a label" if header.is_labelled else ""
        raise InputError(
            f"{path}, line {number}: expected {max(dimensions, 1)} dimensions{label}, separated by "
            f"`:`, found {len(series)} dimensions; is the line cut off?"
        )
    values = [_parse_series(path, number, *item, with_gaps) for item in enumerate(series, 1)]
    for dimension, steps in enumerate(values, 1):
        if len(steps) != len(values[0]):
            raise InputError(
                f"{path}, line {number}, dimension {dimension}: {len(steps)} steps, but dimension "
                f"1 has {len(values[0])}; all dimensions of a case need the same steps"
            )
    return np.array(values).T


def _parse_series(
    path: Path, number: int, dimension: int, text: str, with_gaps: bool
) -> list[float]:
    try:
        values = list(map(float, text.split(",")))
    except ValueError:
        values = []
    if values and all(map(_fits, values)) and "_" not in text:
        return values
    cells = [*map(str.strip, text.split(","))]
    is_gap = [with_gaps and cell.lower() in MISSING for cell in cells]
    faults = (step for step, cell in enumerate(cells) if not (is_gap[step] or _is_good(cell)))
    step = next(faults, None)
    if step is None:
        pairs = zip(cells, is_gap, strict=True)
        return [math.nan if missing else float(cell) for cell, missing in pairs]
    found, step = cells[step], step + 1
    place = f"{path}, line {number}, dimension {dimension}, step {step}"
    if found.lower() in MISSING:
        raise InputError(
            f"{place}: missing value {found!r}; fill the gap or drop the case first, or fill all "
            "gaps with --missing forward, mean or zero"
        )
    raise InputError(f"{place}: expected a finite float32 number, found {found!r}")


def _fits(value: float) -> bool:
    return abs(value) <= LARGEST  # false for NaN


def _is_good(text: str) -> bool:
    try:
        return _fits(float(text)) and "_" not in text  # float() takes 1_000 for 1000
    except ValueError:
        return False


def _parse_y(path: Path, header: Header, last: list[Line]) -> list[str] | NDArray[np.float64]:
    """The class of each case, or its target, float64 (cases, 1)."""
    for number, text in last:
        if not header.is_regression and not text:
            raise InputError(f"{path}, line {number}: no class after the last `:`")
        if header.is_regression and not _is_good(text):
            raise InputError(
                f"{path}, line {number}: expected one finite number after the last `:`, "
                f"found {text!r}"
            )
    if header.is_regression:
        return np.array([[float(text)] for _, text in last])
    return [text for _, text in last]
