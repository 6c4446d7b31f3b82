"""`lstm-compile export`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command

if TYPE_CHECKING:
    from lstm_compile.export.names import Profile
    from lstm_compile.export.write.int8 import Int8Report
    from lstm_compile.export.write.onnx import ExportReport
    from lstm_compile.export.write.streaming import Cells


@click.command(cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, help="Write an ONNX file (the only format there is).")
@click.option(
    "--profile", type=click.Choice(["portable", "ort"]), default="portable", show_default=True,
    help="LSTM operators that every runtime answers rightly, or that ONNX Runtime alone does.",
)  # fmt: skip
@click.option("--int8", is_flag=True, help="LSTM weights of 8 bits; with --profile ort.")
@click.option("--data", help="What to measure --int8 on  [the run's own test part]")
@click.option("--streaming", is_flag=True, help="Write the file that goes step by step instead.")
@click.option(
    "--cells", type=click.Choice(["node", "plain"]), default="node", show_default=True,
    help="LSTM operators, or plain operators for one step, in the streaming file.",
)  # fmt: skip
@click.option("--output", "path", type=click.Path(path_type=Path), help="[beside the model]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(
    run: Path | None,
    onnx: bool,
    profile: "Profile",
    int8: bool,
    data: str | None,
    streaming: bool,
    cells: "Cells",
    path: Path | None,
    as_json: bool,
) -> None:
    """Export RUN (a run folder or a .safetensors file; the newest run if left out).

    The file is kept only if eager, compiled and exported model agree; the parity report and the
    self-test beside it hold the proof and cases for other programs.

    The streaming file takes one step or a chunk of steps with the state before it, and gives the
    state after it.
    """
    if not onnx:
        raise click.UsageError("nothing to write: add --onnx")
    _check(profile, int8, data, streaming, cells)
    from lstm_compile.export import export_int8, export_onnx, export_streaming
    from lstm_compile.model.checkpoint import model_file
    from lstm_compile.model.run_folder import newest_run

    source = model_file(run or newest_run())
    target = path or source.with_name(_file_name(profile, int8, streaming))
    quantized = export_int8(source, target, data) if int8 else None
    if quantized:
        report = quantized.export
    elif streaming:
        report = export_streaming(source, target, cells)
    else:
        report = export_onnx(source, target, profile=profile)
    if as_json:
        return output.print_json(_values(target, report, quantized))
    out = output.console(as_json)
    output.parity(out, report.parity)
    if profile == "ort":
        output.lines(out, ("only in", "ONNX Runtime: others ignore the lengths without a word"))
    output.lines(out, *_cost(quantized))
    output.lines(out, *[("known", str(row)) for row in report.known])
    output.lines(
        out,
        ("wrote", f"{target} ({output.size(target)}, {report.seconds:.1f} s)"),
        ("beside it", ", ".join(file.name for file in report.beside)),
        ("next", _next(run, target, streaming)),
    )
    return None


def _check(profile: str, int8: bool, data: str | None, streaming: bool, cells: str) -> None:
    """Refuse options that do not go together."""
    if cells == "plain" and not streaming:
        raise click.UsageError("--cells plain is of the streaming file: add --streaming")
    if streaming and (profile == "ort" or int8):
        raise click.UsageError(
            "--profile ort and --int8 are of the sequence file: the streaming file has no lengths, "
            "and one form of it is right everywhere; leave --streaming out"
        )
    if int8 and profile != "ort":
        raise click.UsageError(
            "--int8 writes an operator of ONNX Runtime's own, which no other runtime loads: add "
            "--profile ort"
        )
    if data and not int8:
        raise click.UsageError("--data is what --int8 is measured on: add --int8")


def _file_name(profile: str, int8: bool, streaming: bool) -> str:
    from lstm_compile.export import names

    if streaming:
        return names.STREAMING_FILE
    if int8:
        return names.INT8_FILE
    return names.ONNX_FILE if profile == "portable" else names.ORT_FILE


def _values(target: Path, report: "ExportReport", quantized: "Int8Report | None") -> dict[str, Any]:
    known = [
        {"runtime": row.runtime, "version": row.version, "part": row.part, "happens": row.happens,
         "remedy": row.remedy}
        for row in report.known
    ]  # fmt: skip
    return {
        "path": str(target),
        **report.parity.to_dict(),
        "known": known,
        **({"int8": quantized.to_dict()} if quantized else {}),
    }


def _cost(quantized: "Int8Report | None") -> list[tuple[str, str]]:
    """What 8 bits cost and save."""
    if quantized is None:
        return []
    share = quantized.export.size / quantized.float_size
    lines = [
        ("int8", f"largest difference from the float64 model {quantized.error:.1e}"),
        ("size", f"{share:.2f} of float32"),
    ]
    if not quantized.before or not quantized.after:
        return [*lines, ("metrics", f"not measured: {quantized.unmeasured}")]
    return [
        *lines,
        ("float32", output.result(quantized.before)),
        ("int8", output.result(quantized.after)),
    ]


def _next(run: Path | None, target: Path, streaming: bool) -> str:
    if not streaming:
        return output.command("evaluate", target)
    return output.command("verify", run or target.parent, "--onnx", shlex.quote(str(target)))
