"""The files of a path: one file, a folder of files, or a glob."""

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
    """A file, and the columns that its rows get from folders called `name=value` above it."""

    path: Path
    constants: dict[str, str]


def is_text(path: str | PathLike[str]) -> bool:
    """Whether a path means text: by its suffix, or a folder of texts without any table."""
    place = Path(path)
    if not place.is_dir():
        return place.suffix.lower() in TEXT_SUFFIXES
    suffixes = {file.suffix.lower() for file in _visible_files(place)}
    return not suffixes.isdisjoint(TEXT_SUFFIXES) and suffixes.isdisjoint(FORMATS)


def is_table(path: str | PathLike[str]) -> bool:
    """Whether a path means a long table: by its suffix, as a folder or as a glob."""
    return Path(path).suffix.lower() in FORMATS or is_several(path)


def is_several(path: str | PathLike[str]) -> bool:
    """Whether a path means any number of files: a folder, or a glob."""
    return Path(path).is_dir() or (glob.has_magic(fspath(path)) and not Path(path).exists())


def is_address(path: str | PathLike[str]) -> bool:
    """Whether a path is an address with a scheme, such as `s3://bucket/folder`."""
    return "://" in fspath(path)


def plain_name(path: str | PathLike[str]) -> str:
    """The path that a run is named after: the part of a glob before its first wildcard."""
    if is_address(path):
        return fspath(path).rstrip("/")
    if not is_several(path) or Path(path).is_dir():
        return fspath(path)
    plain = _plain_parts(Path(path))
    return plain[-1] if plain and plain[-1] != "/" else "table"


def find_files(path: str | PathLike[str]) -> list[TableFile]:
    """The files of a table, sorted by path; those that begin with `.` or `_` are left out.

    Raises:
        InputError: no such file or none in the folder, no table, or more than one format.
    """
    place = Path(path)
    if not is_several(path):
        if place.suffix.lower() not in FORMATS:
            raise InputError(
                f"{path}: expected a file that ends in {_endings()}, found "
                f"{repr(place.suffix) if place.suffix else 'no ending'}"
            )
        return [TableFile(place, {})]
    files = matching_files(path)
    if place.is_dir():
        files = sorted(file for file in _visible_files(place) if file.suffix.lower() in FORMATS)
    if not files:
        raise InputError(f"{path}: no file here; expected files that end in {_endings()}")
    _check_one_format(path, files)
    fixed = len(place.parts) if place.is_dir() else len(_plain_parts(place))
    return [TableFile(file, folder_columns(file.parts[fixed:-1])) for file in files]


def matching_files(path: str | PathLike[str]) -> list[Path]:
    """The files that match a glob, sorted."""
    found = (Path(name) for name in glob.glob(fspath(path), recursive=True))
    return sorted(file for file in found if file.is_file())


def folder_columns(folders: Iterable[str]) -> dict[str, str]:
    """The columns that folders called `name=value` give the rows of the files in them."""
    pairs = [part.split("=", 1) for part in folders if "=" in part]
    return {unquote(name): unquote(value) for name, value in pairs if name}


def _plain_parts(path: Path) -> list[str]:
    return list(takewhile(lambda part: not glob.has_magic(part), path.parts))


def _visible_files(folder: Path) -> Iterable[Path]:
    for file in folder.rglob("*"):
        is_hidden = any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
        if not is_hidden and file.is_file():
            yield file


def _check_one_format(path: str | PathLike[str], files: list[Path]) -> None:
    formats = {FORMATS.get(file.suffix.lower(), file.suffix or "no ending") for file in files}
    if len(formats) > 1:
        raise InputError(
            f"{path}: files of {len(formats)} formats: {listing(sorted(formats))}; expected one, "
            f"choose with a glob such as '{path}/*{files[0].suffix}'"
        )
    if not formats <= set(FORMATS.values()):
        raise InputError(f"{files[0]}: expected a file that ends in {_endings()}")


def _endings() -> str:
    return ", ".join(FORMATS)
