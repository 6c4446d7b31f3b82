"""The files of a long table, read a batch of rows at a time; every error is one line."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lstm_compile.config import MAX_SIZE
from lstm_compile.data.tables.columns import Kind, Progress
from lstm_compile.data.tables.dialect import Dialect, named
from lstm_compile.data.tables.values import (
    CellError,
    comma_advice,
    kind_of,
    plain,
    to_codes,
    type_of_text,
)
from lstm_compile.data.text_files import ENCODED, check_encoding
from lstm_compile.errors import InputError, reason
from lstm_compile.formatting import near_file

BATCH_ROWS = 1 << 16
BLOCK_BYTES = 1 << 22  # of text parsed at once; no row may be longer
MEND_CELL = "mend the cell or drop the row"


class Source(ABC):
    """One file of a table.

    Attributes:
        path: the file.
        types: the Arrow type of each column, in the file's order, then those of `constants`.
            Blanks around names are left out, and columns without a name get one.
        constants: columns that all rows of the file get from folders called `name=value`.
        texts: columns whose cells are read as text, whatever they mean.
        lines_above: how many lines stand above the first row.
        as_written: columns of numbers in which decimal commas stay.
    """

    is_text = False
    lines_above = 1

    def __init__(
        self,
        path: Path,
        constants: Mapping[str, str] | None = None,
        dialect: Dialect = Dialect(),  # noqa: B008
    ) -> None:
        self.path, self.dialect, self.as_written = path, dialect, set[str | None]()
        self.constants = dict(constants or {})
        with self._translated():
            if self._size() == 0:
                raise InputError(f"{path}: the file is empty; expected a table")
            types = self._types()
        if len(types) > MAX_SIZE:
            raise too_many(path, len(types))
        names = [*named(types, dialect.kept), *self.constants]
        counts = Counter(name for name, _ in types) | Counter(names)
        for name in (name for name, count in counts.items() if count > 1):
            raise InputError(
                f"{path}: two columns are called {name!r}, counting folders called name=value; "
                f"rename one, names must differ"
            )
        self._stored_names = {name: stored for name, (stored, _) in zip(names, types, strict=False)}
        types += [(n, type_of_text(pa.array([v]))) for n, v in self.constants.items()]
        self.types = {name: kind for name, (_, kind) in zip(names, types, strict=True)}
        self.texts = set(names if self.is_text else self.constants)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each column holds, in the file's order."""
        return {name: kind_of(kind) for name, kind in self.types.items()}

    def batches(
        self, columns: Sequence[str], *, as_numbers: bool = False
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Batches of at most `BATCH_ROWS` rows: their number, and an Arrow array for each column.

        Args:
            columns: some of `types`; may be none.
            as_numbers: whether to read JSON numbers as float64 even if they look whole.

        Raises:
            InputError: the file is damaged.
        """
        stored = [name for name in columns if name not in self.constants]
        stored = stored or [next(iter(self.types))]  # something whose rows can be counted
        names = {self._stored_names[name]: name for name in stored}
        with self._translated():
            for batch in self._batches(stored, as_numbers):
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    part = batch.slice(start, BATCH_ROWS)
                    part.validate(full=True)  # damaged files can hold text beyond their own end
                    read = zip(part.schema.names, part.columns, strict=True)
                    cells = {names[name]: plain(each) for name, each in read if name in names}
                    for name, value in self.constants.items():
                        cells[name] = pa.repeat(pa.scalar(value), part.num_rows)
                    yield part.num_rows, cells

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of pyarrow and of the system into an `InputError` of one line."""
        try:
            yield
        except UnicodeError as error:
            if isinstance(error, UnicodeDecodeError):
                self._check_encoding()
            kind, mend = "UTF-8", "write it again"
            if self.dialect.encoding != "utf-8":
                kind, mend = self.dialect.encoding, "name its encoding with --encoding"
            raise InputError(f"{self.path}: holds text that is not {kind}; {mend}") from error
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be read ({error.strerror or reason(error)})"
                f"{near_file(self.path)}"
            ) from error
        except pa.ArrowException as error:
            if "UTF8" in reason(error):
                self._check_encoding()
            found = _translated(self.path, error, self.lines_above)
            if self.path.suffix.lower() in ENCODED and self.dialect.encoding != "utf-8":
                raise InputError(f"{found}; is its encoding {self.dialect.encoding}?") from error
            raise found from error

    def _check_encoding(self) -> None:
        if self.path.suffix.lower() in ENCODED:
            check_encoding(self.path, self.dialect.encoding)

    def _size(self) -> int:
        return self.path.stat().st_size

    @abstractmethod
    def _types(self) -> list[tuple[str, Any]]: ...

    @abstractmethod
    def _batches(self, columns: list[str], as_numbers: bool) -> Iterator[Any]: ...


class RowBatch(NamedTuple):
    """Some rows of a table."""

    start: int  # the number of the first row, counted over all files
    file: int  # the number of their file
    size: int  # how many rows
    cells: dict[str, Any]  # an Arrow array for each column


