"""`lstm-compile evaluate`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.options import OF_TRAINING, flags_of, values_of
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.model.run_folder import MODEL_FILE

if TYPE_CHECKING:
    from lstm_compile.data.series.series_table import SeriesRoles
    from lstm_compile.data.tables.roles import Roles


@click.command(cls=Command)
@click.argument("model", required=False, type=click.Path(path_type=Path), metavar="[RUN|MODEL]")
@click.argument("data", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
@click.option(
    "--stride", type=click.IntRange(1), default=1, show_default=True,
    help="Steps between the origins of forecasts.",
)  # fmt: skip
@click.option(
    "--plot", type=click.Path(path_type=Path),
    help="Draw forecasts against the truth: a .png, .svg or .pdf file.",
)  # fmt: skip
@flags_of(TableOptions, *OF_TRAINING)
def command(
    model: Path | None,
    data: str | None,
    as_json: bool,
    stride: int,
    plot: Path | None,
    **options: Any,
) -> None:
    """Measure a model on DATA, beside the baselines of its run.

    RUN is a run folder, a .safetensors or an .onnx file; left out, the newest run. DATA is a
    bundled data set (its test part is taken), a .ts or .npz file, or a long table, whose columns
    are those that the model was trained on where no flag says otherwise; left out, the bundled data
    set that the model was trained on.
    """
    from lstm_compile.export.use.evaluate_file import evaluate_file
    from lstm_compile.model.run_folder import newest_run

    source = model or newest_run()
    table = TableOptions(**values_of(TableOptions, options))
    found: list[Roles | SeriesRoles | None] = []
    out = output.console(as_json)
    with output.reading(out) as progress:
        evaluation = evaluate_file(
            source,
            data,
            table=table,
            on_data=lambda rows: found.append(rows.roles),
            progress=progress,
            stride=stride,
            plot=plot,
        )
    if as_json:
        return output.print_json(evaluation.to_dict())
    output.lines(
        out,
        ("model", str(source)),
        *output.columns(found[0]),
        ("result", output.result(evaluation)),
        *output.baselines(evaluation.baselines),
        ("verdict", evaluation.verdict),
        *([("plot", str(plot))] if plot else []),
        ("next", _next(source)),
    )
    return None


def _next(source: Path) -> str:
    if source.suffix == ".onnx" and not (source.parent / MODEL_FILE).exists():
        return output.command("inspect", source)
    if source.suffix == ".onnx":
        return output.command("verify", source.parent, "--onnx", shlex.quote(str(source)))
    return output.command("export", source, "--onnx")
