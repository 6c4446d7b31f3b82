"""`lstm-compile evaluate`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command
from lstm_compile.cli.help import data_names
from lstm_compile.cli.options import (
    OF_TRAINING,
    PATH,
    cell_option,
    flags_of,
    json_option,
    quiet_option,
    values_of,
)
from lstm_compile.cli.working import working
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.model.run_folder import MODEL_FILE

if TYPE_CHECKING:
    from lstm_compile.data.series.series_table import SeriesRoles
    from lstm_compile.data.tables.roles import FilledGaps, Roles
EXAMPLES = (
    "evaluate runs/spoken-digits-1",
    "evaluate runs/sales-1 sales.csv --plot forecasts.png",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model", required=False, type=PATH, metavar="[RUN|MODEL]")
@click.argument("data", required=False, shell_complete=data_names)
@cell_option
@quiet_option
@json_option
@click.option(
    "--stride", type=click.IntRange(1), default=1, show_default=True,
    help="Steps from one forecast's origin to the next.",
)  # fmt: skip
@click.option(
    "--plot", type=PATH, help="Plot forecasts and true values to a .png, .svg or .pdf file."
)
@flags_of(TableOptions, *OF_TRAINING)
def command(
    model: Path | None, data: str | None, as_json: bool, plot: Path | None, **options: Any
) -> None:
    """Measure a model on data, beside the baselines of its run.

    RUN is a run folder, a .safetensors or an .onnx file; without it the newest run is taken. DATA
    is a bundled data set (its test part), a .ts or .npz file, or a long table. The columns of a
    table are those of training unless a flag names others. Without DATA it is the bundled data set
    that the model was trained on.
    """
    from lstm_compile.model.run_folder import newest_run

    source = model or newest_run()
    table = TableOptions(**values_of(TableOptions, options))
    found: list[Roles | FilledGaps | SeriesRoles | None] = []
    out = output.console(as_json)
    with working(out, "measuring") as work:
        from lstm_compile.export.use.evaluate_file import evaluate_file

        evaluation = evaluate_file(
            source, data, table=table, on_data=lambda rows: found.append(rows.roles),
            progress=work.show, stride=options["stride"], plot=plot,
        )  # fmt: skip
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
