"""The target columns of a long table: one label for every sequence, or for every row."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.source import RowBatch, Source, TableFiles
from lstm_compile.data.tables.values import comma_advice
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

Codes = NDArray[np.int32]
MEND_STATIC = "give a series one category, or take the column with --features"
WHOLE_NUMBER = re.compile(r"[-+]?\d+")


@dataclass
class Labels:
    """One target column, with one label for every sequence."""

    column: str
    known: dict[Any, int] = field(default_factory=dict)  # codes in order of appearance
    codes: Codes = field(default_factory=lambda: np.empty(0, np.int32))  # (sequences,)
    # int64 (sequences,), the row of the files that each label was read from
    rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    mend: str = "give a sequence one label, or learn one a step with --task tag"

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
        codes = files.convert_codes(batch, self.column, self.known, _plain_number)
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
            files.refuse(row, self.column, found, expected, self.mend)

    def are_fractions(self, source: Source) -> bool:
        """Whether the labels are numbers to predict and not classes: some have a fraction part."""
        if self.column not in source.texts:
            return any(isinstance(value, float) for value in self.known)
        texts = [str(value).strip() for value in self.known]
        return not all(map(WHOLE_NUMBER.fullmatch, texts)) and all(map(_is_float32, texts))

    def refuse_commas(self, files: TableFiles) -> None:
        """Refuse numbers with commas, which would be classes.

        Raises:
            InputError: names the row of the first.
        """
        source = files.sources[0]
        if self.column not in source.texts or source.kinds[self.column] != "number":
            return
        for code, name in enumerate(map(str, self.known)):
            if mend := comma_advice(name):
                row = self._first_row(code)
                files.refuse(row, self.column, repr(name), "a number or a class", mend)

    def _first_row(self, code: int) -> int:
        return int(self.rows[np.flatnonzero(self.codes == code)[0]])

    def numbers(self, files: TableFiles) -> NDArray[np.float32]:
        """The label of each sequence as a number to predict, float32 (sequences,).

        Raises:
            InputError: a label is no number.
        """
        values, expected = self.values(), "a finite float32 number to predict"
        for row, value in zip(self.rows, values, strict=True):
            if not _is_float32(value):
                mend = comma_advice(str(value)) or "mend it or drop the sequence"
                files.refuse(int(row), self.column, repr(value), expected, mend)
        return np.array([float(value) for value in values], dtype=np.float32)


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
        codes = np.concatenate(self.parts)
        if target_rows is not None:
            codes[target_rows] = codes.copy()
        names = [str(value) for value in self.known]
        return [names[code] for code in codes.tolist()]


def sequence_labels(
    labels: list[Labels], files: TableFiles, schema: Schema | None
) -> list[str] | NDArray[np.float32]:
    """The class of each sequence, or its targets, float32 (sequences, targets).

    The schema of a trained model tells which; without one, the labels do.

    Raises:
        InputError: several columns for a model with classes, or no number where one is needed.
    """
    source = files.sources[0]
    needs_numbers = bool(schema.targets) if schema else len(labels) > 1
    if not needs_numbers and len(labels) > 1:
        raise InputError(
            f"{source.path}: {len(labels)} target columns, but the model was trained on "
            f"classes; name one with --target"
        )
    if schema is None:
        labels[0].refuse_commas(files)
    if not needs_numbers and (schema or not labels[0].are_fractions(source)):
        return [str(value) for value in labels[0].values()]
    return np.stack([label.numbers(files) for label in labels], axis=1)


def step_labels(
    labels: list[Labels], source: Source, target_rows: NDArray[np.int64] | None
) -> list[str]:
    """The class of each row of the table, from its one target column.

    Raises:
        InputError: several columns, or numbers with fractions.
    """
    label = labels[0]
    assert isinstance(label, StepLabels)
    if len(labels) > 1:
        names = listing([each.column for each in labels])
        raise InputError(
            f"{source.path}: {len(labels)} target columns ({names}), expected one class for "
            "every step; name one with --target"
        )
    if label.are_fractions(source):
        raise InputError(
            f"{source.path}: column {label.column!r} holds numbers with fractions, expected a "
            "class for every step; name another column with --target"
        )
    return label.in_order(target_rows)


def _is_float32(value: Any) -> bool:
    try:
        return abs(float(value)) <= float(np.finfo(np.float32).max)
    except ValueError:
        return False


def _plain_number(value: Any) -> Any:
    return value if isinstance(value, str | bool | int | float) else float(value)  # a decimal
