"""A file of a long table as a stream of cells, and its errors in one line."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from lstm_compile.config import MAX_SIZE
from lstm_compile.data.tables.columns import Kind
from lstm_compile.data.tables.encoding import check_utf8
from lstm_compile.data.tables.values import kind_of, type_of_text
from lstm_compile.errors import InputError, reason

BATCH_ROWS = 1 << 16
TEXT_FORMATS = (".csv", ".jsonl", ".ndjson")
BLOCK_BYTES = 1 << 22  # of text parsed at once; no row may be longer


class Source(ABC):
    """One file of a table.

    Attributes:
        path: the file.
        types: the Arrow type of each column, in the file's order, then those of `constants`.
        constants: columns that a folder called `name=value` gives all rows of the file.
        texts: columns whose cells come as text, whatever they mean.
    """

    is_text = False

    def __init__(self, path: Path, constants: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.constants = dict(constants or {})
        with translated(path):
            if self._size() == 0:
                raise InputError(f"{path}: the file is empty; expected a table")
            types = self._types()
        if len(types) > MAX_SIZE:
            raise too_many(path, len(types))
        types += [(n, type_of_text(pa.array([v]))) for n, v in self.constants.items()]
        names = [name for name, _ in types]
        for name, count in Counter(names).items():
            if count > 1:
                raise InputError(
                    f"{path}: two columns are called {name!r}, counting folders called name=value; "
                    f"rename one, names must differ"
                )
        self.types = dict(types)
        self.texts = set(names if self.is_text else self.constants)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each column holds, in the file's order."""
        return {name: kind_of(kind) for name, kind in self.types.items()}

    def batches(
        self, columns: Sequence[str], *, as_numbers: bool = False
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """How many rows, at most `BATCH_ROWS`, and an Arrow array a column, in the file's order.

        Args:
            columns: some of `types`; may be none.
            as_numbers: whether JSON numbers are wanted as float64 even where they look whole.

        Raises:
            InputError: the file is damaged.
        """
        stored = [name for name in columns if name not in self.constants]
        stored = stored or [next(iter(self.types))]  # something whose rows can be counted
        with translated(self.path):
            for batch in self._batches(stored, as_numbers):
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    part = batch.slice(start, BATCH_ROWS)
                    part.validate(full=True)  # damaged files can hold text beyond their own end
                    cells = dict(zip(part.schema.names, part.columns, strict=True))
                    for name, value in self.constants.items():
                        cells[name] = pa.repeat(pa.scalar(value), part.num_rows)
                    yield part.num_rows, cells

    def _size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    @abstractmethod
    def _types(self) -> list[tuple[str, Any]]: ...

    @abstractmethod
    def _batches(self, columns: list[str], as_numbers: bool) -> Iterator[Any]: ...


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what pyarrow and the system raise about a file into one line.

    Raises:
        InputError: instead of theirs.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        if path.suffix.lower() in TEXT_FORMATS:
            check_utf8(path)
        raise InputError(f"{path}: holds text that is not UTF-8; write it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or reason(error)})") from error
    except pa.ArrowException as error:
        raise _translated(path, error) from error


def _translated(path: Path, error: Exception) -> InputError:
    text = reason(error)
    if "UTF8" in text and path.suffix.lower() in TEXT_FORMATS:
        check_utf8(path)
    if "straddl" in text:
        return too_long(path)
    if "Row #" in text and "Expected" in text:  # pyarrow counts the header as row 1
        number, _, counts = text.partition("Row #")[2].partition(": ")
        counts = counts.partition(":")[0].replace("Expected", "expected").replace("got", "found")
        return InputError(f"{path}, row {int(number) - 1}: {counts}; mend or drop the row")
    if isinstance(error, MemoryError):
        return InputError(
            f"{path}: damaged, or more than this machine's memory holds ({text}); copy it again"
        )
    kind = path.suffix.lower()
    return InputError(f"{path}: not a complete {kind} file ({text}); write or copy it again")


def too_long(path: Path) -> InputError:
    """What to say of a row that is longer than a block."""
    limit = BLOCK_BYTES >> 20
    return InputError(
        f"{path}: a row is longer than {limit} MB; is a quote not closed? Expected short rows"
    )


def too_many(path: Path, columns: int) -> InputError:
    """What to say of a file with more columns than a model can have features."""
    return InputError(f"{path}: {columns} columns or more, expected at most {MAX_SIZE}")
