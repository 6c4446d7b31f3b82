"""`lstm-compile bench`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console
from rich.markup import escape

from lstm_compile.bench.cases import BenchConfig, Case, Precision, grid, own_case
from lstm_compile.cli import output
from lstm_compile.cli.edge import Command, code_of_signal
from lstm_compile.cli.options import flags_of, is_given, json_option, quiet_option, values_of
from lstm_compile.cli.working import working

if TYPE_CHECKING:
    from lstm_compile.bench.figures import BenchReport, BenchRow

QUICK_SECONDS = 1.0  # for a case and mode
HEAD = (
    "mode", "backend", "median ms", "p95 ms", "sequences/s", "ratio", "compile s", "peak MiB"
)  # fmt: skip
NAMES = 2  # columns of names, which stand at the left
RIVALS = {"padded": "padded", "packed": "packed", "best": "the faster"}
BACKENDS = ("auto", "compiled", "vendor", "reference", "padded", "packed", "onnxruntime")
EXAMPLES = (
    "bench --quick",
    "bench --hidden 256 --time 128 --backend vendor --backend packed",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.option("--quick", is_flag=True, help="Few cases and rounds, in about a minute.")
@click.option(
    "--backend", "backends", multiple=True, type=click.Choice(BACKENDS),
    help="Measure this one; may be repeated. A ratio needs padded or packed.  [default: all]",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(get_args(Precision)),
    help="Precision of matrix products.  [default: fp32; on CUDA all]",
)  # fmt: skip
@quiet_option
@json_option
@flags_of(Case)
@flags_of(BenchConfig)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    quick: bool,
    backends: tuple[str, ...],
    precision: Precision | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare the speed of every backend with that of nn.LSTM.

    The rivals are nn.LSTM on padded and on packed rows, and ONNX Runtime.

    Without sizes a grid of cases is measured. With a size, a direction or lengths your own case is
    measured, with defaults for the rest.

    Backends take turns in a random order, and a ratio is the median over all rounds, so it is right
    on a busy machine too. A training step is forward, loss and the gradients of all parameters.
    """
    given = {name for name in values_of(Case, options) if is_given(ctx, name)}
    if quick and not is_given(ctx, "seconds"):
        options["seconds"] = QUICK_SECONDS
    config = BenchConfig(**values_of(BenchConfig, options))
    own = Case(**values_of(Case, options), precision=precision or "fp32")
    out = output.console(as_json)
    with working(out, "loading") as work:
        from lstm_compile.devices import find_device
        from lstm_compile.export.use.benchmark import run_bench
        from lstm_compile.recurrence.cache import use_local_cache

        use_local_cache()
        kind = find_device(config.device).type
        cases = [own_case(own, given)] if given else grid(kind, quick=quick, precision=precision)
        tables = Tables(out)
        report = run_bench(
            cases, config, backends,
            on_case=lambda case, mode: work.show(cases.index(case), len(cases), f"{mode}, cases"),
            on_rows=tables.add,
        )  # fmt: skip
        tables.end()
    _end(out, report)
    if as_json:
        output.print_json(report.to_dict())
    if report.stopped:
        ctx.exit(code_of_signal(ctx))


class Tables:
    """Prints one table a case, for all modes together."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._rows: list[BenchRow] = []

    def add(self, rows: "list[BenchRow]") -> None:
        """Take the rows of one case and mode."""
        if self._rows and self._rows[0].case != rows[0].case:
            self.end()
        self._rows += rows

    def end(self) -> None:
        """Print the rows that are there."""
        if self._rows:
            self._out.print(f"[bold]{escape(self._rows[0].case.name)}")
            for line, is_auto in table(self._rows, self._out.width):
                output.write(self._out, line, NAMES, "green" if is_auto else None)
        self._rows = []


def table(rows: "list[BenchRow]", most: int) -> Iterator[tuple[str, bool]]:
    """The lines of a table without empty columns, in at most `most` characters if they fit.

    With each goes whether it is of `auto`, whose choice stands below.
    """
    cells = [HEAD, *map(_cells, rows)]
    kept = [index for index in range(len(HEAD)) if any(row[index] for row in cells[1:])]
    widths = {index: max(len(row[index]) for row in cells) for index in kept}
    gap = " " * (2 if sum(widths.values()) + 2 * len(widths) - 2 <= most else 1)
    for row, source in zip(cells, (None, *rows), strict=True):
        texts = (f"{row[i]:<{widths[i]}}" if i < NAMES else f"{row[i]:>{widths[i]}}" for i in kept)
        yield gap.join(texts).rstrip(), bool(source and source.backend == "auto")
        if source and source.choice:
            yield f"{'':{NAMES}}auto takes {source.choice}", True


def _cells(row: "BenchRow") -> tuple[str, ...]:
    return (
        row.mode,
        row.backend,
        f"{row.median_ms:.3f}",
        f"{row.p95_ms:.3f}",
        f"{row.sequences_per_second:.0f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        f"{row.compile_seconds:.1f}" if row.compile_seconds >= 0.05 else "",
        "" if row.peak_mib is None else f"{row.peak_mib:.1f}",
    )


def _end(out: Console, report: "BenchReport") -> None:
    from lstm_compile.bench.machine import described

    output.lines(
        out,
        *(("left out", f"{name}: {why}") for name, why in report.skipped.items()),
        *(("mean", _mean(group)) for group in report.summary if group["backend"] == "auto"),
        ("ratio", "time over that of the faster nn.LSTM form, padded or packed"),
        ("machine", described(report.machine)),
        *([("stopped", "by a signal; what was measured so far stands above")] * report.stopped),
        ("next", "lstm-compile train --backend auto"),
    )


def _mean(group: dict[str, Any]) -> str:
    """Geometric means of the ratios of `auto` in a group, without batches of one row."""
    means = {words: group[f"mean_to_{key}"] for key, words in RIVALS.items()}
    shown = [f"{mean:.2f} of {words}" for words, mean in means.items() if mean is not None]
    shown.append(f"worst {group['worst_to_best']:.2f} of the faster")
    kind = f"{group['mode']}, lengths {group['lengths']}, {group['precision']}"
    return f"auto: {', '.join(shown)} ({kind})"