class TableFiles:
    """The files of a table in order, whose rows are counted over all of them.

    Attributes:
        sources: the files.
        starts: the first row of each file that `scan` has begun, then the number of all rows.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources, self.starts = sources, [0]

    def scan(
        self, columns: Sequence[str], progress: Progress | None = None, total: int = 0
    ) -> Iterator[RowBatch]:
        """Read columns of all files for the first time, and set `starts`.

        `progress` gets `total` as the number of all rows, which is not known yet.

        Raises:
            InputError: a file has no row, or is damaged.
        """
        start = 0
        for number, source in enumerate(self.sources):
            for count, cells in source.batches(columns):
                yield RowBatch(start, number, count, cells)
                start += count
                if progress is not None:
                    progress(start, total)
            if start == self.starts[-1]:
                raise InputError(f"{source.path}: holds no row; expected at least one")
            self.starts.append(start)

    def reread(
        self, columns: Sequence[str], progress: Progress | None = None, as_numbers: bool = False
    ) -> Iterator[RowBatch]:
        """Read columns of all files after `scan`; see `Source.batches`.

        Raises:
            InputError: a file has another number of rows than before, or is damaged.
        """
        start, total = 0, self.starts[-1]
        for number, (source, end) in enumerate(zip(self.sources, self.starts[1:], strict=True)):
            for count, cells in source.batches(columns, as_numbers=as_numbers):
                if start + count > end:
                    raise _changed(source)
                yield RowBatch(start, number, count, cells)
                start += count
                if progress is not None:
                    progress(start, total)
            if start < end:
                raise _changed(source)

    def convert(
        self, batch: RowBatch, column: str, convert: Callable[[Any], Any], mend: str = MEND_CELL
    ) -> Any:
        """What `convert` makes of a batch's cells of a column.

        Raises:
            InputError: `convert` raises `CellError`; names the row and the column.
        """
        try:
            return convert(batch.cells[column])
        except CellError as error:
            kind, source = self.sources[batch.file].kinds[column], self.sources[batch.file]
            if error.mend:
                mend = error.mend
            elif kind == "other" or (kind == "date" and error.expected == "a number"):
                mend = "name another column, or write this one as text or numbers"
            elif column in source.texts:
                advice = comma_advice(str(batch.cells[column][error.index]))
                mend = f"{advice}; else {mend}" if advice else mend
            self.refuse(batch.start + error.index, column, error.found, error.expected, mend)

    def convert_codes(
        self,
        batch: RowBatch,
        column: str,
        known: dict[Any, int],
        key: Callable[[Any], Any],
        mend: str = MEND_CELL,
    ) -> NDArray[np.int32]:
        """The codes of a column's cells; see `values.to_codes` and `convert`."""
        codes: NDArray[np.int32] = self.convert(
            batch, column, lambda cells: to_codes(cells, known, key), mend
        )
        return codes

    def type_of(self, column: str | None) -> Any:
        """The Arrow type of a column; None where the files have no types, and for no column."""
        first = self.sources[0]
        return None if column is None or column in first.texts else first.types[column]

    def place(self, row: int) -> str:
        """`file, row N` for row number `row` of the table, from 0."""
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.sources[file].path}, row {row - self.starts[file] + 1}"

    def refuse_kind(self, row: int, column: str, *, is_dates: bool) -> NoReturn:
        """Raise an error: from `row` on times are dates after numbers, or the reverse.

        Raises:
            InputError: always.
        """
        kinds = ("numbers", "dates")
        self.refuse(row, column, kinds[is_dates], kinds[not is_dates], "one kind in all rows")

    def refuse(self, row: int, column: str, found: str, expected: str, mend: str) -> NoReturn:
        """Raise an error that names a cell.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{self.place(row)}, column {column!r}: found {found}, expected {expected}; {mend}"
        )


def _translated(path: Path, error: Exception, lines_above: int) -> InputError:
    text = reason(error)
    if "straddl" in text:
        return too_long(path)
    if "Row #" in text and "Expected" in text:  # pyarrow counts all lines
        number, _, counts = text.partition("Row #")[2].partition(": ")
        counts = counts.partition(":")[0].replace("Expected", "expected").replace("got", "found")
        row = int(number) - lines_above
        first = (
            "; is the first line that of the names? Begin those above with #" if row == 1 else ""
        )
        return InputError(f"{path}, row {row}: {counts}; mend or drop the row{first}")
    if isinstance(error, MemoryError):
        return InputError(
            f"{path}: damaged, or more than this machine's memory holds ({text}); copy it again"
        )
    kind = path.suffix.lower()
    return InputError(f"{path}: not a complete {kind} file ({text}); write or copy it again")


def _changed(source: Source) -> InputError:
    return InputError(f"{source.path}: changed while it was read; read it again")


def too_long(path: Path) -> InputError:
    """The error that a row is longer than a block."""
    limit = BLOCK_BYTES >> 20
    return InputError(
        f"{path}: a row is longer than {limit} MB; is a quote not closed? Expected short rows"
    )


def too_many(path: Path, columns: int) -> InputError:
    """The error that a file has more columns than a model can have features."""
    return InputError(f"{path}: {columns} columns or more, expected at most {MAX_SIZE}")
