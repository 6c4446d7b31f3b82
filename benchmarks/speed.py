"""The whole grid of `lstm-compile bench` as JSON, a plot and the table of docs/speed.md.

python benchmarks/speed.py [--device DEVICE] [WORD ...]   measures cases whose names hold all words
python benchmarks/speed.py --table                        prints the table of what is there

Results are in benchmarks/speed-DEVICE.json; what is measured again replaces what was there.
"""

import argparse
import json
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from lstm_compile.bench.cases import BenchConfig, Case, grid
from lstm_compile.bench.figures import BenchRow, summary
from lstm_compile.devices import find_device
from lstm_compile.export.use.benchmark import run_bench
from lstm_compile.files import to_json, write_atomically

FOLDER = Path(__file__).parent
SHOWN = {"inference": ("auto", "compiled", "onnxruntime"), "training": ("auto", "compiled")}


def measure(words: list[str], config: BenchConfig) -> None:
    """Measure, and write after every case, so that an end in between loses little."""
    device = find_device(config.device).type
    for case in grid(device):
        if all(word in case.name.split() for word in words):
            report = run_bench([case], config, on_rows=show)
            if report.stopped:
                break
            keep(FOLDER / f"speed-{device}.json", report.to_dict(), report.rows)


def show(rows: list[BenchRow]) -> None:
    """One line a case and mode."""
    found = ", ".join(f"{row.backend} {row.median_ms:.2f} ms" for row in rows)
    print(f"{rows[0].mode}, {rows[0].case.name}: {found}", flush=True)


def keep(path: Path, report: dict, rows: list[BenchRow]) -> None:
    """Put new rows in the place of old ones of the same case."""
    cases = {row.case for row in rows}
    old = [row for row in read(path) if row.case not in cases]
    order = [*grid("cuda"), *grid("cpu")]
    found = sorted([*old, *rows], key=lambda row: (order.index(row.case), row.mode))
    report |= {"rows": [asdict(row) for row in found], "summary": summary(found)}
    write_atomically(path, (json.dumps(json.loads(to_json(report)), indent=1) + "\n").encode())


def read(path: Path) -> list[BenchRow]:
    """The rows of a file; none where there is no file."""
    if not path.exists():
        return []
    rows = json.loads(path.read_text("utf-8"))["rows"]
    return [BenchRow(**{**row, "case": Case(**row["case"])}) for row in rows]


def table(rows: list[BenchRow]) -> str:
    """Ratios to the faster nn.LSTM form in Markdown, those above 1 in bold."""
    heads = [f"{mode}: {name}" for mode, names in SHOWN.items() for name in names]
    titles = ["B, T, D, H", "layers", "directions", "lengths", "precision", *heads]
    lines = [titles, ["---"] * len(titles)]
    for case, group in groupby(rows, key=lambda row: row.case):
        ratios = {(row.mode, row.backend): row.ratio for row in group}
        sizes = f"{case.batch}, {case.time}, {case.input}, {case.hidden}"
        kind = [str(case.layers), "2" if case.bidirectional else "1", case.lengths, case.precision]
        cells = [cell(ratios.get((mode, name))) for mode, names in SHOWN.items() for name in names]
        lines.append([sizes, *kind, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(ratio: float | None) -> str:
    """`0.53`, or `**1.20**` where nn.LSTM is faster."""
    if ratio is None:
        return ""
    return f"**{ratio:.2f}**" if round(ratio, 2) > 1 else f"{ratio:.2f}"


def plot(rows: list[BenchRow], path: Path) -> None:
    """Every ratio by case, on a logarithmic scale; below 1 is faster than nn.LSTM."""
    import matplotlib as mpl
    from matplotlib import pyplot

    mpl.rcParams["svg.hashsalt"] = path.name  # the same figures give the same file
    cases = list(dict.fromkeys(row.case for row in rows))
    figure, axes = pyplot.subplots(1, 2, sharey=True, figsize=(12, 1.5 + 0.2 * len(cases)))
    for axis, mode in zip(axes, SHOWN, strict=True):
        chosen = [row for row in rows if row.mode == mode and row.ratio is not None]
        for name in dict.fromkeys(row.backend for row in chosen):
            mine = [row for row in chosen if row.backend == name]
            places = [cases.index(row.case) for row in mine]
            axis.plot([row.ratio for row in mine], places, "o", markersize=4, label=name)
        axis.set(xscale="log", title=mode, xlabel="time / that of the faster nn.LSTM form")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_yticks(range(len(cases)), [case.name for case in cases], fontsize=7)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure, or print the table; draw the plot where matplotlib is installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="parts of a case's name, such as T512 L2 uniform")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    config = BenchConfig(device=asked.device, seconds=asked.seconds)
    path = FOLDER / f"speed-{find_device(asked.device).type}.json"
    if not asked.table:
        measure(asked.words, config)
        try:
            plot(read(path), path.with_suffix(".svg"))
        except ImportError:
            print("no plot: matplotlib is not installed")
    print(table(read(path)))


if __name__ == "__main__":
    main()
