"""Files of text, read block by block and never whole. Loads no torch."""

import codecs
import glob
from collections import Counter
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path

from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.encoding import check_utf8
from lstm_compile.data.tables.folders import TEXT_SUFFIXES
from lstm_compile.errors import InputError

BLOCK = 1 << 20  # bytes read at once


def refuse_columns(path: str | PathLike[str], options: TableOptions | None) -> None:
    """Refuse what only tables have.

    Raises:
        InputError: an option says how to read a table.
    """
    if options and options.given:
        raise InputError(
            f"{path}: {', '.join(options.given)} says how to read a table, and task lm reads whole "
            "files; leave it out"
        )


def find_texts(path: str | PathLike[str]) -> list[Path]:
    """The files that a path to text means, none of them empty.

    Raises:
        InputError: there is none, or one cannot be read or is empty.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(
            p for p in place.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES and p.is_file()
        )
    elif place.exists():
        files = [place]
    else:
        files = sorted(Path(name) for name in glob.glob(fspath(path), recursive=True))
        files = [file for file in files if file.is_file()]
    if not files:
        ends = ", ".join(TEXT_SUFFIXES)
        found = f"holds no file that ends in {ends}" if place.is_dir() else "no such text file"
        raise InputError(f"{path}: {found}; name a text file, a folder of them or a glob")
    for file in files:
        try:
            if file.stat().st_size == 0:
                raise InputError(f"{file}: the file is empty; expected text")
            file.open("rb").close()
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    return files


def texts_of(file: Path) -> Iterator[str]:
    """The text of a file, block by block.

    Raises:
        InputError: it is not UTF-8.
    """
    decode = codecs.getincrementaldecoder("utf-8")().decode
    with file.open("rb") as source:
        try:
            while block := source.read(BLOCK):
                yield decode(block)
            decode(b"", final=True)
        except UnicodeDecodeError as error:
            check_utf8(file)
            raise InputError(f"{file}: ends within a character; save it as UTF-8") from error


def count_characters(files: list[Path]) -> Counter[str]:
    """How often each character occurs in files.

    Raises:
        InputError: one is not UTF-8.
    """
    found = Counter[str]()
    for file in files:
        for text in texts_of(file):
            found.update(text)
    return found
