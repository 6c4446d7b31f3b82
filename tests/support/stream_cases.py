"""Folders of Parquet files to stream."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES = 32


def table_of(count, first=0, seed=0, lengths=(1, 100), classes="ab"):
    """A long table of `count` sequences, sorted; the first feature tells the class."""
    generator = np.random.default_rng(seed)
    steps = generator.integers(*lengths, count)
    codes = generator.integers(0, len(classes), count)
    x = generator.standard_normal((steps.sum(), FEATURES), np.float32) * 3 + 5
    x[:, 0] += 4 * np.repeat(codes, steps)
    return pa.table(
        {
            "id": [f"s{number}" for number in np.repeat(np.arange(first, first + count), steps)],
            "time": np.concatenate([np.arange(length) for length in steps]),
            **{f"f{index}": x[:, index] for index in range(FEATURES)},
            "label": np.array(list(classes))[np.repeat(codes, steps)],
        }
    )


def write_parquet(folder, files=3, count=40, group=500, **options):
    """Files of `count` sequences each, in row groups of `group` rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        table = table_of(count, number * count, number, **options)
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=group)
    return folder
