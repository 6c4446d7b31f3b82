"""`lstm-compile bench`."""

from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console

from lstm_compile.bench.cases import BenchConfig, Case, Precision, grid, own_case
from lstm_compile.cli import output
from lstm_compile.cli.edge import Command, code_of_signal
from lstm_compile.cli.options import flags_of, is_given, json_option, values_of

if TYPE_CHECKING:
    from lstm_compile.bench.figures import BenchReport, BenchRow

QUICK_SECONDS = 1.0  # for a case and mode
HEAD = ("median ms", "p95 ms", "sequences/s", "ratio", "compile s", "peak MiB")
RIVALS = {"padded": "padded", "packed": "packed", "best": "the faster"}
BACKENDS = ("auto", "compiled", "vendor", "reference", "padded", "packed", "onnxruntime")


@click.command(cls=Command)
@click.option("--quick", is_flag=True, help="Few cases and rounds, in about a minute.")
@click.option(
    "--backend", "backends", multiple=True, type=click.Choice(BACKENDS),
    help="Measure this one; may be repeated. A ratio needs padded or packed [all].",
)  # fmt: skip
@click.option(
    "--precision", type=click.Choice(get_args(Precision)),
    help="Precision of matrix products [fp32; on CUDA all].",
)  # fmt: skip
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
    """Compare the speed of every backend with nn.LSTM, padded and packed, and ONNX Runtime.

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
    from lstm_compile.devices import find_device
    from lstm_compile.export.use.benchmark import run_bench
    from lstm_compile.recurrence.cache import use_local_cache

    use_local_cache()
    kind = find_device(config.device).type
    cases = [own_case(own, given)] if given else grid(kind, quick=quick, precision=precision)
    report = run_bench(
        cases, config, backends,
        on_case=lambda case, mode: out.print(f"[bold]{mode}[/bold], {case.name}"),
        on_rows=lambda rows: _show(out, rows),
    )  # fmt: skip
    _end(out, report)
    if as_json:
        output.print_json(report.to_dict())
    if report.stopped:
        ctx.exit(code_of_signal(ctx))


def _show(out: Console, rows: "list[BenchRow]") -> None:
    """Print the table of one case and mode."""
    out.print("[bold]" + f"{'':12}" + "".join(f"{title:>12}" for title in HEAD))
    for row in rows:
        cells = "".join(f"{cell:>12}" for cell in _cells(row))
        style = "green" if row.backend == "auto" else None
        out.print(f"{row.backend:12}{cells}  {row.choice}".rstrip(), style=style, markup=False)


def _cells(row: "BenchRow") -> list[str]:
    return [
        f"{row.median_ms:.3f}",
        f"{row.p95_ms:.3f}",
        f"{row.sequences_per_second:.0f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        f"{row.compile_seconds:.1f}" if row.compile_seconds >= 0.05 else "",
        "" if row.peak_mib is None else f"{row.peak_mib:.1f}",
    ]


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
