"""Which files a path means: one file, a folder of files, or a glob."""

import glob
from collections.abc import Iterable
from itertools import takewhile
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

FORMATS = {
    ".csv": "CSV",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".feather": "Arrow",
    ".jsonl": "JSON Lines",
    ".ndjson": "JSON Lines",
}
TEXT_SUFFIXES = (".txt", ".md", ".text")


class TableFile(NamedTuple):
    """A file, and the columns that folders called `name=value` above it give its rows."""

    path: Path
    constants: dict[str, str]


def is_text(path: str | PathLike[str]) -> bool:
    """Whether a path means text: by its suffix, or a folder of texts without any table."""
    place = Path(path)
    if not place.is_dir():
        return place.suffix.lower() in TEXT_SUFFIXES
    suffixes = {file.suffix.lower() for file in place.rglob("*") if _counts(file, place)}
    return not suffixes.isdisjoint(TEXT_SUFFIXES) and suffixes.isdisjoint(FORMATS)


def is_table(path: str | PathLike[str]) -> bool:
    """Whether a path means a long table: by its suffix, as a folder or as a glob."""
    return Path(path).suffix.lower() in FORMATS or is_set(path)


def is_set(path: str | PathLike[str]) -> bool:
    """Whether a path means as many files as there are: a folder, or a glob."""
    return Path(path).is_dir() or (glob.has_magic(fspath(path)) and not Path(path).exists())


def is_address(path: str | PathLike[str]) -> bool:
    """Whether a path is an address with a scheme, such as `s3://bucket/folder`."""
    return "://" in fspath(path)


def plain_name(path: str | PathLike[str]) -> str:
    """The path to name a run after: what stands before the first wildcard of a glob."""
    if is_address(path):
        return fspath(path).rstrip("/")
    if not is_set(path) or Path(path).is_dir():
        return fspath(path)
    plain = _plain_parts(Path(path))
    return plain[-1] if plain and plain[-1] != "/" else "table"


def find_files(path: str | PathLike[str]) -> list[TableFile]:
    """The files of a table, sorted by path; those that begin with `.` or `_` are left out.

    Raises:
        InputError: no such file or none in the folder, no table, or more than one format.
    """
    place = Path(path)
    if not is_set(path):
        if place.suffix.lower() not in FORMATS:
            raise InputError(
                f"{path}: expected a file that ends in {_endings()}, found "
                f"{repr(place.suffix) if place.suffix else 'no ending'}"
            )
        return [TableFile(place, {})]
    if place.is_dir():
        found = [file for file in place.rglob("*") if _counts(file, place)]
        files = [file for file in found if file.suffix.lower() in FORMATS]
    else:
        files = [Path(name) for name in glob.glob(fspath(path), recursive=True)]
        files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(f"{path}: no file here; expected files that end in {_endings()}")
    fixed = len(place.parts) if place.is_dir() else len(_plain_parts(place))
    files = _one_format(path, sorted(files))
    return [TableFile(file, constants_of(file.parts[fixed:-1])) for file in files]


def constants_of(folders: Iterable[str]) -> dict[str, str]:
    """The columns that folders called `name=value` give the rows of the files in them."""
    pairs = [part.split("=", 1) for part in folders if "=" in part]
    return {unquote(name): unquote(value) for name, value in pairs if name}


def _plain_parts(path: Path) -> list[str]:
    return list(takewhile(lambda part: not glob.has_magic(part), path.parts))


def _counts(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    return file.is_file() and not any(part.startswith((".", "_")) for part in parts)


def _one_format(path: str | PathLike[str], files: list[Path]) -> list[Path]:
    formats = {FORMATS.get(file.suffix.lower(), file.suffix or "no ending") for file in files}
    if len(formats) > 1:
        raise InputError(
            f"{path}: files of {len(formats)} formats: {listing(sorted(formats))}; expected one, "
            f"choose with a glob such as '{path}/*{files[0].suffix}'"
        )
    if not formats <= set(FORMATS.values()):
        raise InputError(f"{files[0]}: expected a file that ends in {_endings()}")
    return files


def _endings() -> str:
    return ", ".join(FORMATS)
