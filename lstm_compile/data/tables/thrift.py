"""Structs in Thrift's compact protocol, as Parquet writes its footers and page headers.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from typing import Any

DEEPEST = 16  # structs in structs
TRUE, FALSE, BYTE, DOUBLE, BINARY, STRUCT = 1, 2, 3, 7, 8, 12
WHOLE = (4, 5, 6)  # of 16, 32 and 64 bits
LISTS = (9, 10)  # and sets


def read_struct(data: bytes, place: int = 0, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of the struct at `place` by their numbers, and the place behind it.

    Returns:
        Whole numbers as int, structs as dict, lists and sets as list, text and bytes as bytes;
        other kinds as None.

    Raises:
        IndexError: the data end before the struct does.
        ValueError: no such struct.
    """
    fields, name = dict[int, Any](), 0
    while kind := data[place]:
        place += 1
        if kind >> 4:
            name += kind >> 4
        else:
            name, place = _number(data, place)
        # a boolean is its own kind
        fields[name], place = (
            (None, place) if kind & 15 in (TRUE, FALSE) else _value(data, place, kind & 15, depth)
        )
    return fields, place + 1


def _value(data: bytes, place: int, kind: int, depth: int) -> tuple[Any, int]:
    """A value of some kind, and the place behind it."""
    if kind in WHOLE:
        return _number(data, place)
    if kind == BINARY:
        size, place = _varint(data, place)
        if size > len(data) - place:
            raise IndexError
        return data[place : place + size], place + size
    if kind == STRUCT and depth < DEEPEST:
        return read_struct(data, place, depth + 1)
    if kind in LISTS and depth < DEEPEST:
        return _list(data, place, depth + 1)
    if kind in (TRUE, FALSE, BYTE, DOUBLE):
        return None, place + (8 if kind == DOUBLE else 1)
    raise ValueError("a header is damaged")  # maps are in none


def _list(data: bytes, place: int, depth: int) -> tuple[list[Any], int]:
    count, kind, place = data[place] >> 4, data[place] & 15, place + 1
    if count == 15:
        count, place = _varint(data, place)
    if count > len(data) - place:  # each value takes a byte at least
        raise IndexError
    values = []
    for _ in range(count):
        value, place = _value(data, place, kind, depth)
        values.append(value)
    return values, place


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
    raise ValueError("a header is damaged")
