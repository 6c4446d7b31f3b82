"""The content of a file before its labels become numbers, and its check against a schema."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.schema import Categories, Schema, Vocabulary, numbered
from lstm_compile.data.tables.label_values import codes_of, is_number, one_of_each
from lstm_compile.data.tables.roles import FilledGaps, Roles
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing, suggestion


@dataclass(frozen=True, eq=False)
class Table:
    """The validated content of one file; every value is finite."""

    path: Path  # the file, for messages
    # float32 (total_steps, features), all sequences one after the other; of text its tokens, uint8
    # or int32 (total_steps,)
    x: NDArray[Any]
    lengths: NDArray[np.int64]  # int64 (sequences,), steps of each
    # one label a sequence, or float32 (sequences, targets); with `per_step` one label a step, or
    # (total_steps, targets); (sequences, 0) where the file was read without labels
    y: list[str] | NDArray[np.float32]
    features: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None  # as the header declares them
    targets: tuple[str, ...] | None = None
    lines: list[int] | None = None  # of a text file, one a sequence
    ids: list[str] | None = None  # one a sequence of a long table
    id_type: Any = None  # the Arrow type of the ids in the file, if it has types
    # an Arrow array of the cells of the time column, one a row of x, and their Arrow type if the
    # file has types; where each step is answered
    times: tuple[Any, Any] | None = None
    # of the columns of a long table, or what filled the gaps of another file
    roles: Roles | FilledGaps | None = None
    per_step: bool = False  # whether every step has a label of its own
    vocabulary: Vocabulary | None = None  # of text
    categories: Categories | None = None  # of the last features, whose values are codes

    @property
    def width(self) -> int:
        """The number of features; a text is one."""
        return 1 if self.vocabulary else self.x.shape[1]

    def place_of_label(self, index: int) -> str:
        """The place of label number `index` in the file, for a message."""
        if not self.per_step:
            return self.place(index)
        ends = self.lengths.cumsum()
        sequence = int(np.searchsorted(ends, index, side="right"))
        return f"{self.place(sequence)}, step {index - ends[sequence] + self.lengths[sequence]}"

    def place(self, sequence: int) -> str:
        """The place of sequence number `sequence` (from 0) in the file, for a message."""
        if self.ids is not None:
            return f"{self.path}, sequence {sequence} (id {self.ids[sequence]!r})"
        if self.lines is None:
            return f"{self.path}, sequence {sequence}"
        return f"{self.path}, line {self.lines[sequence]}"


def own_schema(table: Table) -> Schema:
    """The schema that a file itself declares, with default names where it has none."""
    features = table.features or numbered("feature", table.width)
    if isinstance(table.y, list):
        classes = sorted_labels(table.classes or table.y)
        return Schema(
            features, classes, (), vocabulary=table.vocabulary, categories=table.categories
        )
    count = table.y.shape[1]
    default = ("target",) if count == 1 else numbered("target", count)
    return Schema(features, (), table.targets or default, categories=table.categories)


def check_schema(table: Table, schema: Schema) -> None:
    """Check that a file fits a trained model; a file without names takes the schema's.

    Raises:
        InputError: classes where the model has targets or the reverse, or other names or counts.
    """
    if isinstance(table.y, list) != bool(schema.classes):
        kinds = ("number targets", "class labels")
        found, expected = kinds[isinstance(table.y, list)], kinds[bool(schema.classes)]
        raise InputError(f"{table.path}: holds {found}, but the model was trained on {expected}")
    check_features(table, schema)
    if not isinstance(table.y, list):
        _check_names(table.path, "targets", table.y.shape[1], table.targets, schema.targets)


def check_features(table: Table, schema: Schema) -> None:
    """Check the feature columns alone; a file without names takes the schema's.

    Raises:
        InputError: other names or another count.
    """
    if schema.vocabulary and not table.vocabulary:
        raise InputError(
            f"{table.path}: holds features, but the model was trained on text; name a table with a "
            f"column {schema.features[0]!r}"
        )
    _check_names(table.path, "features", table.width, table.features, schema.features)


def encode_labels(table: Table, labels: list[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Give the index of each label in `classes`, int64 (labels,); `True` is the class `true`.

    Raises:
        InputError: a label that is no class, with its place and the nearest class.
    """
    codes = codes_of(labels, classes)
    for index, label in enumerate(labels):
        if label not in codes:
            raise InputError(
                f"{table.place_of_label(index)}: unknown class {label!r}; known are "
                f"{listing(classes)}{suggestion(label, classes)}"
            )
    return np.array([codes[label] for label in labels], dtype=np.int64)


def sorted_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort the distinct labels: by value where all are finite numbers, else alphabetically."""
    distinct = one_of_each(labels)
    if all(map(is_number, distinct)):
        distinct.sort(key=float)
    return tuple(distinct)


def _check_names(
    path: Path, what: str, count: int, names: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    if count != len(expected):
        raise InputError(
            f"{path}: {count} {what}, but the model was trained on {len(expected)}: "
            f"{listing(expected)}"
        )
    for index, (found, wanted) in enumerate(zip(names or expected, expected, strict=True)):
        if found != wanted:
            raise InputError(
                f"{path}: name {index} of the {what} is {found!r}, but the model was trained on "
                f"{wanted!r}; give the columns the model's names and order"
            )
