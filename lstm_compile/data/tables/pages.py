"""What the pages of a Parquet file say they unpack to, read before any of them is unpacked.

pyarrow believes them: a page of a hundred bytes that says two gigabytes gets two gigabytes. And it
ends the process where it is asked for the metadata of a column that contradict themselves, which is
why the footer is read here.

Source: https://parquet.apache.org/docs/file-format/ and its parquet.thrift.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

from lstm_compile.data.tables.thrift import read_struct

SMALL = 64 << 20  # bytes that a column may unpack to whatever it is packed in
RATIO = 1000  # times its packed bytes that a larger one may unpack to
FEW_ROWS = 1 << 20  # of any file; a larger one has a byte for so many rows at most as `RATIO` says
SHORT_HEADER, LONGEST_HEADER = 256, 1 << 20  # bytes
TAIL = 8  # bytes at the end: the footer's length, and a word


def check_pages(file: BinaryIO, size: int, *, each: bool = True) -> list[int]:
    """Compare what rows, columns and pages say of themselves.

    Args:
        file: a Parquet file that pyarrow could open.
        size: bytes of the file.
        each: whether pages are looked at, too; elsewhere than on a disk each is a request.

    Returns:
        The rows of each row group.

    Raises:
        ValueError: they contradict one another, or unpack to more than `RATIO` allows.
        IndexError: the footer is cut off.
    """
    groups = _footer(file, size).get(4) or []
    rows = [_whole(group, 3) for group in groups]
    if min(rows, default=0) < 0 or sum(rows) > max(FEW_ROWS, RATIO * size):
        raise ValueError(f"{sum(rows)} rows in {size} bytes")
    for group in groups:
        for column in group.get(1) or []:
            _check_column(file, _struct(_struct(column).get(3)), size, each=each)
    return rows


def _footer(file: BinaryIO, size: int) -> dict[int, Any]:
    file.seek(max(0, size - TAIL))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - TAIL - length))
    return read_struct(file.read(length))[0]


def _check_column(file: BinaryIO, column: dict[int, Any], size: int, *, each: bool) -> None:
    path = b".".join(part for part in column.get(3) or [] if isinstance(part, bytes))
    name = path.decode(errors="replace")
    unpacked, packed = _whole(column, 6), _whole(column, 7)
    # of its data and its dictionary; a column without rows has no data
    places = [_whole(column, field) for field in (9, 11) if column.get(field)]
    start = min(places, default=0)
    if start < 0 or not 0 <= packed <= size - start:
        raise ValueError(f"column {name!r} lies beyond the end")
    if not 0 <= unpacked <= max(SMALL, RATIO * packed):
        raise ValueError(f"column {name!r}: {packed} bytes unpack to {unpacked}")
    for page in _pages(file, start, start + packed) if each and places else ():
        unpacked -= page
        if unpacked < 0:
            raise ValueError(f"column {name!r}: a page is larger than its column")


def _pages(file: BinaryIO, place: int, end: int) -> Iterator[int]:
    """Bytes that each page unpacks to, its header counted."""
    while place < end:
        file.seek(place)
        head = file.read(min(SHORT_HEADER, end - place))
        try:
            fields, length = read_struct(head)
        except IndexError:  # long statistics
            head += file.read(min(LONGEST_HEADER, end - place - len(head)))
            fields, length = read_struct(head)
        unpacked, packed = _whole(fields, 2), _whole(fields, 3)
        if unpacked < 0 or not 0 <= packed <= end - place - length:
            raise ValueError("a page is longer than its column")
        yield unpacked + length
        place += packed + length


def _struct(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise ValueError("the footer is damaged")
    return value


def _whole(fields: dict[int, Any], name: int) -> int:
    """A whole number of a struct, -1 where it has none of that name."""
    value = _struct(fields).get(name)
    return value if isinstance(value, int) else -1
