"""Parquet, Arrow and JSON Lines files, read a batch of rows at a time, and all formats of tables.

Source: https://arrow.apache.org/docs/python/ (json, parquet, ipc).
"""

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs
import pyarrow.json
import pyarrow.parquet

from lstm_compile.config import MAX_SIZE
from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.csv_file import Csv
from lstm_compile.data.tables.dialect import Dialect, dialect_of, open_text
from lstm_compile.data.tables.folders import find_files
from lstm_compile.data.tables.pages import check_pages
from lstm_compile.data.tables.source import (
    BATCH_ROWS,
    BLOCK_BYTES,
    Source,
    TableFiles,
    too_long,
    too_many,
)
from lstm_compile.data.tables.values import is_date
from lstm_compile.data.text_files import check_mistaken
from lstm_compile.errors import InputError, reason

ARROW_FILE = b"ARROW1"  # the first bytes of an IPC file; a stream begins otherwise
MOST_CELLS = 1 << 24  # of a sample
MANY_BRACKETS = 1000  # of a row


class Parquet(Source):
    """A Parquet file.

    Attributes:
        groups: the number of rows of each row group.
        filesystem: the `pyarrow.fs` that `path` lies in.
    """

    def __init__(
        self,
        path: Path,
        constants: Mapping[str, str] | None = None,
        dialect: Dialect = Dialect(),  # noqa: B008
        filesystem: Any = None,
    ) -> None:
        self.filesystem = filesystem or pa.fs.LocalFileSystem()
        self.groups: list[int] = []
        self._part: range | None = None
        super().__init__(path, constants, dialect)

    def part(self, groups: range) -> "Parquet":
        """The same file, reduced to some row groups."""
        part = copy(self)
        part._part = groups
        return part

    def _open(self) -> Any:
        return self.filesystem.open_input_file(self.path.as_posix())

    def _size(self) -> int:
        with self._open() as file:
            return int(file.size())

    def _types(self) -> list[tuple[str, Any]]:
        self._stamp = self._stamped()
        with self._open() as opened, pa.parquet.ParquetFile(opened) as file:
            self.groups = self._checked(opened)
            self._metadata = file.metadata
            return [(field.name, field.type) for field in file.schema_arrow]

    def _stamped(self) -> object:
        """Size and time of the file, which change when it is written again."""
        info = self.filesystem.get_file_info(self.path.as_posix())
        return info.size, info.mtime_ns

    def _checked(self, file: Any) -> list[int]:
        is_near = isinstance(self.filesystem, pa.fs.LocalFileSystem)
        try:
            return check_pages(file, file.size(), each=is_near)
        except (ValueError, IndexError, TypeError) as error:
            raise InputError(
                f"{self.path}: not a complete .parquet file ({reason(error)}); write or copy it "
                "again"
            ) from error

    def _batches(self, columns: list[str], as_numbers: bool) -> Iterator[Any]:  # noqa: ARG002
        # pre_buffer would hold a whole row group, and there may be only one
        options: Any = {"pre_buffer": False, "buffer_size": 1 << 20, "metadata": self._metadata}
        groups = range(len(self.groups)) if self._part is None else self._part
        # not closed by hand: after an error in one thread, others still read columns
        with pa.parquet.ParquetFile(self._open(), **options) as file:
            if self._stamped() != self._stamp:
                raise InputError(f"{self.path}: changed while it was read; read it again")
            stored = [self._stored_names[name] for name in columns]
            yield from file.iter_batches(BATCH_ROWS, row_groups=groups, columns=stored)


class Arrow(Source):
    """An Arrow IPC file (Feather version 2) or stream."""

    def _types(self) -> list[tuple[str, Any]]:
        with self._open(None) as (reader, _):
            return [(field.name, field.type) for field in reader.schema]

    def _batches(self, columns: list[str], as_numbers: bool) -> Iterator[Any]:  # noqa: ARG002
        indices = sorted(list(self.types).index(name) for name in columns)
        with self._open(pa.ipc.IpcReadOptions(included_fields=indices)) as (reader, is_stream):
            if is_stream:
                yield from reader
                return
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)

    @contextmanager
    def _open(self, options: Any) -> Iterator[tuple[Any, bool]]:
        # not memory-mapped: pages of the file would count as this program's memory
        with pa.OSFile(str(self.path)) as file:
            is_stream = file.read(len(ARROW_FILE)) != ARROW_FILE
            file.seek(0)
            open_it = pa.ipc.open_stream if is_stream else pa.ipc.open_file
            yield open_it(file, options=options), is_stream


