"""`lstm-compile predict`."""

from pathlib import Path
from time import perf_counter
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
    output_option,
    quiet_option,
)
from lstm_compile.cli.working import working
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.tasks import find_task

if TYPE_CHECKING:
    from lstm_compile.export.use.predict_file import Predictions

SHOWN = 6  # how many columns a line names at most
EXAMPLES = (
    "predict runs/data-1 new.csv -o predictions.csv",
    "predict model.onnx new.parquet -o predictions.parquet",
)


@click.command(cls=Command, examples=EXAMPLES)
@click.argument("model", type=PATH, metavar="RUN|MODEL")
@click.argument("data", shell_complete=data_names)
@output_option(
    "path", "The .csv or .parquet file to write; an existing file is replaced.", required=True
)
@cell_option
@quiet_option
@json_option
@flags_of(TableOptions, "target", *OF_TRAINING)
def command(model: Path, data: str, path: Path, as_json: bool, **options: Any) -> None:
    """Write a model's answer for each sequence of a file.

    RUN|MODEL is a run folder, a .safetensors or an .onnx file; the last needs no PyTorch. DATA is
    a file, a folder or a glob, with or without labels, or a bundled data set (its test part). The
    columns are the most probable class and the probability of each class, or the values of the
    targets in their own units.
    """
    began, out = perf_counter(), output.console(as_json)
    with working(out, "predicting") as work:
        from lstm_compile.export.use.predict_file import (
            check_output,
            predict_file,
            write_predictions,
        )

        check_output(path, model, data)
        predictions = predict_file(
            model, data, options=TableOptions(**options),
            progress=lambda what, done, total: work.show(done, total, what),
        )  # fmt: skip
    columns, rows = write_predictions(path, predictions), len(predictions.values)
    summary: dict[str, Any] = {
        "path": str(path),
        "model": str(model),
        "task": predictions.task,
        "rows": rows,
    }
    seconds = perf_counter() - began
    if as_json:
        notes = {"notes": predictions.notes} if predictions.notes else {}
        summary |= {"columns": columns, "seconds": round(seconds, 2)}
        return output.print_json({**summary, **notes})
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    output.lines(
        out,
        ("model", str(model)),
        ("rows", _rows(predictions)),
        *([("read", "; ".join(predictions.notes))] if predictions.notes else []),
        ("columns", ", ".join(columns[:SHOWN]) + more),
        ("wrote", f"{path} ({output.size(path)}, {seconds:.1f} s)"),
        ("next", output.command("inspect", model)),
    )
    return None


def _rows(predictions: "Predictions") -> str:
    count = len(predictions.values)
    if find_task(predictions.task).per_step:
        sequences = output.counted(len(predictions.lengths), "sequences")
        return f"{output.counted(count, 'steps')} of {sequences}"
    if predictions.steps is None:
        return output.counted(count, "sequences")
    return f"{count * predictions.values.shape[1]}, {count} series"
