"""The `.npz` format: NumPy arrays `x`, `lengths`, `y` and optional names in one zip file.

Pickled objects are never loaded. Source: https://numpy.org/doc/stable/reference/generated/numpy.savez.html
"""

import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lstm_compile.data.schema import check_unique, numbered
from lstm_compile.data.tables.precision import check_columns_rounding
from lstm_compile.data.tables.table import Table
from lstm_compile.errors import InputError, reason
from lstm_compile.formatting import listing

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]
SHAPES = {"x": "(total_steps, features)", "lengths": "(sequences,)", "y": "(sequences, ...)"}
NAMES = ("features", "targets")
VERSIONS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
SMALL = 64 << 20  # bytes that any array may unpack to
RATIO = 100  # a larger array may unpack to so many times its packed bytes
# the errors of NumPy and zipfile for a damaged or hostile file
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OverflowError,
    RuntimeError,  # and NotImplementedError
    TokenError,
    ValueError,
)


def read_npz(
    path: Path, labelled: bool = True, *, with_gaps: bool = False, is_new: bool = False
) -> Table:
    """Read an `.npz` file.

    Args:
        path: an existing zip file with `x` numeric (total_steps, features), `lengths` integer
            (sequences,), `y` integers or strings (sequences,), or floats (sequences,) or
            (sequences, targets); with total_steps in place of sequences, every step has a label.
            Optionally there are the name lists `features` and `targets`.
        labelled: False ignores `y` and `targets`.
        with_gaps: whether `x` may hold NaN and infinities.
        is_new: whether a model is to be trained on it: float32 must keep its numbers apart.

    Returns:
        Its content; float targets have two dimensions.

    Raises:
        InputError: damaged, pickled, an array missing or of the wrong kind or shape, lengths that
            do not add up, or a value that is no finite float32.
    """
    arrays = _load(path, [name for name in SHAPES if labelled or name != "y"])
    lengths = _check_lengths(path, arrays["lengths"], len(_check_x(path, arrays["x"])))
    x = _to_float32(arrays["x"])
    names = _names(path, "features", arrays, x.shape[1])
    shown = names or numbered("feature", x.shape[1])
    is_bad = np.isinf(x) & np.isfinite(arrays["x"]) if with_gaps else ~np.isfinite(x)
    for row, column in np.argwhere(is_bad)[:1]:
        raise _bad_step(path, int(row), shown[column], arrays["x"][row, column], lengths)
    if is_new:
        check_columns_rounding(str(path), shown, arrays["x"])
    if not labelled:
        return Table(path, x, lengths, np.zeros((len(lengths), 0), np.float32), names)
    y = _check_y(path, arrays["y"], len(lengths), len(x))
    count = 0 if isinstance(y, list) else y.shape[1]
    targets, per_step = _names(path, "targets", arrays, count), len(y) != len(lengths)
    if is_new and count:
        check_columns_rounding(
            str(path), targets or numbered("target", count), arrays["y"].reshape(-1, count)
        )
    return Table(path, x, lengths, y, names, targets=targets, per_step=per_step)


def _load(path: Path, needed: list[str]) -> Arrays:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
            _check_present(path, list(members), needed)
            names = NAMES if "y" in needed else NAMES[:1]
            wanted = [*needed, *(name for name in names if name in members)]
            return {name: _load_array(path, archive, name, members[name]) for name in wanted}
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(
            f"{path}: not a complete .npz (zip) file; write it again with np.savez"
        ) from error


def _load_array(
    path: Path, archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo
) -> NDArray[Any]:
    try:
        with archive.open(member) as file:
            _check_header(file, member)
        with archive.open(member) as file:
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        if array.dtype.kind == "U" and array.size:
            _check_text(array)
    except UNREADABLE as error:
        raise InputError(f"{path}: array `{name}` cannot be read ({reason(error)})") from error
    return array


