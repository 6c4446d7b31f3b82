"""Tables of text: each row a text, or a piece of one, read as tokens. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.schema import Vocabulary
from lstm_compile.data.tables.columns import Progress, ReadRequest
from lstm_compile.data.tables.labels import StepLabels, kind_of_labels
from lstm_compile.data.tables.long import open_table
from lstm_compile.data.tables.roles import Roles
from lstm_compile.data.tables.sequence_index import SequenceIndex, index_sequences
from lstm_compile.data.tables.source import MEND_CELL
from lstm_compile.data.tables.table import Table
from lstm_compile.data.tables.values import to_texts
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

BLOCK_ROWS = 4096  # whose characters are in memory at once, four bytes each


class Tokens(NamedTuple):
    """The pieces of all texts as tokens, one after the other."""

    codes: NDArray[Any]  # uint8 or int32 (tokens,)
    counts: NDArray[np.int64]  # int64 (rows,), tokens of each piece


def read_texts(request: ReadRequest) -> Table:
    """Read a table with a column of text.

    Without an id column each row is a text. With one, rows of one id are pieces of a text, joined
    in the order of the time column. With `per_step` every character has a label: that of its piece,
    or if each text is one row, the character at its place in the label. The table's `x` are tokens.

    Raises:
        InputError: as `read_long`, or a character that is not in the vocabulary.
    """
    files, roles = open_table(request)
    index = index_sequences(files, roles, kind_of_labels(request))
    pieces = _pieces(index, roles, request.progress)
    schema = request.schema
    vocabulary = (schema and schema.vocabulary) or fit_vocabulary(pieces, request.tokens)
    tokens = _encoded(index, roles, pieces, vocabulary)
    rows = index.lengths.cumsum() - index.lengths
    y: Any = (
        _labels(index, request.wants_classes)
        if request.labelled
        else np.zeros((len(rows), 0), np.float32)
    )
    if request.step_labels:
        y = _token_labels(index, roles, y, pieces, tokens)
    return Table(
        Path(request.path), tokens.codes, np.add.reduceat(tokens.counts, rows), y,
        schema.features if schema else roles.features,
        ids=index.ids or None, roles=roles, per_step=request.step_labels,
        vocabulary=vocabulary, id_type=index.files.type_of(roles.id),
    )  # fmt: skip


def fit_vocabulary(texts: Sequence[str], tokens: str) -> Vocabulary:
    """The characters that occur, or the bytes."""
    if tokens == "byte":
        return Vocabulary("byte")
    return Vocabulary("char", tuple(sorted(set[str]().union(*texts))))


def _pieces(index: SequenceIndex, roles: Roles, progress: Progress | None) -> list[str]:
    """The text of each row, in the table's order."""
    (name,), pieces = roles.features, list[str]()
    for batch in index.files.reread([name], progress):
        texts = index.files.convert(batch, name, to_texts)
        if roles.missing == "error" and None in texts:
            mend = f"{MEND_CELL}, or take it for an empty text with --missing zero"
            row = batch.start + texts.index(None)
            index.files.refuse(row, name, "an empty cell", "text", mend)
        pieces += (text or "" for text in texts)
    if index.target_rows is None:
        return pieces
    return [pieces[row] for row in np.argsort(index.target_rows)]


def _encoded(
    index: SequenceIndex, roles: Roles, pieces: list[str], vocabulary: Vocabulary
) -> Tokens:
    parts = [np.empty(0, vocabulary.code_type)]
    for start in range(0, len(pieces), BLOCK_ROWS):
        rows = pieces[start : start + BLOCK_ROWS]
        codes, unknown = vocabulary.find("".join(rows))
        if len(unknown):
            ends = np.cumsum([len(piece) for piece in rows])
            row = int(np.searchsorted(ends, unknown[0], side="right"))
            place = int(unknown[0] - ends[row] + len(rows[row]))
            found = f"{rows[row][place]!r} (character {place})"
            expected = f"characters in the {vocabulary.described}"
            mend = "leave it out, or train with --tokens byte"
            index.refuse(start + row, roles.features[0], found, expected, mend)
        parts.append(codes.astype(vocabulary.code_type))
    size = len if vocabulary.kind == "char" else _byte_count
    return Tokens(np.concatenate(parts), np.array([size(piece) for piece in pieces]))


def _byte_count(text: str) -> int:
    return len(text.encode())


def _labels(index: SequenceIndex, wants_classes: bool | None) -> list[str]:
    """The class of each row or sequence."""
    label, source = index.labels[0], index.files.sources[0]
    are_numbers = label.are_fractions(source) if wants_classes is None else not wants_classes
    if len(index.labels) > 1 or are_numbers:
        names = listing([each.column for each in index.labels])
        raise InputError(
            f"{source.path}: the target {names} is of numbers, expected classes: text is read for "
            "tasks classify and tag; name another column with --target"
        )
    if isinstance(label, StepLabels):
        return label.in_order(index.target_rows)
    return [str(value) for value in label.values()]


def _token_labels(
    index: SequenceIndex, roles: Roles, labels: list[str], pieces: list[str], tokens: Tokens
) -> list[str]:
    """The label of each token, from the label of each row."""
    if int(index.lengths.max()) > 1:
        return [label for label, n in zip(labels, tokens.counts, strict=True) for _ in range(n)]
    for row, (label, text) in enumerate(zip(labels, pieces, strict=True)):
        if len(label) != len(text):
            found = f"{len(label)} labels for the {len(text)} characters of {roles.features[0]!r}"
            mend = "or give each piece of a text a row, with --id"
            index.refuse(row, roles.target[0], found, "one label character for each", mend)
    characters = "".join(labels)
    widths = np.ones(len(characters), np.int64)
    if len(tokens.codes) != len(characters):  # bytes, of which a character may have several
        widths = np.array([_byte_count(character) for piece in pieces for character in piece])
    return np.repeat(np.array(list(characters), dtype=np.str_), widths).tolist()
