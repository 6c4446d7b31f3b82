"""CSV files, read a block of rows at a time.

Source: https://arrow.apache.org/docs/python/csv.html
"""

import codecs
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from lstm_compile.data.tables.dialect import named, open_text
from lstm_compile.data.tables.source import BLOCK_BYTES, Source
from lstm_compile.data.tables.values import (
    DECIMAL_POINT,
    comma_to_point,
    kind_of,
    kinds_of_texts,
    point_advice,
    type_of_text,
)
from lstm_compile.data.text_files import check_mistaken
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

SEPARATORS = (",", ";", "\t", "|")
HEADER_BYTES = 1 << 20
SEPARATOR_LINE = re.compile(rb'"?sep=([^"\r\n\x80-\xff])"?\s*', re.IGNORECASE)
BLANK_LINES = (b"\n", b"\r\n")
SAMPLE_ROWS = 10_000  # that decide the types of columns


class Csv(Source):
    """A CSV file whose first line names the columns; see `SEPARATORS` and `Dialect`."""

    is_text = True

    def _types(self) -> list[tuple[str, Any]]:
        check_mistaken(self.path, self.dialect.encoding)
        above, self._separator = self._header_line()
        self.lines_above = 1 + above
        names = self._open(None, []).schema.names
        places = [str(place) for place in range(len(names))]
        first = next(iter(self._open(places, places)), None)
        if first is None:
            raise InputError(f"{self.path}: no row below the header; expected at least one")
        columns = first.slice(0, SAMPLE_ROWS).columns
        if self.dialect.decimal == ",":
            columns = [comma_to_point(column) for column in columns]
        types = [type_of_text(column) for column in columns]
        _check_header(self.path, names, types, columns)
        if len(set(names)) == len(names) or "" in names:
            names = named(list(zip(names, types, strict=True)), self.dialect.kept)
        self._names = names
        return list(zip(names, types, strict=True))

    def _batches(self, columns: list[str], as_numbers: bool) -> Iterator[Any]:  # noqa: ARG002
        row = 0
        for batch in self._open(self._names, columns):
            yield self._with_points(batch, row) if self.dialect.decimal == "," else batch
            row += batch.num_rows

    def _with_points(self, batch: Any, row: int) -> Any:
        """The rows from number `row` on, with a point for each decimal comma."""
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        numbers = [name for name in columns if kind_of(self.types[name]) == "number"]
        for name in (name for name in numbers if name not in self.as_written):
            has_point = pc.match_substring_regex(columns[name], DECIMAL_POINT).fill_null(False)
            for index in pc.indices_nonzero(has_point).to_pylist()[:1]:
                found = columns[name][index].as_py()
                raise InputError(
                    f"{self.path}, row {row + index + 1}, column {name!r}: found {found!r}, "
                    f"expected a decimal comma and no point; {point_advice(found)}"
                )
            columns[name] = comma_to_point(columns[name])
        return pa.RecordBatch.from_pydict(columns)

    def _open(self, names: list[str] | None, columns: list[str]) -> Any:
        """Columns of the file as text, under the names of all its columns or those it has."""
        return pa.csv.open_csv(
            open_text(self.path, self.dialect.encoding),
            # one thread: only then do pyarrow's errors count rows
            read_options=pa.csv.ReadOptions(
                block_size=BLOCK_BYTES,
                use_threads=False,
                column_names=names,
                skip_rows=self.lines_above - 1,
                skip_rows_after_names=0 if names is None else 1,
            ),
            parse_options=pa.csv.ParseOptions(delimiter=self._separator, newlines_in_values=True),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=columns,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )

    def _header_line(self) -> tuple[int, str]:
        """How many lines stand above the names, and what parts the columns.

        Those lines are blank, comments that begin with `#`, or Excel's `sep=;`.
        """
        separator, comment, found = "", (0, ""), list[tuple[int, str]]()
        for number, line in enumerate(self._first_lines()):
            if not found and (told := SEPARATOR_LINE.fullmatch(line)):
                separator = told[1].decode()
            elif not found and line.startswith(b"#"):
                comment = (number, self._unquoted(line))
            elif line not in BLANK_LINES:
                found.append((number, self._unquoted(line)))
            if len(found) == 2:
                break
        if not found:
            raise InputError(f"{self.path}: no names of columns; expected a line of them")
        (above, header), (_, row) = found[0], found[-1]
        if "\0" in header:
            raise InputError(f"{self.path}: holds zero bytes, and text has none; write it as CSV")
        separator = separator or _separator_of(header, row)
        return comment[0] if _are_names(comment[1], header, separator) else above, separator

    def _first_lines(self) -> Iterator[bytes]:
        """The lines as UTF-8, without a byte order mark."""
        with io.BufferedReader(open_text(self.path, self.dialect.encoding)) as file:
            start = file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8)
            file.read(len(codecs.BOM_UTF8) * start)
            yield from iter(partial(file.readline, HEADER_BYTES), b"")

    def _unquoted(self, line: bytes) -> str:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self._check_encoding()
            text = line.decode("utf-8", "replace")  # cut within a character
        return "".join(text.split('"')[::2])


def _separator_of(header: str, row: str) -> str:
    """The one of `SEPARATORS` that the names, and also the row below them, have most of.

    Of `,` and `;` it is the latter, as in `5;1,5`, where the comma is a decimal one.
    """
    return max(
        SEPARATORS,
        key=lambda s: (min(header.count(s), row.count(s)), header.count(s), s == ";" and s in row),
    )


def _are_names(comment: str, below: str, separator: str) -> bool:
    """Whether a comment holds the names, like `# time,value` above the first row of values."""
    cells = below.split(separator)
    return len(comment.split(separator)) == len(cells) > 1 and {*kinds_of_texts(cells)} != {"text"}


def _check_header(path: Path, names: list[str], types: list[Any], columns: list[Any]) -> None:
    """Refuse a first line that holds values: dates, or what the columns below hold.

    Names may be numbers: `0,1,2` is what pandas calls columns without names, and it writes the
    index without a name.
    """
    pairs = [each for each in zip(names, types, columns, strict=True) if each[0].strip()]
    kinds = kinds_of_texts([name for name, _, _ in pairs])
    of_kind = [
        kind == kind_of(below) and (kind != "text" or pc.is_in(pa.scalar(name), cells).as_py())
        for kind, (name, below, cells) in zip(kinds, pairs, strict=True)
    ]
    numbers = [name.strip() for kind, name in zip(kinds, names, strict=False) if kind == "number"]
    counted = [[str(i + first) for i in range(len(numbers))] for first in (0, 1)]
    has_date = any(kind == "date" and fits for kind, fits in zip(kinds, of_kind, strict=True))
    are_names = "" in names or not numbers or numbers in counted
    if has_date or (all(of_kind) and not are_names):
        raise InputError(
            f"{path}: the first line holds values ({listing(names)}), expected the names of the "
            "columns; write a line of names above it, or rename the columns if it is that line"
        )
