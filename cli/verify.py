"""`lstm-compile verify`."""

from pathlib import Path

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command, Failure
from lstm_compile.cli.options import PATH, cell_option, json_option


@click.command(cls=Command)
@click.argument("run", required=False, type=PATH)
@click.option("--onnx", "path", type=PATH, help="The ONNX file [beside the model]")
@click.option(
    "--runtimes", "everywhere", is_flag=True,
    help="Compare every installed runtime, each in its own process.",
)  # fmt: skip
@cell_option
@json_option
def command(run: Path | None, path: Path | None, everywhere: bool, as_json: bool) -> None:
    """Compare RUN (without it the newest run) with its ONNX file.

    torch's backends, ONNX Runtime and OpenVINO are compared. With --runtimes these are, as far as
    they are installed: ONNX Runtime, OpenVINO, tract, OpenCV, MNN, IREE and onnx's reference
    evaluator, on rows of different lengths.
    """
    from lstm_compile.export import verify_onnx
    from lstm_compile.export.proof.onnx_file import is_streaming
    from lstm_compile.model.checkpoint import model_file
    from lstm_compile.model.run_folder import ONNX_FILE, newest_run, own_file

    source = model_file(run or newest_run())
    beside = own_file(source.parent, ONNX_FILE) if path is None else None
    target = path or beside or source.with_name(ONNX_FILE)
    report = verify_onnx(source, target, everywhere=everywhere)
    if as_json:
        output.print_json({"path": str(target), **report.to_dict()})
    else:
        out = output.console(as_json)
        output.parity(out, report)
        if report.passed:
            after = "inspect" if is_streaming(target) else "evaluate"
            output.lines(out, ("next", output.command(after, target)))
    if not report.passed:
        raise Failure(f"{target}: does not agree with {source}; export it again")
