"""Checks the sizes that a Parquet file claims for its pages, before any page is unpacked.

pyarrow believes these numbers: it takes two gigabytes of memory for a page of a hundred bytes that
claims so. It also ends the process when it is asked for column metadata that contradict themselves;
that is why this module reads the footer itself.

Sources: https://parquet.apache.org/docs/file-format/ and its parquet.thrift;
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

SMALL = 64 << 20  # bytes that any column may unpack to
RATIO = 1000  # a larger column may unpack to so many times its packed bytes
FEW_ROWS = 1 << 20  # that any file may have; a larger one has at most `RATIO` rows for a byte
SHORT_HEADER, LONGEST_HEADER = 256, 1 << 20  # bytes
TAIL = 8  # bytes at the end: the footer's length, and a magic word

# the compact protocol of Thrift
DEEPEST = 16  # structs within structs
TRUE, FALSE, BYTE, DOUBLE, BINARY, STRUCT = 1, 2, 3, 7, 8, 12
INTEGERS = (4, 5, 6)  # of 16, 32 and 64 bits
LISTS = (9, 10)  # and sets


def check_pages(file: BinaryIO, size: int, *, each: bool = True) -> list[int]:
    """Check that the numbers of rows, columns and pages fit together; return each group's rows.

    pyarrow could open the file, which has `size` bytes. `each` says whether to look at pages, too:
    on a remote file system each page is a request.

    Raises:
        ValueError: they contradict one another, or unpack to more than `RATIO` allows.
        IndexError: the footer is cut off.
    """
    groups = _footer(file, size).get(4) or []
    rows = [_integer(group, 3) for group in groups]
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
    return _read_struct(file.read(length))[0]


def _check_column(file: BinaryIO, column: dict[int, Any], size: int, *, each: bool) -> None:
    path = b".".join(part for part in column.get(3) or [] if isinstance(part, bytes))
    name = path.decode(errors="replace")
    unpacked, packed = _integer(column, 6), _integer(column, 7)
    # of its data and its dictionary; a column without rows has no data
    places = [_integer(column, field) for field in (9, 11) if column.get(field)]
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
    """The bytes that each page unpacks to, with its header."""
    while place < end:
        file.seek(place)
        head = file.read(min(SHORT_HEADER, end - place))
        try:
            fields, length = _read_struct(head)
        except IndexError:  # long statistics
            head += file.read(min(LONGEST_HEADER, end - place - len(head)))
            fields, length = _read_struct(head)
        unpacked, packed = _integer(fields, 2), _integer(fields, 3)
        if unpacked < 0 or not 0 <= packed <= end - place - length:
            raise ValueError("a page is longer than its column")
        yield unpacked + length
        place += packed + length


def _struct(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise ValueError("the footer is damaged")
    return value


def _integer(fields: dict[int, Any], name: int) -> int:
    """An integer field of a struct, or -1 if it has no such field."""
    value = _struct(fields).get(name)
    return value if isinstance(value, int) else -1


def _read_struct(data: bytes, place: int = 0, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of the Thrift struct at `place`, by their numbers, and the place behind it.

    Kinds that no check needs are None. An IndexError says that the data end before the struct.
    """
    fields, name = dict[int, Any](), 0
    while kind := data[place]:
        place += 1
        if kind >> 4:
            name += kind >> 4
        else:
            name, place = _signed(data, place)
        # a boolean has its value in its kind
        fields[name], place = (
            (None, place) if kind & 15 in (TRUE, FALSE) else _value(data, place, kind & 15, depth)
        )
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in INTEGERS:
        return _signed(data, place)
    if kind == BINARY:
        size, place = _unsigned(data, place)
        if size > len(data) - place:
            raise IndexError
        return data[place : place + size], place + size
    if kind == STRUCT and depth < DEEPEST:
        return _read_struct(data, place, depth + 1)
    if kind in LISTS and depth < DEEPEST:
        return _list(data, place, depth + 1)
    if kind in (TRUE, FALSE, BYTE, DOUBLE):
        return None, place + (8 if kind == DOUBLE else 1)
    raise ValueError("a header is damaged")  # Parquet has no maps


def _list(data: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    count, kind, place = data[place] >> 4, data[place] & 15, place + 1
    if count == 15:
        count, place = _unsigned(data, place)
    if count > len(data) - place:  # each value takes a byte at least
        raise IndexError
    values = []
    for _ in range(count):
        value, place = _value(data, place, kind, depth)
        values.append(value)
    return values, place


def _signed(data: bytes, place: int) -> tuple[int, int]:
    number, place = _unsigned(data, place)
    return (number >> 1) ^ -(number & 1), place


def _unsigned(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte, place = data[place], place + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError("a header is damaged")
