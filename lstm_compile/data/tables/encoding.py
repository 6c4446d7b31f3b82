"""How a text file is written: its encoding and what parts its cells."""

import codecs
from pathlib import Path

from lstm_compile.errors import InputError

SEPARATORS = (",", ";", "\t")
HEADER_BYTES = 1 << 20


def check_utf8(path: Path) -> None:
    """Find the first byte that is no UTF-8.

    Raises:
        InputError: there is one; names the byte from 0 and the line from 1.
    """
    decode = codecs.getincrementaldecoder("utf-8")().decode
    offset, line = 0, 1
    with path.open("rb") as file:
        while True:
            block = file.read(1 << 20)
            try:
                decode(block, final=not block)
            except UnicodeDecodeError as error:
                # the decoder may still hold bytes of the block before
                start = offset + error.start - (len(error.object) - len(block))
                line += block[: max(0, start - offset)].count(b"\n")
                raise InputError(
                    f"{path}, line {line}: byte {start} is not UTF-8; save the file as UTF-8"
                ) from error
            if not block:
                return
            offset, line = offset + len(block), line + block.count(b"\n")


def separator(path: Path) -> str:
    """What parts the cells of a CSV file: whichever of `SEPARATORS` its first line has most of.

    Raises:
        InputError: the first line is not UTF-8.
    """
    with path.open("rb") as file:
        line = file.readline(HEADER_BYTES)
    try:
        header = line.decode("utf-8-sig")
    except UnicodeDecodeError:
        check_utf8(path)
        header = line.decode("utf-8", "replace")  # cut within a character
    bare = "".join(header.split('"')[::2])  # outside quotes
    return max(SEPARATORS, key=bare.count)
