"""Read thousands of hostile files, and count those that end badly. Linux.

python tests/fuzz.py --count 5000

Each file is a number of a format: `--only 1234` makes that one again. Workers are forked, because a
file may end its process, hang, or take all memory; the parent sees to all three.
"""

import argparse
import json
import re
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent / "support"))

from hostile import mutated, originals
from opening import FORMATS, Refused, open_file

SECONDS = 20  # for one file
MEBIBYTES = 256  # above what the process had before
SPACE = 4 << 30  # of addresses for a worker beyond those it has: a machine outlives its files
MEMORY = re.compile("bad_alloc|MemoryError|Unable to allocate")


def status(name):
    """A figure of this process in MiB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def outcome(path):
    """`read`, `refused`, or what is wrong with how the file was taken."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    try:
        open_file(path)
        found = "read"
    except Refused as error:
        text = str(error)
        found = "refused"
        if "\n" in text or len(text) > 1500:
            found = f"not one line of sane length: {text[:200]!r}"
        elif MEMORY.search(text):
            found = f"out of memory: {text[:300]}"
    except BaseException:
        lines = traceback.format_exc().strip().splitlines()
        found = f"traceback: {lines[-1][:300]} {lines[-3].strip()}"
    peak = status("VmHWM") - before
    return (f"{peak:.0f} MiB" if peak > MEBIBYTES else found), peak


def write(folder, kind, number):
    """Hostile file `number` of a format."""
    random = Random(f"{kind} {number}")
    original = random.choice(originals(*FORMATS[kind]))
    path = Path(folder) / f"{kind}-{number}{original.suffix}"
    path.write_bytes(mutated(original, random))
    return path


def work(folder, kind, numbers, pipe):
    """Take files one by one, and say before each which it is, and after it how it went."""
    size = int(status("VmSize")) << 20
    resource.setrlimit(resource.RLIMIT_AS, (size + SPACE, size + SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        path = write(folder, kind, number)
        pipe.send((number, None, 0.0))
        pipe.send((number, *outcome(path)))
        path.unlink()


def fuzz(kind, count, first=0, on_bad=print):
    """How `count` files of a format ended, by name, and the highest peak in MiB."""
    counts, highest, numbers = Counter(), 0.0, list(range(first, first + count))
    context = get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        while numbers:
            ours, theirs = context.Pipe(False)
            process = context.Process(target=work, args=(folder, kind, numbers, theirs))
            process.start()
            theirs.close()
            current = bad = None
            with suppress(EOFError):
                while True:
                    if not ours.poll(SECONDS):
                        bad = f"hangs for {SECONDS} s"
                        process.kill()
                        break
                    current, found, peak = ours.recv()
                    if found is None:
                        continue
                    numbers.remove(current)
                    highest = max(highest, peak)
                    name = found if found in ("read", "refused") else "bad"
                    counts[name] += 1
                    if name == "bad":
                        on_bad(f"{kind} {current}: {found}")
            process.join()
            if current in numbers:
                bad = bad or f"crashes the process ({process.exitcode})"
                counts["bad"] += 1
                on_bad(f"{kind} {current}: {bad}")
                numbers.remove(current)
            elif process.exitcode and numbers:
                raise RuntimeError(f"{kind}: the worker ended with {process.exitcode}")
    return counts, highest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="files a format [5000]")
    parser.add_argument("--first", type=int, default=0, help="number of the first file [0]")
    parser.add_argument("--format", choices=FORMATS, action="append", help="only this one")
    parser.add_argument("--only", type=int, help="open one file here, with its traceback")
    asked = parser.parse_args()
    kinds = asked.format or list(FORMATS)
    if asked.only is not None:
        path = write(tempfile.mkdtemp(), kinds[0], asked.only)
        print(path)
        return open_file(path)
    bad = 0
    for kind in kinds:
        began = time.perf_counter()
        counts, highest = fuzz(kind, asked.count, asked.first)
        bad += counts["bad"]
        seconds = time.perf_counter() - began
        row = {
            "format": kind,
            "files": asked.count,
            **{n: counts[n] for n in ("read", "refused", "bad")},
        }
        print(json.dumps({**row, "highest_mib": round(highest), "seconds": round(seconds)}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
