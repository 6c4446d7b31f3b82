"""Time and peak memory of reading 10 million rows x 13 columns of Parquet, sorted and shuffled.

python benchmarks/reading.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS, FEATURES, STEPS, GROUP = 10_000_000, 13, 100, 1_000_000

# In a process of its own: a high-water mark never falls. VmHWM and not ru_maxrss, which a new
# process takes over from the one that started it.
READ = """
import re, sys, time
import pyarrow.csv, pyarrow.json, pyarrow.parquet
from lstm_compile.data.tables.columns import ReadRequest
from lstm_compile.data.tables.long import read_long

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

idle, start = peak(), time.perf_counter()
table = read_long(ReadRequest(sys.argv[1]))
seconds, above, size = time.perf_counter() - start, peak() - idle, table.x.nbytes / 2**20
print(f"{size:.0f} MiB read in {seconds:.1f} s, peak {above / size:.2f} times that")
"""


def write(path: Path, order: np.ndarray) -> None:
    """Sequences of 100 steps, their rows in the given order."""
    random = np.random.default_rng(0)
    names = [f"feature_{index}" for index in range(FEATURES)]
    fields = [("id", pa.int64()), ("step", pa.int64()), ("label", pa.string())]
    schema = pa.schema([*fields, *((name, pa.float32()) for name in names)])
    with pq.ParquetWriter(path, schema) as writer:
        for rows in np.split(order, ROWS // GROUP):
            sequence, step = np.divmod(rows, STEPS)
            label = np.array(["no", "yes"])[sequence % 2]
            values = [random.standard_normal(GROUP, dtype=np.float32) for _ in names]
            writer.write_table(pa.table([sequence, step, label, *values], schema=schema))


def main() -> None:
    """Print one line for each order of the rows; the files are deleted."""
    orders = {"sorted": np.arange(ROWS), "shuffled": np.random.default_rng(1).permutation(ROWS)}
    for name, order in orders.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.parquet"
            write(path, order)
            command = [sys.executable, "-c", READ, str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        print(f"{name}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
