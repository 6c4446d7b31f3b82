"""`lstm-compile export`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command

if TYPE_CHECKING:
    from lstm_compile.export.streaming import Cells


@click.command(cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, help="Write an ONNX file (the only format there is).")
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
    streaming: bool,
    cells: "Cells",
    path: Path | None,
    as_json: bool,
) -> None:
    """Export RUN (a run folder or a .safetensors file; the newest run if left out).

    The file is kept only if eager, compiled and exported model agree; parity.json and
    selftest.json beside it hold the proof and cases for other programs.

    The streaming file takes one step or a chunk of steps with the state before it, and gives the
    state after it.
    """
    if not onnx:
        raise click.UsageError("nothing to write: add --onnx")
    if cells == "plain" and not streaming:
        raise click.UsageError("--cells plain is of the streaming file: add --streaming")
    from lstm_compile.checkpoint import model_file
    from lstm_compile.export import export_onnx, export_streaming, names
    from lstm_compile.runs import newest_run

    source = model_file(run or newest_run())
    target = path or source.with_name(names.STREAMING_FILE if streaming else names.ONNX_FILE)
    report = export_streaming(source, target, cells) if streaming else export_onnx(source, target)
    if as_json:
        return output.print_json({"path": str(target), **report.parity.to_dict()})
    out = output.console(as_json)
    output.parity(out, report.parity)
    output.lines(
        out,
        ("wrote", f"{target} ({output.size(target)}, {report.seconds:.1f} s)"),
        ("beside it", ", ".join(file.name for file in report.beside)),
        ("next", _next(run, target, streaming)),
    )
    return None


def _next(run: Path | None, target: Path, streaming: bool) -> str:
    if not streaming:
        return output.command("evaluate", target)
    return output.command("verify", run or target.parent, "--onnx", shlex.quote(str(target)))
