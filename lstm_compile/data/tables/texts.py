"""Tables of text: each row a text, or a piece of one, read as tokens. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from lstm_compile.data.schema import Schema, Vocabulary
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.keys import Keys, StepLabels, read_keys
from lstm_compile.data.tables.long import Progress, are_fractions, check_columns, open_sources
from lstm_compile.data.tables.roles import Roles, infer_roles
from lstm_compile.data.tables.source import Source
from lstm_compile.data.tables.table import Table
from lstm_compile.data.tables.values import CellError, to_texts
from lstm_compile.errors import InputError
from lstm_compile.formatting import listing

BLOCK_ROWS = 4096  # whose characters are in memory four bytes each


class Tokens(NamedTuple):
    """The pieces of all texts as tokens, one after the other.

    Attributes:
        codes: uint8 or int32 (tokens,).
        counts: int64 (rows,), tokens of each piece.
    """

    codes: NDArray[Any]
    counts: NDArray[np.int64]


def read_texts(
    path: str | Path,
    options: TableOptions | None = None,
    *,
    tokens: str = "char",
    schema: Schema | None = None,
    labelled: bool = True,
    per_step: bool = False,
    progress: Progress | None = None,
) -> Table:
    """Read a table with a column of text.

    Without an id column each row is a text. With one, rows of one id are pieces of a text, in the
    order of the time column, put together as they are.

    Args:
        path: as for `read_long`.
        options: which columns to take.
        tokens: `char` or `byte`, what a text is made of; a model's `schema` says it itself.
        schema: of a trained model: its vocabulary, and its column where none is named.
        labelled: False leaves the target alone, there or not.
        per_step: every character has a label: that of its piece, or where each text is one row the
            character of the label at its place.
        progress: called after each batch of rows.

    Returns:
        Its content; `x` are tokens (tokens,).

    Raises:
        InputError: as `read_long`, or a character that is not in the vocabulary.
    """
    sources = open_sources(path)
    roles = infer_roles(
        str(sources[0].path), sources[0].kinds, options or TableOptions(),
        schema=schema, labelled=labelled,
    )  # fmt: skip
    check_columns(sources, roles)
    per_step = per_step and labelled
    keys = read_keys(sources, roles, per_step=per_step)
    pieces = _pieces(keys, roles, progress)
    vocabulary = (schema and schema.vocabulary) or fit_vocabulary(pieces, tokens)
    found = _encoded(keys, roles, pieces, vocabulary)
    rows = keys.lengths.cumsum() - keys.lengths
    y: Any = np.zeros((len(keys.lengths), 0), np.float32)
    if labelled:
        labels = _labels(keys, sources[0])
        y = _of_tokens(keys, roles, labels, pieces, found) if per_step else labels
    return Table(
        Path(path), found.codes, np.add.reduceat(found.counts, rows), y,
        schema.features if schema else roles.features,
        ids=keys.ids or None, roles=roles, per_step=per_step,
        vocabulary=vocabulary,
    )  # fmt: skip


def fit_vocabulary(texts: Sequence[str], tokens: str) -> Vocabulary:
    """The characters that occur, or the bytes."""
    if tokens == "byte":
        return Vocabulary("byte")
    return Vocabulary("char", tuple(sorted(set[str]().union(*texts))))


def _pieces(keys: Keys, roles: Roles, progress: Progress | None) -> list[str]:
    """The text of each row, in the table's order."""
    (name,), total = roles.features, int(keys.lengths.sum())
    found = list[str]()
    for source in keys.rows.sources:
        for _, cells in source.batches([name]):
            found += _texts(keys, roles, cells[name], len(found))
            if progress is not None:
                progress(len(found), total)
    if len(found) != total:
        raise InputError(f"{keys.rows.sources[-1].path}: changed while it was read; read it again")
    if keys.target_rows is None:
        return found
    return [found[row] for row in np.argsort(keys.target_rows)]


def _texts(keys: Keys, roles: Roles, cells: Any, start: int) -> list[str]:
    (name,), mend = roles.features, "mend the cell or drop the row"
    try:
        texts = to_texts(cells)
    except CellError as error:
        keys.rows.refuse(start + error.index, name, error.found, error.expected, mend)
    if roles.missing == "error" and None in texts:
        mend += ", or take it for an empty text with --missing zero"
        keys.rows.refuse(start + texts.index(None), name, "an empty cell", "text", mend)
    return [text or "" for text in texts]


def _encoded(keys: Keys, roles: Roles, pieces: list[str], vocabulary: Vocabulary) -> Tokens:
    parts = [np.empty(0, vocabulary.code_type)]
    for start in range(0, len(pieces), BLOCK_ROWS):
        rows = pieces[start : start + BLOCK_ROWS]
        codes, unknown = vocabulary.find("".join(rows))
        if len(unknown):
            ends = np.cumsum([len(piece) for piece in rows])
            row = int(np.searchsorted(ends, unknown[0], side="right"))
            index = int(unknown[0] - ends[row] + len(rows[row]))
            shown = f"{rows[row][index]!r} (character {index})"
            _refuse(keys, roles, start + row, shown, f"characters in the {vocabulary.described}")
        parts.append(codes.astype(vocabulary.code_type))
    size = len if vocabulary.kind == "char" else _bytes_in
    return Tokens(np.concatenate(parts), np.array([size(piece) for piece in pieces]))


def _refuse(keys: Keys, roles: Roles, row: int, found: str, expected: str) -> NoReturn:
    mend = "leave it out, or train with --tokens byte"
    keys.rows.refuse(keys.file_row(row), roles.features[0], found, expected, mend)


def _bytes_in(text: str) -> int:
    return len(text.encode())


def _labels(keys: Keys, source: Source) -> list[str]:
    """One of each row or sequence."""
    label = keys.labels[0]
    if len(keys.labels) > 1 or are_fractions(label, source):
        names = listing([each.column for each in keys.labels])
        raise InputError(
            f"{source.path}: the target {names} is of numbers, expected classes: text is read for "
            "tasks classify and tag; name another column with --target"
        )
    if isinstance(label, StepLabels):
        return label.in_order(keys.target_rows)
    return [str(value) for value in label.values()]


def _of_tokens(
    keys: Keys, roles: Roles, labels: list[str], pieces: list[str], tokens: Tokens
) -> list[str]:
    """The label of each token; labels and pieces are of rows."""
    if int(keys.lengths.max()) > 1:
        return [label for label, n in zip(labels, tokens.counts, strict=True) for _ in range(n)]
    for row, (label, text) in enumerate(zip(labels, pieces, strict=True)):
        if len(label) != len(text):
            keys.rows.refuse(
                keys.file_row(row),
                roles.target[0],
                f"{len(label)} labels for the {len(text)} characters of {roles.features[0]!r}",
                "one character a character",
                "or give each piece of a text a row, with --id",
            )
    each = "".join(labels)
    widths = np.ones(len(each), np.int64)
    if len(tokens.codes) != len(each):  # bytes, of which a character may have several
        widths = np.array([_bytes_in(character) for piece in pieces for character in piece])
    return np.repeat(np.array(list(each), dtype=np.str_), widths).tolist()
