"""Predict every sequence of a file; with an ONNX file, without torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.read import locate, read_table, table_options
from lstm_compile.data.tables.table import Table, check_features
from lstm_compile.errors import InputError
from lstm_compile.export.runtime import Floats
from lstm_compile.export.use.open_model import ExportedModel, TorchModel, open_model
from lstm_compile.files import write_atomically
from lstm_compile.formatting import free_name
from lstm_compile.tasks import find_task

if TYPE_CHECKING:
    from lstm_compile.export.use.forecast_file import Steps

SUFFIXES = (".csv", ".parquet")
BLOCK = 4096  # sequences between two reports of progress
Model = TorchModel | ExportedModel
Progress = Callable[[str, int, int], None]


class Predictions(NamedTuple):
    """The answers of a model to each sequence or series of a file, in the file's order."""

    task: str
    schema: Schema
    ids: list[str] | None  # None if the file has none
    values: Floats  # (sequences, outputs): probabilities, or values in the targets' units; for
    # `tag` (steps, outputs), all steps of all sequences; or (series, horizon,
    # targets(, quantiles)), forecasts in these units
    steps: "Steps | None" = None  # of forecasts
    lengths: Any = None  # int64 (sequences,)


def predict_file(
    source: str | Path,
    data: str,
    *,
    options: TableOptions | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Predict every sequence of a file; labels in the file are not read.

    Args:
        source: a run folder, a `.safetensors` or an `.onnx` file; the last loads no torch.
        data: a file, or a bundled data set, of which the test part is taken.
        options: the columns of a long table; those that are not named are as in training.
        progress: called with `rows` (read) or `sequences` (answered), how many, and of how many.

    Raises:
        InputError: a file that cannot be read, or data that do not fit the model.
    """
    model = open_model(Path(source))
    model.check_whole()
    if model.config.traits.is_series:
        from lstm_compile.export.use.forecast_file import forecast_series  # loads pyarrow

        options, path = table_options(data, options, model.training), locate(data, "test")
        found = forecast_series(model.config, model.schema, model.forecast, path, options, progress)
        return Predictions(model.config.task, model.schema, *found)
    if model.config.traits.is_text:
        raise InputError(
            f"{source}: its task is {model.config.task}, which answers with text; use lstm-compile "
            "generate"
        )
    table = _read(model, data, options, progress)
    values = _answer_all(model, table, progress)
    return Predictions(model.config.task, model.schema, table.ids, values, lengths=table.lengths)


def check_output(path: Path, *inputs: str | Path) -> None:
    """Refuse a file that predictions cannot be written to, before any work is done.

    Raises:
        InputError: another suffix, a folder, no folder to write in, or one of the inputs.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: --output must end in {' or '.join(SUFFIXES)}, found "
            f"{repr(path.suffix) if path.suffix else 'no ending'}"
        )
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file in it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    for file in map(Path, inputs):
        if file.exists() and path.exists() and file.samefile(path):
            raise InputError(f"{path}: is the file that is read; name another --output")


def columns(predictions: Predictions) -> dict[str, Any]:
    """The columns of the output file by name, one row a sequence, or one a series and step.

    `id`, or `sequence` with the numbers from 0 where the data have none (followed by `_` where a
    target is called so), and for `tag` `step`, from 0 in each sequence; then `prediction` and
    `probability_CLASS` for each class, or one column a target. For forecasts `id` where the series
    have one, the time, and one column a target, or one a target and quantile called `TARGET_0.1`.
    """
    if predictions.steps is not None:
        from lstm_compile.export.use.forecast_file import (  # loads pyarrow
            Forecasts,
            forecast_columns,
        )

        found = Forecasts(predictions.ids, predictions.values, predictions.steps)
        return forecast_columns(predictions.schema, found)
    values, schema = predictions.values, predictions.schema
    if find_task(predictions.task).has_classes:
        answers: dict[str, Any] = {
            "prediction": [schema.classes[code] for code in values.argmax(1)]
        }
        answers |= {f"probability_{name}": values[:, i] for i, name in enumerate(schema.classes)}
    else:
        answers = {name: values[:, i] for i, name in enumerate(schema.targets)}
    lengths, ids = predictions.lengths, predictions.ids
    count = len(values) if ids is None and lengths is None else len(ids or lengths)
    names: dict[str, Any] = {
        free_name("sequence" if ids is None else "id", answers): np.arange(count)
        if ids is None
        else ids
    }
    if find_task(predictions.task).per_step:
        names = {name: np.repeat(np.array(rows), lengths) for name, rows in names.items()}
        starts = np.repeat(lengths.cumsum() - lengths, lengths)
        names[free_name("step", answers)] = np.arange(len(values)) - starts
    return {**names, **answers}


def write_predictions(path: Path, predictions: Predictions) -> list[str]:
    """Write a CSV or Parquet file, by the suffix of `path`; whole or not at all.

    Returns:
        The names of its columns.

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    import pyarrow
    from pyarrow import csv, parquet

    check_output(path)
    table, sink = pyarrow.table(columns(predictions)), pyarrow.BufferOutputStream()
    write = csv.write_csv if path.suffix.lower() == ".csv" else parquet.write_table
    write(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())
    return list(table.column_names)


def _read(model: Model, data: str, given: TableOptions | None, progress: Progress | None) -> Table:
    options = table_options(data, given, model.training)
    tell = partial(progress, "rows") if progress else None
    path = locate(data, "test")
    request = ReadRequest(
        path, options or TableOptions(), model.schema, labelled=False, progress=tell
    )
    table = read_table(request)
    check_features(table, model.schema)
    if not len(table.lengths):
        raise InputError(f"{data}: holds no sequence; name a file with at least one")
    return table


def _answer_all(model: Model, table: Table, progress: Progress | None) -> Floats:
    offsets = np.concatenate(([0], table.lengths.cumsum()))
    count = len(table.lengths)
    parts = []
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        rows = [table.x[offsets[row] : offsets[row + 1]] for row in range(start, stop)]
        parts.append(model.predict(rows))
        if progress is not None:
            progress("sequences", stop, count)
    return np.concatenate(parts)
