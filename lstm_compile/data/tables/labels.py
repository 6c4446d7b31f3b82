"""The target columns of a long table: one label for every sequence, or for every row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.tables.columns import ReadRequest
from lstm_compile.data.tables.label_values import are_many, are_whole, is_number, numbers_of
from lstm_compile.data.tables.precision import check_columns_rounding
from lstm_compile.data.tables.source import MEND_CELL, RowBatch, Source, TableFiles
from lstm_compile.data.tables.values import GAPS, comma_advice, to_floats
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

Codes = NDArray[np.int32]
MEND_LABEL = "give a sequence one label, or learn one a step with --task tag"
MEND_NUMBER = (
    " (classes) or --task regress --per-step (numbers), or the next ones with --task forecast"
)
MEND_STATIC = (
    "give a series one category, or take the column with --features (numbers) or --categories"
)
MEND_EMPTY = "write the label of the sequence in all of its rows, or drop the sequence"
MEND_EMPTY_STATIC = "write the category of the series in all of its rows"
NUMBER = "a finite float32 number to predict"


@dataclass
class Labels:
    """One target column, with one label for every sequence."""

    column: str
    known: dict[Any, int] = field(default_factory=dict)  # codes in order of appearance
    codes: Codes = field(default_factory=lambda: np.empty(0, np.int32))  # (sequences,)
    # int64 (sequences,), the row of the files that each label was read from
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    mend: str = MEND_LABEL

    def values(self) -> list[Any]:
        """The label of each sequence, as the file has it."""
        names = list(self.known)
        return [names[code] for code in self.codes]

    def add(
        self, batch: RowBatch, files: TableFiles, sequences: Codes, name_of: Callable[[int], str]
    ) -> None:
        """Add the labels of a batch, whose rows are of `sequences`, int32 (rows,).

        Raises:
            InputError: a label is missing, or differs from the first one of its sequence, whose id
                `name_of` tells.
        """
        mend = MEND_EMPTY_STATIC if self.mend == MEND_STATIC else MEND_EMPTY
        codes = files.convert_codes(batch, self.column, self.known, _plain_number, mend)
        fresh, first = np.unique(sequences, return_index=True)
        is_new = fresh >= len(self.codes)  # sequences are numbered in order of appearance
        self.codes = np.concatenate((self.codes, codes[first[is_new]]))
        self.rows = np.concatenate((self.rows, batch.start + first[is_new]))
        for index in np.flatnonzero(codes != self.codes[sequences])[:1]:
            names, sequence = list(self.known), int(sequences[index])
            expected = (
                f"{names[self.codes[sequence]]!r} as in {files.place(int(self.rows[sequence]))} of "
                f"the same sequence, id {name_of(sequence)!r}"
            )
            row, found = batch.start + int(index), repr(names[codes[index]])
            is_count = self.mend == MEND_LABEL and is_number(names[codes[index]])
            mend = f"{self.mend}{MEND_NUMBER if is_count else ''}"
            files.refuse(row, self.column, found, expected, mend)

    def are_fractions(self, source: Source) -> bool:
        """Whether the labels are numbers to predict and not classes: some have a fraction part."""
        if self.column not in source.texts:
            return any(isinstance(value, float) for value in self.known)
        texts = [str(value) for value in self.known]
        return not are_whole(texts) and all(map(is_number, texts))

    def are_numbers(self, source: Source) -> bool:
        """Whether the labels are numbers to predict: fractions, or many whole numbers."""
        are_counts = are_many(self.known, len(self.codes)) and are_whole(map(str, self.known))
        return are_counts or self.are_fractions(source)

    def refuse_accidents(self, files: TableFiles) -> None:
        """Refuse numbers with commas, and `NA` among numbers, which would be classes.

        Raises:
            InputError: names the row of the first.
        """
        source = files.sources[0]
        if self.column not in source.texts or source.kinds[self.column] != "number":
            return
        for code, name in enumerate(map(str, self.known)):
            is_gap = name.strip().lower() in GAPS
            if mend := "write a label, or drop the sequence" if is_gap else comma_advice(name):
                row = self._first_row(code)
                files.refuse(row, self.column, repr(name), "a number or a class", mend)

    def _first_row(self, code: int) -> int:
        return int(self.rows[np.flatnonzero(self.codes == code)[0]])

    def numbers(self, files: TableFiles) -> NDArray[np.float64]:
        """The label of each sequence as a number to predict, float64 (sequences,).

        Raises:
            InputError: a label is no number.
        """
        known, mend = np.array(numbers_of(self.known)), "mend it or drop the sequence"
        if np.isnan(known).all():
            mend += ", name another column with --target, or learn classes with --task classify"
        for row in np.flatnonzero(np.isnan(known[self.codes]))[:1]:
            found = list(self.known)[self.codes[row]]
            mend = comma_advice(str(found)) or mend
            files.refuse(int(self.rows[row]), self.column, repr(found), NUMBER, mend)
        exact: NDArray[np.float64] = known[self.codes]
        return exact


@dataclass
class StepLabels(Labels):
    """One target column, with one label for every row; `parts` are their codes, by batches."""

    parts: list[Codes] = field(default_factory=list)

    def add(self, batch: RowBatch, files: TableFiles, *_: Any) -> None:
        """Add the labels of a batch.

        Raises:
            InputError: a label is missing.
        """
        self.parts.append(files.convert_codes(batch, self.column, self.known, _plain_number))

    def _first_row(self, code: int) -> int:
        return int(np.flatnonzero(np.concatenate(self.parts) == code)[0])

    def in_order(self, target_rows: NDArray[np.int64] | None) -> list[str]:
        """The label of each row of the table; see `SequenceIndex.target_rows`."""
        codes = _in_order(self.parts, target_rows)
        names = [str(value) for value in self.known]
        return [names[code] for code in codes.tolist()]


@dataclass
class StepNumbers(Labels):
    """One target column, with one number to predict for every row; `parts` are they, by batches."""

    parts: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, batch: RowBatch, files: TableFiles, *_: Any) -> None:
        """Add the numbers of a batch.

        Raises:
            InputError: a cell is empty, or no finite float32 number.
        """
        values = files.convert(batch, self.column, to_floats)
        for row in np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max))[:1]:
            found = "an empty cell or NaN" if np.isnan(values[row]) else str(values[row])
            files.refuse(batch.start + int(row), self.column, found, NUMBER, MEND_CELL)
        self.parts.append(values.astype(np.float64))

    def in_order(self, target_rows: NDArray[np.int64] | None) -> NDArray[np.float64]:
        """The number of each row of the table; see `SequenceIndex.target_rows`."""
        return _in_order(self.parts, target_rows)


def kind_of_labels(request: ReadRequest) -> type[Labels]:
    """How the target columns are read."""
    if not request.step_labels:
        return Labels
    return StepNumbers if request.wants_classes is False else StepLabels


def sequence_labels(
    labels: list[Labels], files: TableFiles, wants_classes: bool | None, *, is_new: bool
) -> list[str] | NDArray[np.float32]:
    """The class of each sequence, or its targets, float32 (sequences, targets).

    `wants_classes` tells which; if it is None, the labels do. `is_new` says that a model is to be
    trained on them: float32 must keep them apart.

    Raises:
        InputError: several columns for a model with classes, or no number where one is needed.
    """
    source = files.sources[0]
    if wants_classes and len(labels) > 1:
        raise InputError(
            f"{source.path}: {len(labels)} target columns, expected one of classes; name it with "
            "--target"
        )
    if wants_classes is None:
        wants_classes = len(labels) == 1 and not labels[0].are_numbers(source)
    if wants_classes:
        return [str(value) for value in labels[0].values()]
    numbers = np.stack([label.numbers(files) for label in labels], axis=1)
    return _rounded(labels, source, numbers, is_new)


def _rounded(
    labels: list[Labels], source: Source, numbers: NDArray[np.float64], is_new: bool
) -> NDArray[np.float32]:
    """Numbers (rows, targets) as float32."""
    if is_new:
        check_columns_rounding(str(source.path), [label.column for label in labels], numbers)
    return numbers.astype(np.float32)


def step_labels(
    labels: list[Labels], source: Source, target_rows: NDArray[np.int64] | None, *, is_new: bool
) -> list[str] | NDArray[np.float32]:
    """The class of each row, from its one target column, or its targets, float32 (rows, targets).

    `is_new` is as for `sequence_labels`.

    Raises:
        InputError: several columns of classes.
    """
    numbers = [label.in_order(target_rows) for label in labels if isinstance(label, StepNumbers)]
    if numbers:
        return _rounded(labels, source, np.stack(numbers, axis=1), is_new)
    label = labels[0]
    assert isinstance(label, StepLabels)
    if len(labels) > 1:
        names = listing([each.column for each in labels])
        raise InputError(
            f"{source.path}: {len(labels)} target columns ({names}), expected one class for "
            "every step; name one with --target"
        )
    return label.in_order(target_rows)


def _in_order(parts: list[NDArray[Any]], target_rows: NDArray[np.int64] | None) -> NDArray[Any]:
    """All parts as one array, each row at its place in the table."""
    values = np.concatenate(parts)
    if target_rows is not None:
        values[target_rows] = values.copy()
    return values


def _plain_number(value: Any) -> Any:
    return value if isinstance(value, str | bool | int | float) else float(value)  # a decimal
