"""`lstm-compile evaluate`."""

import shlex
from pathlib import Path

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command


@click.command(cls=Command)
@click.argument("model", required=False, type=click.Path(path_type=Path), metavar="[RUN|MODEL]")
@click.argument("data", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def command(model: Path | None, data: str | None, as_json: bool) -> None:
    """Measure a model on DATA, beside the baselines of its run.

    RUN is a run folder, a .safetensors or an .onnx file; left out, the newest run. DATA is a
    bundled data set (its test part is taken) or a .ts or .npz file; left out, the bundled data set
    that the model was trained on.
    """
    from lstm_compile.export.evaluation import evaluate_file
    from lstm_compile.runs import newest_run

    source = model or newest_run()
    evaluation = evaluate_file(source, data)
    if as_json:
        return output.print_json(evaluation.to_dict())
    output.lines(
        output.console(as_json),
        ("model", str(source)),
        ("result", f"{output.metrics(evaluation.metrics)} ({evaluation.rows} sequences)"),
        *output.baselines(evaluation.baselines),
        ("verdict", evaluation.verdict),
        ("next", _next(source)),
    )
    return None


def _next(source: Path) -> str:
    if source.suffix == ".onnx":
        return output.command("verify", source.parent, "--onnx", shlex.quote(str(source)))
    return output.command("export", source, "--onnx")
