"""`lstm-compile export`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.options import PATH, cell_option, json_option, output_option, quiet_option
from lstm_compile.cli.working import working

if TYPE_CHECKING:
    from lstm_compile.export.write.int8 import Int8Report
    from lstm_compile.export.write.onnx import ExportReport
EXAMPLES = (
    "export runs/spoken-digits-1",
    "export runs/spoken-digits-1 --streaming -o steps.onnx",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("run", required=False, type=PATH)
@click.option(
    "--onnx",
    is_flag=True,
    expose_value=False,
    help="Write an ONNX file; it may be left out, as there is no other format.",
)
@click.option(
    "--profile", type=click.Choice(["portable", "ort"]), default="portable", show_default=True,
    help="LSTM operators that are right in every runtime, or in ONNX Runtime only.",
)  # fmt: skip
@click.option("--int8", is_flag=True, help="Store LSTM weights in 8 bits; needs --profile ort.")
@click.option("--data", help="Data on which --int8 is measured  [default: the run's own test part]")
@click.option("--streaming", is_flag=True, help="Write the file that runs step by step instead.")
@click.option(
    "--cells", type=click.Choice(["node", "plain"]), default="node", show_default=True,
    help="In the streaming file: LSTM operators, or plain operators for one step.",
)  # fmt: skip
@output_option("path", "File to write  [default: beside the model]")
@cell_option
@click.option("-v", "--verbose", is_flag=True, help="Show each known limit of other runtimes.")
@quiet_option
@json_option
def command(run: Path | None, path: Path | None, verbose: bool, as_json: bool, **form: Any) -> None:
    """Write a model as an ONNX file that is proven to agree with it.

    RUN is a run folder or a .safetensors file. Without RUN the newest run is taken.

    The file is kept only if the eager, the compiled and the exported model agree. The parity report
    and the self-test are written beside it: the proof, and test cases for other programs.

    The streaming file takes one step or a chunk of steps and the state before it, and gives the
    state after it.
    """
    _check(**form)
    out = output.console(as_json)
    with working(out, "exporting and comparing"):
        target, report, quantized = _export(run, path, **form)
    if as_json:
        return output.print_json(_values(target, report, quantized))
    output.parity(out, report.parity)
    only_in = ("only in", "ONNX Runtime: others silently ignore the lengths")
    output.lines(
        out,
        *([only_in] if form["profile"] == "ort" else []),
        *_cost(quantized),
        *_known(report, verbose),
        ("wrote", f"{target} ({output.size(target)}, {report.seconds:.1f} s)"),
        ("beside it", ", ".join(file.name for file in report.beside)),
        ("next", _next(run, target, form["streaming"])),
    )
    return None


def _export(
    run: Path | None, path: Path | None, **form: Any
) -> "tuple[Path, ExportReport, Int8Report | None]":
    """Write the file; its place, and what was found."""
    from lstm_compile.export import export_int8, export_onnx, export_streaming
    from lstm_compile.model.checkpoint import model_file
    from lstm_compile.model.run_folder import newest_run

    source = model_file(run or newest_run())
    target = path or source.with_name(_file_name(**form))
    if form["int8"]:
        quantized = export_int8(source, target, form["data"])
        return target, quantized.export, quantized
    if form["streaming"]:
        return target, export_streaming(source, target, form["cells"]), None
    return target, export_onnx(source, target, profile=form["profile"]), None


def _known(report: "ExportReport", verbose: bool) -> list[tuple[str, str]]:
    """The faults of other runtimes that concern the file; one line unless all are asked for."""
    if verbose or not report.known:
        return [("known", str(row)) for row in report.known]
    runtimes = ", ".join(dict.fromkeys(row.runtime for row in report.known))
    count = output.counted(len(report.known), "limits")
    return [("known", f"{count} of other runtimes ({runtimes}); -v shows what to do")]


def _check(profile: str, int8: bool, data: str | None, streaming: bool, cells: str) -> None:
    """Refuse options that exclude each other."""
    if cells == "plain" and not streaming:
        raise click.UsageError("--cells plain needs the streaming file: add --streaming")
    if streaming and (profile == "ort" or int8):
        raise click.UsageError(
            "--profile ort and --int8 do not apply to the streaming file: it has no lengths, and "
            "its one form is right everywhere; leave --streaming out"
        )
    if int8 and profile != "ort":
        raise click.UsageError(
            "--int8 writes an operator that only ONNX Runtime loads: add --profile ort"
        )
    if data and not int8:
        raise click.UsageError("--data is for measuring --int8: add --int8")


def _file_name(profile: str, int8: bool, streaming: bool, **_: Any) -> str:
    from lstm_compile.export import names

    if streaming:
        return names.STREAMING_FILE
    if int8:
        return names.INT8_FILE
    return names.ONNX_FILE if profile == "portable" else names.ORT_FILE


def _values(target: Path, report: "ExportReport", quantized: "Int8Report | None") -> dict[str, Any]:
    keys = ("runtime", "version", "part", "happens", "remedy")
    return {
        "path": str(target),
        **report.parity.to_dict(),
        "known": [{key: getattr(row, key) for key in keys} for row in report.known],
        **({"int8": quantized.to_dict()} if quantized else {}),
    }


def _cost(quantized: "Int8Report | None") -> list[tuple[str, str]]:
    """The error and the size with 8 bits."""
    if quantized is None:
        return []
    share = quantized.export.size / quantized.float_size
    lines = [
        ("int8", f"largest difference from the float64 model {quantized.error:.1e}"),
        ("size", f"{share:.2f} of float32"),
    ]
    if not quantized.before or not quantized.after:
        return [*lines, ("metrics", f"not measured: {quantized.unmeasured}")]
    lines.append(("float32", output.result(quantized.before)))
    return [*lines, ("int8", output.result(quantized.after))]


def _next(run: Path | None, target: Path, streaming: bool) -> str:
    if not streaming:
        return output.command("evaluate", target)
    return output.command("verify", run or target.parent, "--onnx", shlex.quote(str(target)))
