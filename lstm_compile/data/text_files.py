"""Files of text, read block by block and never whole. Loads no torch."""

import codecs
from collections import Counter
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import TEXT_SUFFIXES, matching_files
from lstm_compile.errors import InputError
from lstm_compile.formatting import near_file

BLOCK = 1 << 20  # bytes read at once
HEAD = 1 << 12  # bytes that tell the encoding of a table
WIDE = ("utf-16", "utf-32")
MARKS = {
    codecs.BOM_UTF8: ("utf-8",),
    codecs.BOM_UTF32_LE: ("utf-32", "utf-32-le"),  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: ("utf-32", "utf-32-be"),
    codecs.BOM_UTF16_LE: ("utf-16", "utf-16-le"),
    codecs.BOM_UTF16_BE: ("utf-16", "utf-16-be"),
}
MANY_ZEROS = 10  # one zero byte in so many is no accident
MOST_ZEROS = 0.8  # text in UTF-32 has 3/4
MANY_CHARACTERS = 6  # so many beyond ASCII are valid UTF-8 by intent, in GBK a few by accident
PACKED = {
    b"PK\3\4": "a zip file, as Excel (.xlsx) writes; save the table as CSV",
    b"\x1f\x8b": "a gzip file; unpack it",
    b"PAR1": "a Parquet file; end its name in .parquet",
}
ENCODED = (".csv", ".jsonl", ".ndjson")  # the tables of text, which have `--encoding`


def refuse_columns(path: str | PathLike[str], options: TableOptions | None) -> None:
    """Refuse options that only tables have.

    Raises:
        InputError: an option says how to read a table.
    """
    if options and options.changed_flags:
        raise InputError(
            f"{path}: {', '.join(options.changed_flags)} says how to read a table, and task lm "
            "reads whole files; leave it out"
        )


def find_texts(path: str | PathLike[str]) -> list[Path]:
    """The text files of a path: one file, a folder of them or a glob.

    Raises:
        InputError: there is none, or one cannot be read or is empty.
    """
    place = Path(path)
    if place.is_dir():
        found = (file for file in place.rglob("*") if file.suffix.lower() in TEXT_SUFFIXES)
        files = sorted(file for file in found if file.is_file())
    else:
        files = [place] if place.exists() else matching_files(path)
    if not files:
        ends = ", ".join(TEXT_SUFFIXES)
        problem = f"holds no file that ends in {ends}" if place.is_dir() else "no such text file"
        raise InputError(
            f"{path}: {problem}; name a text file, a folder of them or a glob{near_file(path)}"
        )
    for file in files:
        _check_readable(file)
    return files


def _check_readable(file: Path) -> None:
    try:
        if file.stat().st_size == mark_size(file):
            raise InputError(f"{file}: the file is empty; expected text")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error


def mark_size(file: Path) -> int:
    """How many bytes the byte order mark of UTF-8 at the start of a file has: 3, or 0."""
    with file.open("rb") as source:
        return len(codecs.BOM_UTF8) * (source.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8)


def texts_of(file: Path) -> Iterator[str]:
    """The text of a file, block by block, without a byte order mark.

    Raises:
        InputError: it is not UTF-8.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    with file.open("rb") as source:
        try:
            while block := source.read(BLOCK):
                yield decode(block)
            decode(b"", final=True)
        except UnicodeDecodeError as error:
            check_encoding(file)
            raise InputError(f"{file}: ends within a character; save it as UTF-8") from error


def count_characters(files: list[Path]) -> Counter[str]:
    """How often each character occurs in the files.

    Raises:
        InputError: one is not UTF-8.
    """
    counts = Counter[str]()
    for file in files:
        for text in texts_of(file):
            counts.update(text)
    return counts


def check_encoding(path: Path, encoding: str = "utf-8") -> None:
    """Refuse a file that is not in this encoding.

    Raises:
        InputError: names the first wrong byte (from 0) and its line (from 1).
    """
    decode = codecs.getincrementaldecoder(encoding)().decode
    offset, line = 0, 1
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK)
            try:
                decode(block, final=not block)
            except UnicodeDecodeError as error:
                # the decoder may still hold bytes of the block before
                start = offset + error.start - (len(error.object) - len(block))
                line += block[: max(0, start - offset)].count(b"\n")
                mend = "save the file as UTF-8"
                if path.suffix.lower() in ENCODED:
                    mend += ", or name its encoding with --encoding"
                raise InputError(
                    f"{path}, line {line}: byte {start} is not {encoding.upper()}; {mend}"
                ) from error
            if not block:
                return
            offset, line = offset + len(block), line + block.count(b"\n")


def check_mistaken(path: Path, encoding: str) -> None:
    """Refuse a table whose bytes show that its encoding is another than this one.

    Raises:
        InputError: names the encoding; or the file is packed, and so is no text.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    for mark, kind in PACKED.items():
        if head.startswith(mark):
            raise InputError(f"{path}: expected text, and this is {kind}")
    least = 0 if encoding.startswith(WIDE) else len(head) // MANY_ZEROS
    shown = _shown_encodings(head, least) or (("utf-8",) if _is_utf8_alone(path, encoding) else ())
    if shown and encoding not in shown:
        raise InputError(
            f"{path}: its text is {shown[0].upper()} and not {encoding}; read it with --encoding "
            f"{shown[0]}"
        )
    if not shown and encoding.startswith(WIDE):
        raise InputError(
            f"{path}: its text is not {encoding}; name its encoding with --encoding, such as cp1252"
        )


def _shown_encodings(head: bytes, least: int) -> tuple[str, ...]:
    """The encodings that a table with these first bytes can have; empty where they tell none.

    In UTF-16 and UTF-32 every comma and every line break has zero bytes, at the same places. Up to
    `least` zero bytes may be there by accident.
    """
    for mark, names in MARKS.items():
        if head.startswith(mark):
            return names
    first, second = (head[place::2].count(0) for place in (0, 1))
    if not least < first + second < MOST_ZEROS * len(head):
        return ()
    bits = 32 if 2 * (first + second) > len(head) + 1 else 16
    return (f"utf-{bits}-{'be' if first > second else 'le'}",)


def _is_utf8_alone(path: Path, encoding: str) -> bool:
    """Whether a file is UTF-8, and would be other text in this encoding."""
    if encoding == "utf-8":
        return False
    characters = set[str]()
    try:
        for text in texts_of(path):
            characters.update(text)
    except InputError:
        return False
    is_single = len(bytes(range(128, 256)).decode(encoding, "replace")) == 128
    count = sum(not character.isascii() for character in characters)
    return encoding.startswith(WIDE) or count >= (1 if is_single else MANY_CHARACTERS)