def _check_header(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Compare the shape and type of an array with its bytes, before memory is allocated."""
    version = npy.read_magic(file)
    if version not in VERSIONS:
        raise ValueError(f"version {version} of the format is not known")
    shape, _, dtype = VERSIONS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    stored = member.file_size - file.tell()
    if not dtype.itemsize or math.prod(shape) * dtype.itemsize != stored:
        raise ValueError(f"{dtype} {shape} is not what its {stored} bytes hold")
    if stored > max(SMALL, RATIO * member.compress_size):
        raise ValueError(f"{stored} bytes packed into {member.compress_size}")


def _check_text(array: NDArray[Any]) -> None:
    points = np.frombuffer(array.tobytes(), f"{array.dtype.byteorder}u4")
    is_surrogate = (points >= 0xD800) & (points <= 0xDFFF)
    if points.max() > 0x10FFFF or is_surrogate.any():
        raise ValueError("text that is not Unicode")


def _check_present(path: Path, found: list[str], needed: list[str]) -> None:
    for name in (name for name in needed if name not in found):
        others = listing(sorted(found)) or "none"
        raise InputError(f"{path}: no array `{name}` {SHAPES[name]}; found {others}")


def _check_x(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind not in "biuf":
        raise InputError(
            f"{path}: x must be numbers of shape {SHAPES['x']}, found {x.dtype} {x.shape}"
        )
    return x


def _check_lengths(path: Path, lengths: NDArray[Any], total: int) -> NDArray[np.int64]:
    if lengths.ndim != 1 or len(lengths) == 0 or lengths.dtype.kind not in "iu":
        raise InputError(
            f"{path}: lengths must be integers of shape (sequences,), at least one, found "
            f"{lengths.dtype} {lengths.shape}"
        )
    # checked before the sum, which could overflow
    for row in np.flatnonzero((lengths < 0) | (lengths > total))[:1]:
        raise InputError(
            f"{path}, sequence {row}: length {lengths[row]} is not between 0 and the {total} rows "
            f"of x"
        )
    exact = lengths.astype(np.int64)
    if exact.sum() != total:
        raise InputError(f"{path}: lengths add up to {exact.sum()}, but x has {total} rows")
    return exact


def _to_float32(values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # overflow gives infinity, which is reported
        return values.astype(np.float32)


def _bad_step(
    path: Path, row: int, name: str, found: np.generic, lengths: NDArray[np.int64]
) -> InputError:
    offsets = np.concatenate(([0], lengths.cumsum()))
    sequence = int(np.searchsorted(offsets, row, side="right")) - 1
    gaps = "" if np.isfinite(found) else ", or fill all gaps with --missing forward, mean or zero"
    return InputError(
        f"{path}, sequence {sequence}, step {row - offsets[sequence]}, feature {name!r}: expected "
        f"a finite float32 number, found {found}; fill the gap or drop the sequence first{gaps}"
    )


def _check_y(path: Path, y: NDArray[Any], count: int, steps: int) -> list[str] | Floats:
    is_float = y.dtype.kind == "f"
    if y.ndim not in ((1, 2) if is_float else (1,)) or y.dtype.kind not in "biufU" or 0 in y.shape:
        raise InputError(
            f"{path}: y must be integers or strings (sequences,), or floats (sequences,) or "
            f"(sequences, targets), found {y.dtype} {y.shape}"
        )
    if len(y) not in (count, steps):
        raise InputError(f"{path}: y has {len(y)} rows, but lengths has {count} and x has {steps}")
    return _check_targets(path, y, count) if is_float else [str(label) for label in y.tolist()]


def _check_targets(path: Path, y: NDArray[Any], count: int) -> NDArray[np.float32]:
    targets = _to_float32(y.reshape(len(y), -1))
    for row, column in np.argwhere(~np.isfinite(targets))[:1]:
        place = "sequence" if len(y) == count else "step"
        raise InputError(
            f"{path}, {place} {row}, target {column}: expected a finite float32 number, found "
            f"{y.reshape(len(y), -1)[row, column]}"
        )
    return targets


def _names(path: Path, name: str, arrays: Arrays, count: int) -> tuple[str, ...] | None:
    if name not in arrays:
        return None
    array = arrays[name]
    if array.dtype.kind != "U" or array.shape != (count,):
        raise InputError(
            f"{path}: {name} must be {count} strings, one name a column, found {array.dtype} "
            f"{array.shape}"
        )
    check_unique(f"{path}: {name}", array.tolist())
    return tuple(array.tolist())
