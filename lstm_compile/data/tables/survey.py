"""Where the sequences of Parquet files lie, and those of one row group read. Loads no torch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import nan
from os import PathLike, fspath
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray

from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import FORMATS, constants_of, find_files, is_address, is_set
from lstm_compile.data.tables.formats import Parquet
from lstm_compile.data.tables.gaps import fill
from lstm_compile.data.tables.keys import Labels
from lstm_compile.data.tables.long import check_columns, to_block
from lstm_compile.data.tables.roles import Roles, infer_roles
from lstm_compile.data.tables.row_places import RowPlaces
from lstm_compile.data.tables.spans import Spans
from lstm_compile.errors import InputError, reason
from lstm_compile.formatting import listing

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True, eq=False)
class Survey:
    """The sequences of a set of Parquet files, in the order of the files; only their places.

    A unit is what is read at once: the sequences that begin in one row group.

    Attributes:
        path: the set, for messages.
        rows: where rows stand.
        roles: the columns of the files.
        starts: int64 (sequences,), the first row of each, counted over all files.
        lengths: int64 (sequences,), the rows of each.
        bounds: int64 (units + 1,), the first sequence of each unit, and how many there are.
        labels: one a target column.
    """

    path: str
    rows: RowPlaces
    roles: Roles
    starts: Ints
    lengths: Ints
    bounds: Ints
    labels: list[Labels]

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def steps(self) -> Ints:
        """Rows of each unit, int64 (units,)."""
        return np.add.reduceat(self.lengths, self.bounds[:-1])

    def place(self, unit: int) -> str:
        """A unit in a message."""
        source, group, _ = self._group_of(int(self.starts[self.bounds[unit]]))
        return f"{source.path}, row group {group}"

    def read(self, unit: int, x: Floats | None = None) -> tuple[Floats, int]:
        """The features of the sequences of a unit, and how many values of them were missing.

        Args:
            unit: which one.
            x: where to put them; None makes room.

        Returns:
            float32 (rows, features), one sequence after the other.

        Raises:
            InputError: a cell that is no number, or missing where that is an error.
        """
        first, last = self.bounds[unit], self.bounds[unit + 1]
        x, roles = self._values(unit, x), self.roles
        if roles.missing == "error":
            return x, 0
        lengths = self.lengths[first:last]
        return x, fill(self.path, x, lengths, roles.features, roles.missing, roles.means)

    def with_means(self) -> "Survey":
        """The same, with the means of the features where gaps are filled with these."""
        if self.roles.missing not in ("forward", "mean"):
            return self
        width = len(self.roles.features)
        sums, counts = np.zeros(width), np.zeros(width)
        for unit in range(len(self.steps)):
            x = self._values(unit, None)
            is_there = np.isfinite(x)
            sums += np.where(is_there, x, 0).sum(0, dtype=np.float64)
            counts += is_there.sum(0)
        means = np.divide(sums, counts, out=np.full(width, nan), where=counts > 0)
        found = tuple(means.astype(np.float32).astype(float).tolist())
        return replace(self, roles=replace(self.roles, means=found))

    def _values(self, unit: int, x: Floats | None) -> Floats:
        """As they stand in the file."""
        begin = int(self.starts[self.bounds[unit]])
        end = begin + int(self.steps[unit])
        if x is None:
            x = np.empty((end - begin, len(self.roles.features)), np.float32)
        source, first, row = self._group_of(begin)
        _, last, _ = self._group_of(end - 1)
        part = source.part(range(first, last + 1))
        for count, cells in part.batches(self.roles.features, as_numbers=True):
            low, high = max(begin, row), min(end, row + count)
            if low < high:
                mine = {name: each.slice(low - row, high - low) for name, each in cells.items()}
                x[low - begin : high - begin] = to_block(self.rows, self.roles, low, mine)
            row += count
        return x

    def _group_of(self, row: int) -> tuple[Parquet, int, int]:
        """The file and the row group that hold a row, and the first row of that group."""
        file = int(np.searchsorted(self.rows.starts, row, side="right")) - 1
        source = self.rows.sources[file]
        assert isinstance(source, Parquet)
        starts = self.rows.starts[file] + np.cumsum([0, *source.groups])
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return source, group, int(starts[group])


def survey(
    path: str | PathLike[str],
    options: TableOptions | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Go over the id, time and target columns of Parquet files.

    Args:
        path: a file, a folder, a glob, or an address that `pyarrow.fs` knows, such as
            `s3://bucket/folder`.
        options: which columns to take, and what to do about gaps; None infers the columns.
        progress: called with rows done and rows in all.

    Raises:
        InputError: no such files, others than Parquet, a damaged one, no row, an empty id, time or
            label, or rows of a sequence that are not together and in order in one file.
    """
    options = options or TableOptions()
    if options.given_for_series or options.text:
        flags = listing(options.given_for_series or ["--text"])
        raise InputError(f"{path}: {flags} does not go with --stream; leave one of them out")
    sources = list(_open(path))
    several, kinds = is_address(path) or is_set(path), sources[0].kinds
    roles = infer_roles(str(sources[0].path), kinds, options, several_files=several)
    check_columns(sources, roles)
    spans, total = Spans(RowPlaces(sources), roles), sum(sum(source.groups) for source in sources)
    for source in sources:
        spans.read(source, lambda done: progress(done, total) if progress else None)
    spans.check_together()
    starts, groups = spans.starts, [rows for source in sources for rows in source.groups]
    units = np.searchsorted(np.cumsum(groups), starts, side="right")
    bounds = np.flatnonzero(np.concatenate(([True], units[1:] != units[:-1], [True])))
    lengths = np.diff(starts, append=spans.done)
    return Survey(fspath(path), spans.rows, roles, starts, lengths, bounds, spans.labels)


def _open(path: str | PathLike[str]) -> Iterator[Parquet]:
    """The files of a set.

    Raises:
        InputError: no such files, others than Parquet, or a damaged one.
    """
    if is_address(path):
        yield from _open_address(fspath(path))
        return
    files = find_files(path)
    if (kind := FORMATS[files[0].path.suffix.lower()]) != "Parquet":
        raise InputError(
            f"{files[0].path}: --stream reads Parquet, and this is {kind}; write it as Parquet, or "
            "leave --stream out"
        )
    for file in files:
        yield Parquet(file.path, file.constants)


def _open_address(address: str) -> Iterator[Parquet]:
    try:
        found = pa.dataset.dataset(address, format="parquet")
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{address}: cannot be opened ({reason(error)})") from error
    files = sorted(file for file in found.files if file.endswith(".parquet"))
    if not files:
        raise InputError(f"{address}: no file here; expected files that end in .parquet")
    for file in files:
        path = Path(file)
        yield Parquet(path, constants_of(path.parts[:-1]), found.filesystem)
