"""How the files of a table are written: decimal mark, encoding, and names of columns."""

import codecs
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.values import is_date
from lstm_compile.formatting import free_name

PANDAS_INDEX = re.compile(r"__index_level_\d+__")


class Dialect(NamedTuple):
    """How the files of a table are written."""

    decimal: str = "."  # the decimal mark of CSV files
    encoding: str = "utf-8"  # of files of text, as `codecs` calls it
    # names of columns that keep the blanks around them, as in models of earlier versions
    kept: frozenset[str | None] = frozenset()


def dialect_of(options: TableOptions, schema: Schema | None) -> Dialect:
    """The dialect that the options ask for; `schema` is that of a trained model."""
    asked = (options.id, options.time, options.text, *options.target, *options.features)
    trained = (*schema.features, *schema.targets) if schema else ()
    return Dialect(
        options.decimal or ".",
        codecs.lookup(options.encoding or "utf-8").name.replace("utf-8-sig", "utf-8"),
        frozenset((*asked, *options.known, *options.static, *trained)),
    )


def named(types: Sequence[tuple[str, Any]], kept: Collection[str | None] = ()) -> list[str]:
    """Names of columns without blanks around them; `types` are pairs of name and Arrow type.

    A column without a name is called `time` if it holds dates, also pandas' index; else
    `Unnamed: 0` after its place, as by pandas. A name in `kept` stays as it is.
    """
    found, names = [name for name, _ in types], list[str]()
    for place, (name, kind) in enumerate(types):
        bare = name.strip()
        if not bare or (is_date(kind) and PANDAS_INDEX.fullmatch(bare)):
            bare = free_name("time" if is_date(kind) else f"Unnamed: {place}", [*found, *names])
        names.append(name if name in kept or (bare != name and bare in found) else bare)
    return names


def open_text(path: Path, encoding: str) -> Any:
    """The bytes of a file of text, as UTF-8, as an Arrow stream."""
    file = pa.OSFile(str(path))
    return file if encoding == "utf-8" else pa.transcoding_input_stream(file, encoding, "utf-8")
