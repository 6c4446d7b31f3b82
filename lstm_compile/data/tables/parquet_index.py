"""The place of each sequence in Parquet files, so that a row group can be read when needed.

One pass reads ids, times and labels. The memory it takes grows with the number of sequences, not of
rows. Loads no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import nan
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from numpy.typing import NDArray

from lstm_compile.data.tables.columns import ReadRequest
from lstm_compile.data.tables.folders import FORMATS, find_files, folder_columns, is_address
from lstm_compile.data.tables.formats import Parquet
from lstm_compile.data.tables.labels import Labels
from lstm_compile.data.tables.long import GapFiller, check_columns, feature_block
from lstm_compile.data.tables.roles import Roles, infer_roles
from lstm_compile.data.tables.source import RowBatch, TableFiles
from lstm_compile.data.tables.values import to_names, to_times
from lstm_compile.errors import InputError, reason
from lstm_compile.formatting import listing

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
MEND_ORDER = "sort the rows by sequence and time, or leave --stream out"


@dataclass(frozen=True, eq=False)
class ParquetIndex:
    """The places of all sequences of a set of Parquet files, in the order of the files.

    A unit is read at once: it is the sequences that begin in one row group.
    """

    path: str  # the set, for messages
    files: TableFiles
    roles: Roles
    starts: Ints  # int64 (sequences,), the first row of each, counted over all files
    lengths: Ints  # int64 (sequences,), the rows of each
    bounds: Ints  # int64 (units + 1,), the first sequence of each unit, and how many there are
    labels: list[Labels]  # one a target column

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
        """The sequences of a unit, float32 (rows, features), and how many values were missing.

        They are read into `x`; None allocates memory.

        Raises:
            InputError: a cell that is no number, or missing where that is an error.
        """
        x, roles = self._values(unit, x), self.roles
        if roles.missing == "error":
            return x, 0
        filler = GapFiller(self.path, roles.features, roles.missing, roles.means)
        return x, filler.fill(x, self.lengths[self.bounds[unit] : self.bounds[unit + 1]])

    def with_means(self) -> "ParquetIndex":
        """The same, with the means of the features if gaps are filled with them."""
        if self.roles.missing not in ("forward", "mean"):
            return self
        width = len(self.roles.features)
        sums, counts = np.zeros(width), np.zeros(width)
        for unit in range(len(self.steps)):
            x = self._values(unit, None)
            is_finite = np.isfinite(x)
            sums += np.where(is_finite, x, 0).sum(0, dtype=np.float64)
            counts += is_finite.sum(0)
        means = np.divide(sums, counts, out=np.full(width, nan), where=counts > 0)
        rounded = tuple(means.astype(np.float32).astype(float).tolist())
        return replace(self, roles=replace(self.roles, means=rounded))

    def _values(self, unit: int, x: Floats | None) -> Floats:
        """The features of a unit as they stand in the file, gaps not filled."""
        begin = int(self.starts[self.bounds[unit]])
        end = begin + int(self.steps[unit])
        if x is None:
            x = np.empty((end - begin, len(self.roles.features)), np.float32)
        source, first, row = self._group_of(begin)
        part = source.part(range(first, self._group_of(end - 1)[1] + 1))
        for count, cells in part.batches(self.roles.features, as_numbers=True):
            low, high = max(begin, row), min(end, row + count)
            if low < high:
                mine = {name: each.slice(low - row, high - low) for name, each in cells.items()}
                batch = RowBatch(low, 0, high - low, mine)
                x[low - begin : high - begin] = feature_block(self.files, self.roles, batch)
            row += count
        return x

    def _group_of(self, row: int) -> tuple[Parquet, int, int]:
        """The file and the row group that hold a row, and the first row of that group."""
        file = int(np.searchsorted(self.files.starts, row, side="right")) - 1
        source = self.files.sources[file]
        assert isinstance(source, Parquet)
        starts = self.files.starts[file] + np.cumsum([0, *source.groups])
        group = int(np.searchsorted(starts, row, side="right")) - 1
        return source, group, int(starts[group])


def index_parquet(request: ReadRequest) -> ParquetIndex:
    """Read the id, time and target columns of Parquet files.

    The path may be an address that `pyarrow.fs` knows, too, such as `s3://bucket/folder`.

    Raises:
        InputError: no such files, others than Parquet, a damaged one, no row, an empty id, time or
            label, or rows of a sequence that are not together and in order in one file.
    """
    path, options = request.path, request.options
    others = [f"--{name}" for name in ("text", "categories") if getattr(options, name)]
    if options.series_flags or others:
        flags = listing(options.series_flags or others)
        mend = "leave --stream out"
        if others == ["--categories"]:
            mend += ", or write one column of 0 and 1 for each category"
        raise InputError(f"{path}: {flags} does not go with --stream; {mend}")
    sources = list(_open(path))
    roles = infer_roles(str(sources[0].path), sources[0].kinds, request)
    files, groups = TableFiles(sources), [rows for source in sources for rows in source.groups]
    check_columns(files, roles)
    scan = _Scan(files, roles)
    for batch in files.scan(roles.index_columns, request.progress, sum(groups)):
        scan.add(batch)
    scan.check_ids()
    starts, ends = scan.starts, np.cumsum(groups)
    units = np.searchsorted(ends, starts, side="right")
    bounds = np.flatnonzero(np.concatenate(([True], units[1:] != units[:-1], [True])))
    lengths = np.diff(starts, append=files.starts[-1])
    return ParquetIndex(fspath(path), files, roles, starts, lengths, bounds, scan.labels)


def _open(path: str | PathLike[str]) -> Iterator[Parquet]:
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
        dataset = pa.dataset.dataset(address, format="parquet")
    except (OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{address}: cannot be opened ({reason(error)})") from error
    paths = [Path(file) for file in sorted(dataset.files) if file.endswith(".parquet")]
    if not paths:
        raise InputError(f"{address}: no file here; expected files that end in .parquet")
    for path in paths:
        yield Parquet(path, folder_columns(path.parts[:-1]), filesystem=dataset.filesystem)


class _Scan:
    """The sequences found so far, in the order of the files."""

    def __init__(self, files: TableFiles, roles: Roles) -> None:
        self.labels = [Labels(name) for name in roles.target]
        self._files, self._roles = files, roles
        self._starts: list[Ints] = []  # of the sequences of each batch
        self._ids: list[Any] = []  # Arrow arrays
        self._count = 0  # of sequences
        self._file = -1  # of the last row
        self._last: tuple[Any, Any] | None = None  # its id and time; None as a file begins
        self._is_dates: bool | None = None

    @property
    def starts(self) -> Ints:
        """The first row of each sequence, int64 (sequences,)."""
        return np.concatenate(self._starts)

    def add(self, batch: RowBatch) -> None:
        """Add the rows of a batch.

        Raises:
            InputError: an empty cell, labels that differ, or rows out of order.
        """
        if batch.file != self._file:
            self._file, self._last = batch.file, None
        ids, times = (
            None if name is None else self._files.convert(batch, name, convert)
            for name, convert in ((self._roles.id, to_names), (self._roles.time, to_times))
        )
        is_first = self._first_rows(batch.size, ids)
        if times is not None:
            self._check_times(batch.start, times, ids, is_first)
        firsts = np.flatnonzero(is_first)
        self._starts.append(batch.start + firsts)
        if ids is not None:
            self._ids.append(ids.take(pa.array(firsts)))
        sequences = (self._count - 1 + is_first.cumsum()).astype(np.int32)
        for label in self.labels:
            label.add(batch, self._files, sequences, self._id_of)
        self._last = None if ids is None else ids[-1:], None if times is None else times[-1:]
        self._count += len(firsts)

    def check_ids(self) -> None:
        """Check that the rows of each id are together.

        Raises:
            InputError: names the second place of the first id whose rows are not.
        """
        if self._roles.id is None:
            return
        ids = pa.chunked_array(self._ids)
        if pc.count_distinct(ids).as_py() == len(ids):
            return
        names = ids.combine_chunks().dictionary_encode().indices.to_numpy()
        again = int(np.delete(np.arange(len(names)), np.unique(names, return_index=True)[1])[0])
        begin = self._files.place(int(self.starts[np.flatnonzero(names == names[again])[0]]))
        found = f"{ids[again].as_py()!r} again, which began in {begin}"
        expected = "the rows of a sequence together"
        self._files.refuse(int(self.starts[again]), self._roles.id, found, expected, MEND_ORDER)

    def _id_of(self, sequence: int) -> str:
        if self._roles.id is None:
            return str(self._files.sources[sequence].path)
        return str(pa.chunked_array(self._ids)[sequence].as_py())

    def _first_rows(self, count: int, ids: Any) -> NDArray[np.bool_]:
        """Which rows begin a sequence, bool (count,)."""
        is_first = np.zeros(count, bool)
        is_first[0] = self._last is None
        if ids is not None:
            is_first[1:] = np.asarray(pc.not_equal(ids[1:], ids[:-1]))
            if self._last is not None:
                is_first[0] = self._last[0][0].as_py() != ids[0].as_py()
        return is_first

    def _check_times(
        self, start: int, times: NDArray[Any], ids: Any, is_first: NDArray[np.bool_]
    ) -> None:
        column, is_dates = self._roles.time, times.dtype.kind == "M"
        assert column is not None
        if self._is_dates not in (None, is_dates):
            self._files.refuse_kind(start, column, is_dates=is_dates)
        self._is_dates = is_dates
        before = times[:1] if self._last is None else self._last[1]
        before = np.concatenate((before, times[:-1]))
        for row in np.flatnonzero(~is_first & ~(times > before))[:1]:
            of = "" if ids is None else f" in the sequence of id {ids[int(row)].as_py()!r}"
            found = f"{times[row]!s} after {before[row]!s}{of}"
            self._files.refuse(start + int(row), column, found, "times that rise", MEND_ORDER)
