"""The data sets that come with the package; their sources are in bundled/SOURCES.md."""

from collections.abc import Callable
from os import PathLike, fspath

from lstm_compile.data.readers import read_sequences
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.read import BUNDLED as BUNDLED
from lstm_compile.data.tables.read import Part, locate


def load_dataset(
    name_or_path: str | PathLike[str],
    part: Part,
    schema: Schema | None = None,
    table: TableOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
    per_step: bool | None = None,
    tokens: str = "char",
) -> Sequences:
    """Read one part of a bundled data set, or a file.

    Args:
        name_or_path: one of `BUNDLED`, the path of a `.ts` or `.npz` file, or that of a long table:
            a file, a folder or a glob.
        part: `train` or `test` of a bundled data set; a file is read whole.
        schema: of a trained model, as for `read_sequences`.
        table: the columns of a long table, as for `read_sequences`.
        progress: as for `read_sequences`.
        per_step: as for `read_sequences`.
        tokens: as for `read_sequences`.

    Returns:
        The sequences, on the CPU.

    Raises:
        InputError: no such part, name or file, or what `read_sequences` refuses.
    """
    path = locate(fspath(name_or_path), part)
    return read_sequences(
        path, schema=schema, table=table, per_step=per_step, tokens=tokens, progress=progress
    )
