"""Long tables: one row a step; columns name its sequence, its time and its values.

There are two passes. The first reads ids, times and labels and finds the place of each row. The
second puts the values there, so that memory holds them once; then gaps are filled in place. Loads
no torch.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lstm_compile.data.tables.categories import read_categories
from lstm_compile.data.tables.columns import Missing, Progress, ReadRequest
from lstm_compile.data.tables.formats import open_files
from lstm_compile.data.tables.labels import kind_of_labels, sequence_labels, step_labels
from lstm_compile.data.tables.precision import check_columns_rounding, sample
from lstm_compile.data.tables.roles import Roles, infer_roles
from lstm_compile.data.tables.sequence_index import SequenceIndex, index_sequences
from lstm_compile.data.tables.source import RowBatch, TableFiles
from lstm_compile.data.tables.table import Table
from lstm_compile.data.tables.values import CellError, to_floats
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

MEND_FEATURE = (
    "mend the cell, or choose columns with --features, columns of words with --categories"
)
LARGEST = float(np.finfo(np.float32).max)


def read_long(request: ReadRequest) -> Table:
    """Read a long table of one file, a folder or a glob.

    Sequences come in the order in which their ids first appear; the steps of each come in the order
    of the time column, wherever the rows stand.

    The path is that of a `.csv`, `.parquet`, `.arrow`, `.feather`, `.jsonl` or `.ndjson` file, a
    folder of them (those in folders called `name=value` get that column), or a glob.

    Raises:
        InputError: anything wrong with the files, their columns or a value, in one line.
    """
    if flags := request.options.series_flags:
        raise InputError(
            f"{request.path}: {', '.join(flags)} is for series to forecast; add --task forecast"
        )
    files, roles = open_table(request)
    index = index_sequences(files, roles, kind_of_labels(request))
    x, exact = read_features(index, roles, request.progress)
    if request.schema is None:
        mend = ", or leave it out with --features"
        check_columns_rounding(str(request.path), roles.features, exact, mend)
    if roles.missing != "error":
        means = request.options.means or column_means(x, roles.missing)
        filler = GapFiller(str(request.path), roles.features, roles.missing, means)
        roles = replace(roles, filled=filler.fill(x, index.lengths), means=means)
    categories, names = None, roles.features
    if roles.categories:
        codes, categories = read_categories(index, roles, request.schema)
        x, names = np.concatenate((x, codes), 1), roles.features + roles.categories
    y = _labels(request, index)
    targets = None if isinstance(y, list) or not request.labelled else roles.target
    return Table(
        Path(request.path), x, index.lengths, y, names, targets=targets, ids=index.ids,
        roles=roles, per_step=request.step_labels, categories=categories,
        id_type=files.type_of(roles.id),
        times=_times(index, roles) if request.per_step and not request.labelled else None,
    )  # fmt: skip


def _times(index: SequenceIndex, roles: Roles) -> tuple[Any, Any] | None:
    """The cells of the time column in the table's order, and their type; see `Table.times`."""
    if roles.time is None:
        return None
    cells = pa.concat_arrays([b.cells[roles.time] for b in index.files.reread([roles.time])])
    if index.target_rows is not None:
        cells = cells.take(pa.array(np.argsort(index.target_rows)))
    return cells, index.files.type_of(roles.time)


def _labels(request: ReadRequest, index: SequenceIndex) -> list[str] | NDArray[np.float32]:
    """The labels of sequences or of steps, as `Table.y` holds them."""
    labels, files, is_new = index.labels, index.files, request.schema is None
    if not request.labelled:
        return np.zeros((len(index.ids), 0), np.float32)
    if is_new:
        labels[0].refuse_accidents(files)
    if request.step_labels:
        return step_labels(labels, files.sources[0], index.target_rows, is_new=is_new)
    return sequence_labels(labels, files, request.wants_classes, is_new=is_new)


def open_table(request: ReadRequest) -> tuple[TableFiles, Roles]:
    """The files of a table, and the role of each column.

    Raises:
        InputError: a file is missing or damaged, files differ, or a role has no column.
    """
    files = open_files(request.path, request.options, request.schema)
    roles = infer_roles(str(files.sources[0].path), files.sources[0].kinds, request)
    check_columns(files, roles)
    return files, roles


def check_columns(files: TableFiles, roles: Roles) -> None:
    """Check that all files have the same columns, and ids, times and labels of the same types.

    Ids and texts stay as they are written.

    Raises:
        InputError: a file that differs from the first.
    """
    first = files.sources[0]
    for source in files.sources:
        source.as_written.update((roles.id, *(roles.features if roles.is_text else ())))
        if other := sorted(set(source.types) ^ set(first.types)):
            raise InputError(
                f"{source.path}: expected the columns of {first.path}, but only one of the files "
                f"has {listing(other)}; give all files the same columns"
            )
        for name in roles.index_columns:
            if name not in first.texts and source.types[name] != first.types[name]:
                raise InputError(
                    f"{source.path}, column {name!r}: found {source.types[name]}, expected "
                    f"{first.types[name]} as in {first.path}; give a column one type"
                )