class JsonLines(Source):
    """A file with one JSON object a line; blank lines do not count as rows."""

    def _types(self) -> list[tuple[str, Any]]:
        check_mistaken(self.path, self.dialect.encoding)
        with self._open() as file:
            lines = self._lines(file)
        rows = MOST_CELLS // max(1, self._count_columns(lines))
        sample = self._parse(lines[:rows], 0, None)
        return [(f.name, pa.string() if is_date(f.type) else f.type) for f in sample.schema]

    def _batches(self, columns: list[str], as_numbers: bool) -> Iterator[Any]:
        kinds = {self._stored_names[name]: self.types[name] for name in columns}
        wide = {name: _widened(kind) for name, kind in kinds.items()}
        row = 0
        with self._open() as file:
            while lines := self._lines(file):
                try:
                    table = self._parse(lines, row, wide if as_numbers else kinds)
                except InputError:  # 3 in the first rows, 3.5 here
                    if as_numbers or wide == kinds:
                        raise
                    table = self._parse(lines, row, wide)
                row += table.num_rows
                yield from table.combine_chunks().to_batches()

    def _open(self) -> BinaryIO:
        file = io.BufferedReader(open_text(self.path, self.dialect.encoding))
        if file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
            file.read(len(codecs.BOM_UTF8))
        return file

    def _count_columns(self, lines: list[bytes]) -> int:
        """The number of names in all rows; pyarrow gives each of them a cell in every row."""
        names = set[str]()
        for line in filter(bytes.strip, lines):
            try:
                names.update(json.loads(line))
            except UnicodeDecodeError:
                raise
            except (ValueError, TypeError, RecursionError) as error:
                raise _bad_line(self.path, lines, 0, error) from error
            if len(names) > MAX_SIZE:
                raise too_many(self.path, len(names))
        return len(names)

    def _lines(self, file: BinaryIO) -> list[bytes]:
        """The next lines, about `BLOCK_BYTES` in all."""
        lines, size = list[bytes](), 0
        while size < BLOCK_BYTES and (line := file.readline(BLOCK_BYTES + 1)):
            if len(line) > BLOCK_BYTES:
                raise too_long(self.path)
            lines.append(line)
            size += len(line)
        return lines

    def _parse(self, lines: list[bytes], row: int, types: dict[str, Any] | None) -> Any:
        deep = (line for line in lines if line.count(b"[") + line.count(b"{") > MANY_BRACKETS)
        try:
            for line in deep:
                json.loads(line)  # pyarrow recurses without a limit
        except (ValueError, RecursionError) as error:
            raise _bad_line(self.path, lines, row, error) from error
        text = b"".join(lines)
        if not text.isascii():
            text.decode()  # pyarrow does not check
        options = pa.json.ParseOptions(
            explicit_schema=pa.schema(list(types.items())) if types else None,
            unexpected_field_behavior="ignore" if types else "infer",
        )
        size = pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
        try:
            return pa.json.read_json(io.BytesIO(text), size, options)
        except pa.ArrowException as error:
            raise _bad_line(self.path, lines, row, error) from error


SOURCES: dict[str, type[Source]] = {
    ".csv": Csv,
    ".parquet": Parquet,
    ".arrow": Arrow,
    ".feather": Arrow,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
}


def open_files(
    path: str | PathLike[str],
    options: TableOptions = TableOptions(),  # noqa: B008
    schema: Schema | None = None,
) -> TableFiles:
    """The files of a table, sorted by path; `schema` is that of a trained model.

    Raises:
        InputError: no such file, none in the folder, or a damaged one.
    """
    files = find_files(path)
    dialect = dialect_of(options, schema)
    return TableFiles([SOURCES[f.path.suffix.lower()](f.path, f.constants, dialect) for f in files])


def _bad_line(path: Path, lines: list[bytes], row: int, error: Exception) -> InputError:
    """The error that names the line that pyarrow refused; pyarrow counts from its own block."""
    seen: dict[str, str] = {}
    for number, line in enumerate((line for line in lines if line.strip()), row + 1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as wrong:
            return InputError(f"{path}, row {number}: not a JSON object ({wrong}); mend the line")
        if not isinstance(found, dict):
            return InputError(f"{path}, row {number}: expected a JSON object, found {line[:40]!r}")
        for name, value in found.items():
            kind = _json_kind(value)
            if kind and seen.setdefault(name, kind) != kind:
                return InputError(
                    f"{path}, row {number}, column {name!r}: found {value!r}, {kind}, but the rows "
                    f"before hold {seen[name]}; give a column one type"
                )
    return InputError(f"{path}, row {row + 1} or later: {reason(error)}; one type a column")


def _widened(kind: Any) -> Any:
    may_be_float = pa.types.is_integer(kind) or pa.types.is_null(kind)  # null: no value so far
    return pa.float64() if may_be_float else kind


def _json_kind(value: object) -> str:
    kinds = {str: "text", bool: "true or false", int: "numbers", float: "numbers"}
    return "" if value is None else kinds.get(type(value), "nested values")
