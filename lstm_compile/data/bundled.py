"""The two data sets that come with the package; their sources are in bundled/SOURCES.md."""

from os import PathLike, fspath
from pathlib import Path
from typing import Literal, get_args

from lstm_compile.data.readers import READERS, read_sequences
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.table import suggestion
from lstm_compile.errors import InputError

Part = Literal["train", "test"]

BUNDLED = ("spoken-digits", "japanese-vowels")
_FOLDER = Path(__file__).resolve().parent / "bundled"
_SUFFIXES = {"spoken-digits": ".npz", "japanese-vowels": ".ts"}


def load_dataset(
    name_or_path: str | PathLike[str], part: Part, schema: Schema | None = None
) -> Sequences:
    """Read one part of a bundled data set, or a file.

    Args:
        name_or_path: one of `BUNDLED`, or the path of a `.ts` or `.npz` file.
        part: `train` or `test` of a bundled data set; a file is read whole.
        schema: of a trained model, as for `read_sequences`.

    Returns:
        The sequences, on the CPU.

    Raises:
        InputError: no such part, name or file, or what `read_sequences` refuses.
    """
    if part not in get_args(Part):
        raise InputError(f"part must be one of {', '.join(get_args(Part))}; got {part!r}")
    return read_sequences(_locate(fspath(name_or_path), part), schema=schema)


def _locate(name_or_path: str, part: Part) -> Path:
    if name_or_path in BUNDLED:
        return _FOLDER / f"{name_or_path.replace('-', '_')}_{part}{_SUFFIXES[name_or_path]}"
    path = Path(name_or_path)
    if not path.exists() and path.suffix.lower() not in READERS:
        raise InputError(
            f"{name_or_path}: neither a file nor a bundled data set ({', '.join(BUNDLED)})"
            f"{suggestion(name_or_path, BUNDLED)}"
        )
    return path
