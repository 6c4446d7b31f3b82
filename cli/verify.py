"""`lstm-compile verify`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command, Failure
from lstm_compile.cli.options import PATH, cell_option, json_option, quiet_option
from lstm_compile.cli.working import working

if TYPE_CHECKING:
    from lstm_compile.export.proof.parity_report import ParityReport

EXAMPLES = (
    "verify runs/spoken-digits-1",
    "verify runs/spoken-digits-1 --runtimes",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("run", required=False, type=PATH)
@click.option("--onnx", "path", type=PATH, help="The ONNX file  [default: beside the model]")
@click.option(
    "--runtimes", "everywhere", is_flag=True,
    help="Compare every installed runtime, each in its own process.",
)  # fmt: skip
@cell_option
@quiet_option
@json_option
def command(run: Path | None, path: Path | None, everywhere: bool, as_json: bool) -> None:
    """Compare a model with its ONNX file.

    RUN is a run folder or a .safetensors file. Without RUN the newest run is taken. torch's
    backends, ONNX Runtime and OpenVINO are compared. With --runtimes these are, as far as they are
    installed: ONNX Runtime, OpenVINO, tract, OpenCV, MNN, IREE and onnx's reference evaluator, on
    rows of different lengths.
    """
    out = output.console(as_json)
    with working(out, "comparing"):
        source, target, report = _verify(run, path, everywhere)
    if as_json:
        output.print_json({"path": str(target), **report.to_dict()})
    else:
        output.parity(out, report)
        if report.passed:
            from lstm_compile.export.proof.onnx_file import is_streaming

            after = "inspect" if is_streaming(target) else "evaluate"
            output.lines(out, ("next", output.command(after, target)))
    if not report.passed:
        raise Failure(f"{target}: does not agree with {source}; export it again")


def _verify(
    run: Path | None, path: Path | None, everywhere: bool
) -> "tuple[Path, Path, ParityReport]":
    """The file of the model, that of ONNX, and how they compare."""
    from lstm_compile.export import verify_onnx
    from lstm_compile.model.checkpoint import model_file
    from lstm_compile.model.run_folder import ONNX_FILE, newest_run, own_file

    source = model_file(run or newest_run())
    beside = own_file(source.parent, ONNX_FILE) if path is None else None
    target = path or beside or source.with_name(ONNX_FILE)
    return source, target, verify_onnx(source, target, everywhere=everywhere)
