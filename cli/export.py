"""`lstm-compile export`."""

from pathlib import Path

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command


@click.command(cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, help="Write an ONNX file (the only format there is).")
@click.option("--output", "path", type=click.Path(path_type=Path), help="[beside the model]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(run: Path | None, onnx: bool, path: Path | None, as_json: bool) -> None:
    """Export RUN (a run folder or a .safetensors file; the newest run if left out).

    The file is kept only if eager, compiled and exported model agree; parity.json and
    selftest.json beside it hold the proof and cases for other programs.
    """
    if not onnx:
        raise click.UsageError("nothing to write: add --onnx")
    from lstm_compile.checkpoint import model_file
    from lstm_compile.export import export_onnx, names
    from lstm_compile.runs import ONNX_FILE, newest_run

    source = model_file(run or newest_run())
    target = path or source.with_name(ONNX_FILE)
    report = export_onnx(source, target)
    if as_json:
        return output.print_json({"path": str(target), **report.parity.to_dict()})
    out = output.console(as_json)
    output.parity(out, report.parity)
    output.lines(
        out,
        ("wrote", f"{target} ({output.size(target)}, {report.seconds:.1f} s)"),
        ("beside it", f"{names.PARITY_FILE}, {names.SELFTEST_FILE}"),
        ("next", output.command("evaluate", target)),
    )
    return None