def read_features(
    index: SequenceIndex, roles: Roles, progress: Progress | None, dtype: Any = np.float32
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The feature columns in the table's order, `dtype` (rows, features), and some before rounding.

    Missing values are NaN or infinite, unless `roles.missing` is `error`. The second array, (some
    rows, features), has some of the rows in the type that they have in the files.

    Raises:
        InputError: a cell that is no number, or a file that changed since its first pass.
    """
    x = np.empty((int(index.lengths.sum()), len(roles.features)), dtype)
    exact = list[NDArray[Any]]()
    for batch in index.files.reread(roles.features, progress, as_numbers=True):
        rows: Any = slice(batch.start, batch.start + batch.size)
        block = feature_block(index.files, roles, batch)
        x[rows if index.target_rows is None else index.target_rows[rows]] = block
        exact.append(sample(block, len(x), batch.start))
    return x, np.concatenate(exact or [x])


def feature_block(files: TableFiles, roles: Roles, batch: RowBatch) -> NDArray[Any]:
    """The features of a batch, float32 or float64 (rows, features), all within float32.

    Raises:
        InputError: a cell that is no number, or missing where `roles` allow no gap.
    """
    columns = [
        files.convert(batch, name, _within_float32, roles.mends.get(name, MEND_FEATURE))
        for name in roles.features
    ]
    block: NDArray[Any] = (
        np.stack(columns, axis=1) if columns else np.empty((batch.size, 0), np.float32)
    )
    if roles.missing == "error" and not np.isfinite(block).all():
        row, column = (int(place) for place in np.argwhere(~np.isfinite(block))[0])
        value = block[row, column]
        found = "an empty cell or NaN" if math.isnan(value) else str(value)
        mend = "fill gaps with --missing forward, mean or zero"
        files.refuse(batch.start + row, roles.features[column], found, "a finite number", mend)
    return block


def _within_float32(cells: Any) -> NDArray[Any]:
    values = to_floats(cells)
    if values.dtype != np.float32:
        for index in np.flatnonzero(np.isfinite(values) & (np.abs(values) > LARGEST))[:1]:
            raise CellError(int(index), str(values[index]), "a number within float32")
    return values


def count_missing(path: Path, roles: Roles) -> dict[str, int]:
    """Read the features of a long table again and count the gaps of each feature that has any.

    `roles` are those that `read_long` returned; a gap is an empty cell, NaN or infinity.

    Raises:
        InputError: the file changed since.
    """
    if not roles.filled or roles.is_text:
        return {}
    counts = dict.fromkeys(roles.features, 0)
    for source in open_files(path, roles.options).sources:
        for _, cells in source.batches(roles.features, as_numbers=True):
            for name in roles.features:
                counts[name] += int((~np.isfinite(to_floats(cells[name]))).sum())
    return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class GapFiller:
    """How NaN and infinities in the features are replaced."""

    place: str  # the data, for messages
    features: tuple[str, ...]
    # `forward` takes the last value before in the sequence, and the mean where there is none;
    # `mean` takes the mean; `zero` 0
    missing: Missing
    means: tuple[float, ...]  # one a feature, NaN where unknown; empty for `zero`

    def fill(self, x: NDArray[np.float32], lengths: NDArray[np.int64]) -> int:
        """Replace every NaN and infinity in `x`, in place, and return how many there were.

        `x` is float32 (rows, features), the sequences one after the other, of these `lengths`.

        Raises:
            InputError: a column without any value has no mean, or `means` are those of other
                features.
        """
        count, expected = len(self.means), len(self.features)
        if self.missing != "zero" and count != expected:
            raise InputError(
                f"{self.place}: the model has means of {count} features, expected {expected}; "
                "train it again"
            )
        filled = 0
        for index, column in enumerate(x.T):
            is_gap = ~np.isfinite(column)
            if not is_gap.any():
                continue
            filled += int(is_gap.sum())
            value = 0.0 if self.missing == "zero" else self._mean_of(index)
            if self.missing == "forward":
                _fill_forward(column, is_gap, lengths, value)
            else:
                column[is_gap] = value
        return filled

    def _mean_of(self, index: int) -> float:
        if math.isnan(self.means[index]):
            raise InputError(
                f"{self.place}, column {self.features[index]!r}: found no value in any row, "
                f"expected one to fill gaps with (--missing {self.missing}); leave the column out "
                "with --features"
            )
        return self.means[index]


def _fill_forward(
    column: NDArray[np.float32], is_gap: NDArray[np.bool_], lengths: NDArray[np.int64], mean: float
) -> None:
    starts, gaps = np.repeat(lengths.cumsum() - lengths, lengths), np.flatnonzero(is_gap)
    sources = np.maximum.accumulate(np.where(is_gap, -1, np.arange(len(column))))[gaps]
    column[gaps] = np.where(sources >= starts[gaps], column[sources], np.float32(mean))


def column_means(x: NDArray[np.float32], missing: Missing) -> tuple[float, ...]:
    """The mean of the finite values of each column, as a float32 has it.

    NaN where a column has no value; empty where `missing` needs no mean.
    """
    if missing not in ("mean", "forward"):
        return ()
    finite = (column[np.isfinite(column)] for column in x.T)
    means = (v.mean(dtype=np.float64) if len(v) else math.nan for v in finite)
    return tuple(float(np.float32(mean)) for mean in means)
