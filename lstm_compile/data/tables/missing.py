"""How many cells of a long table are empty, NaN or infinite, column by column. Loads no torch."""

from pathlib import Path

import numpy as np

from lstm_compile.data.tables.folders import find_files
from lstm_compile.data.tables.formats import SOURCES
from lstm_compile.data.tables.roles import Roles
from lstm_compile.data.tables.values import to_floats


def count_missing(path: Path, roles: Roles) -> dict[str, int]:
    """Read the features of a long table once more and count the gaps of each.

    Args:
        path: what `read_long` has read.
        roles: what it found, with `filled` the number of all gaps.

    Returns:
        Gaps of each feature that has any.

    Raises:
        InputError: the file changed since.
    """
    if not roles.filled or roles.is_text:
        return {}
    counts = dict.fromkeys(roles.features, 0)
    for file in find_files(path):
        source = SOURCES[file.path.suffix.lower()](file.path, file.constants)
        for _, cells in source.batches(roles.features, as_numbers=True):
            for name in roles.features:
                counts[name] += int((~np.isfinite(to_floats(cells[name]))).sum())
    return {name: count for name, count in counts.items() if count}
