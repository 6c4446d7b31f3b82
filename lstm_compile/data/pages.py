"""What the pages of a Parquet file say they unpack to, read before any of them is unpacked.

pyarrow believes them: a page of a hundred bytes that says two gigabytes gets two gigabytes.

Source: https://parquet.apache.org/docs/file-format/data-pages/ and Thrift's compact protocol,
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

SMALL = 64 << 20  # bytes that a column may unpack to whatever it is packed in
RATIO = 1000  # times its packed bytes that a larger one may unpack to
FEW_ROWS = 1 << 20  # of any file; a larger one has a byte for so many rows at most as `RATIO` says
SHORT_HEADER, LONGEST_HEADER = 256, 1 << 20  # bytes
DEEPEST = 16
BINARY, STRUCT = 8, 12
WIDTHS = {1: 0, 2: 0, 3: 1, 7: 8}  # bytes of booleans in a struct, bytes and doubles


def check_pages(file: BinaryIO, metadata: Any, size: int) -> None:
    """Compare what rows, columns and pages say of themselves.

    Args:
        file: the Parquet file.
        metadata: pyarrow's, of this file.
        size: bytes of the file.

    Raises:
        ValueError: they contradict one another, or unpack to more than `RATIO` allows.
    """
    if metadata.num_rows > max(FEW_ROWS, RATIO * size):
        raise ValueError(f"{metadata.num_rows} rows in {size} bytes")
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            _check_column(file, metadata.row_group(group).column(column), size)


def _check_column(file: BinaryIO, column: Any, size: int) -> None:
    packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
    start = column.data_page_offset
    if column.has_dictionary_page:
        start = min(start, column.dictionary_page_offset)
    if start < 0 or not 0 <= packed <= size - start:
        raise ValueError(f"column {column.path_in_schema!r} lies beyond the end")
    if not 0 <= unpacked <= max(SMALL, RATIO * packed):
        raise ValueError(f"column {column.path_in_schema!r}: {packed} bytes unpack to {unpacked}")
    for page in _pages(file, start, start + packed):
        unpacked -= page
        if unpacked < 0:
            raise ValueError(f"column {column.path_in_schema!r}: a page is larger than its column")


def _pages(file: BinaryIO, place: int, end: int) -> Iterator[int]:
    """Bytes that each page unpacks to, its header counted."""
    while place < end:
        file.seek(place)
        head = file.read(min(SHORT_HEADER, end - place))
        try:
            fields, length = _struct(head, 0)
        except IndexError:  # long statistics
            head += file.read(min(LONGEST_HEADER, end - place - len(head)))
            fields, length = _struct(head, 0)
        unpacked, packed = fields.get(2, -1), fields.get(3, -1)
        if unpacked < 0 or not 0 <= packed <= end - place - length:
            raise ValueError("a page is longer than its column")
        yield unpacked + length
        place += packed + length


def _struct(data: bytes, place: int, depth: int = 0) -> tuple[dict[int, int], int]:
    """The whole numbers of a Thrift struct by field, and the place behind it."""
    fields, name = dict[int, int](), 0
    while kind := data[place]:
        place += 1
        if kind >> 4:
            name += kind >> 4
        else:
            name, place = _number(data, place)
        if kind & 15 in (4, 5, 6):
            fields[name], place = _number(data, place)
        else:
            place = _behind(data, place, kind & 15, depth)
    return fields, place + 1


def _behind(data: bytes, place: int, kind: int, depth: int) -> int:
    """The place behind a value of some kind."""
    if kind in WIDTHS:
        return place + WIDTHS[kind]
    if kind == BINARY:
        size, place = _varint(data, place)
        return place + size
    if kind == STRUCT and depth < DEEPEST:
        return _struct(data, place, depth + 1)[1]
    raise ValueError("a page's header is damaged")  # lists, sets and maps are in none


def _number(data: bytes, place: int) -> tuple[int, int]:
    number, place = _varint(data, place)
    return (number >> 1) ^ -(number & 1), place


def _varint(data: bytes, place: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte, place = data[place], place + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError("a page's header is damaged")
