"""Predict every sequence, or the next horizon of every series, of a file.

With an ONNX file this loads no torch.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.read import locate, read_table, table_options
from lstm_compile.data.tables.roles import Roles
from lstm_compile.data.tables.table import Table, check_features
from lstm_compile.errors import InputError
from lstm_compile.export.runtime import Floats, Inputs, pad, restored, series_levels
from lstm_compile.export.use.open_model import ExportedModel, TorchModel, open_model
from lstm_compile.files import check_target, write_atomically
from lstm_compile.formatting import free_name
from lstm_compile.tasks import find_task

if TYPE_CHECKING:
    from lstm_compile.data.series.series_table import Ahead, SeriesTable
    from lstm_compile.data.series.stamp_format import StampFormat

SUFFIXES = (".csv", ".parquet")
BLOCK = 4096  # sequences between two reports of progress
BATCH = 256  # series that are answered together
Model = TorchModel | ExportedModel
Progress = Callable[[str, int, int], None]


class Steps(NamedTuple):
    """The steps that are forecast."""

    name: str  # of the time column
    stamps: Any  # (series, horizon), numbers or moments in UTC
    quantiles: tuple[float, ...]
    format: "StampFormat"  # how the table writes its stamps


class Predictions(NamedTuple):
    """The answers of a model to each sequence or series of a file, in the file's order."""

    task: str
    schema: Schema
    ids: list[str] | None  # None if the file has none
    values: Floats  # (sequences, outputs): probabilities, or values in the targets' units; for
    # `tag` (steps, outputs), all steps of all sequences; or (series, horizon,
    # targets(, quantiles)), forecasts in these units
    steps: Steps | None = None  # of forecasts
    lengths: Any = None  # int64 (sequences,)
    id_column: tuple[str, Any] = ("id", None)  # its name, and its Arrow type if the file has types
    notes: tuple[str, ...] = ()  # on how the table was read
    # of each step: the name of the column, its cells, and their Arrow type if the file has types
    times: tuple[str, Any, Any] | None = None


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
        return _forecast(model, data, options, progress)
    if model.config.traits.is_text:
        raise InputError(
            f"{source}: its task is {model.config.task}, which answers with text; use lstm-compile "
            "generate"
        )
    table = _read(model, data, options, progress)
    offsets = np.concatenate(([0], table.lengths.cumsum()))

    def answer(rows: range) -> Floats:
        return model.predict([table.x[offsets[row] : offsets[row + 1]] for row in rows])

    values = _in_blocks(
        answer, len(table.lengths), BLOCK, progress and partial(progress, "sequences")
    )
    found = Predictions(model.config.task, model.schema, table.ids, values, lengths=table.lengths)
    if not isinstance(table.roles, Roles):  # only long tables name columns
        return found
    if table.times is not None:
        found = found._replace(times=(str(table.roles.time), *table.times))
    name = table.roles.id
    return found if name is None else found._replace(id_column=(name, table.id_type))


def check_output(path: Path, *inputs: str | Path) -> None:
    """Refuse a file that predictions cannot be written to, before any work is done.

    Raises:
        InputError: another suffix, a folder, no folder to write in, or one of the inputs.
    """
    check_target(path, SUFFIXES, "--output")
    for file in map(Path, inputs):
        if file.exists() and path.exists() and file.samefile(path):
            raise InputError(f"{path}: is the file that is read; name another --output")


def columns(predictions: Predictions, as_text: bool = False) -> dict[str, Any]:
    """The columns of the output file by name, one row a sequence, or one a series and step.

    The ids under the name that they have in the data (or `id`), or `sequence` with the numbers from
    0 where the data have none (followed by `_` where a target is called so), and for answers to
    steps the time, or `step`, from 0 in each sequence, where the data have none; then `prediction`
    and `probability_CLASS` for each class, or one column a target. For forecasts the ids where the
    series have any (or `file`, where each file is one), the time, and one column a target, or one a
    target and quantile called `TARGET_0.1`.

    Ids and times are written as in the data. `as_text` is for files that have no types.
    """
    if predictions.steps is not None:
        return _forecast_columns(predictions, predictions.steps, as_text)
    values, schema = predictions.values, predictions.schema
    if find_task(predictions.task).has_classes:
        answers: dict[str, Any] = {"prediction": [schema.classes[i] for i in values.argmax(1)]}
        answers |= {f"probability_{name}": values[:, i] for i, name in enumerate(schema.classes)}
    else:
        answers = {name: values[:, i] for i, name in enumerate(schema.targets)}
    lengths, ids = predictions.lengths, predictions.ids
    count = len(values) if ids is None and lengths is None else len(ids or lengths)
    name, rows = predictions.id_column[0], np.array(ids, object)
    if ids is None:
        name, rows = "sequence", np.arange(count)
    name = free_name(name, answers)
    names: dict[str, Any] = {name: rows}
    if find_task(predictions.task).per_step:
        names = {name: np.repeat(rows, lengths)}
        starts = np.repeat(lengths.cumsum() - lengths, lengths)
        time, cells, kind = predictions.times or ("step", np.arange(len(values)) - starts, int)
        names[free_name(time, {**names, **answers})] = _times(cells, kind, as_text)
    if ids is not None:
        names[name] = _typed(names[name], predictions.id_column[1])
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
    is_csv, sink = path.suffix.lower() == ".csv", pyarrow.BufferOutputStream()
    table, write = pyarrow.table(columns(predictions, is_csv)), parquet.write_table
    write = csv.write_csv if is_csv else write
    write(table, sink)
    write_atomically(path, sink.getvalue().to_pybytes())
    return list(table.column_names)


def _read(model: Model, data: str, given: TableOptions | None, progress: Progress | None) -> Table:
    options = table_options(data, given, model.training) or TableOptions()
    tell, path = progress and partial(progress, "rows"), locate(data, "test")
    per_step = model.config.traits.per_step
    request = ReadRequest(
        path, options, model.schema, labelled=False, per_step=per_step, progress=tell
    )
    table = read_table(request)
    check_features(table, model.schema)
    if not len(table.lengths):
        raise InputError(f"{data}: holds no sequence; name a file with at least one")
    return table


def _in_blocks(
    answer: Callable[[range], Floats],
    count: int,
    size: int,
    progress: Callable[[int, int], None] | None,
) -> Floats:
    """The answers to rows 0 to `count`, `size` of them at a time."""
    parts = []
    for start in range(0, count, size):
        rows = range(start, min(start + size, count))
        try:
            parts.append(answer(rows))
        except InputError as error:
            raise InputError(f"rows {start} to {rows.stop - 1}: {error}") from error
        if progress is not None:
            progress(rows.stop, count)
    return np.concatenate(parts)


def _forecast(
    model: Model, data: str, given: TableOptions | None, progress: Progress | None
) -> Predictions:
    """Forecast the steps after the last target of each series."""
    from lstm_compile.data.series.reader import read_series  # loads pyarrow
    from lstm_compile.data.series.series_table import Split, look_ahead

    options, path = table_options(data, given, model.training), locate(data, "test")
    # all rows are one part; its gaps are filled with the means of training
    split, tell = Split(math.inf, math.inf), progress and partial(progress, "rows")
    table = read_series(path, options, schema=model.schema, split=split, progress=tell)
    ahead = look_ahead(table, model.config.horizon)

    def answer(rows: range) -> Floats:
        return model.forecast(_forecast_inputs(model, table, ahead, np.array(rows)))

    values = _in_blocks(answer, len(table.lengths), BATCH, progress and partial(progress, "series"))
    values = restored(values, table.info.subtracted)
    stamps = table.clock.stamps(ahead.ticks.ravel(), table.stamp).reshape(ahead.ticks.shape)
    name, time = table.roles.options.id, table.roles.options.time or "time"
    steps = Steps(time, stamps, model.config.quantiles, table.format)
    ids = None if table.ids is None else [*table.ids]
    return Predictions(
        model.config.task, model.schema, ids, values, steps,
        id_column=(name or "file", table.id_type), notes=table.roles.notes,
    )  # fmt: skip


def _typed(ids: Any, kind: Any) -> Any:
    """An Arrow array of ids, of the type that they have in the data if that gives them back."""
    import pyarrow

    texts = pyarrow.array(ids, pyarrow.string())
    is_plain = kind is None or "string_view" in str(kind)  # no format writes string views
    try:
        return texts if is_plain else texts.cast(kind)
    except pyarrow.ArrowException:
        return texts


def _times(cells: Any, kind: Any, as_text: bool) -> Any:
    """Cells of a time column, as a file with types or one without (`as_text`) has them.

    Cells without a type become numbers or moments where they all are, and moments become texts
    like `2024-01-31`.
    """
    import pyarrow

    from lstm_compile.data.series.stamp_format import StampFormat

    if as_text and isinstance(kind, pyarrow.TimestampType):
        moments = cells.cast(pyarrow.timestamp("ns", kind.tz)).to_numpy(zero_copy_only=False)
        return StampFormat(kind.tz or "", type=kind).cells(moments, as_text=True)
    kinds = (pyarrow.int64(), pyarrow.float64(), pyarrow.timestamp("us"))
    for wanted in kinds if kind is None and not as_text else ():
        with suppress(pyarrow.ArrowException):
            return cells.cast(wanted)
    return cells


def _forecast_inputs(model: Model, table: "SeriesTable", ahead: "Ahead", rows: Any) -> Inputs:
    """The inputs of the model's file for series number `rows`."""
    places = zip(table.starts[rows], table.history[rows], strict=True)
    histories = [table.x[start : start + count] for start, count in places]
    x, lengths = pad([history[-model.config.context :] for history in histories])
    levels = series_levels(histories, model.config.level_size)
    given = {"known_future": ahead.known[rows], "static": table.statics[rows], **levels}
    return {"x": x, "lengths": lengths, **{name: given[name] for name in model.config.given}}


def _forecast_columns(predictions: Predictions, steps: Steps, as_text: bool) -> dict[str, Any]:
    values = predictions.values
    count, horizon = values.shape[:2]
    flat = values.reshape(count * horizon, *values.shape[2:])
    answers: dict[str, Any] = {}
    for index, name in enumerate(predictions.schema.targets):
        if steps.quantiles:
            names = [f"{name}_{q:g}" for q in steps.quantiles]
            answers |= {quantile: flat[:, index, i] for i, quantile in enumerate(names)}
        else:
            answers[name] = flat[:, index]
    time = free_name(steps.name, answers)
    answers = {time: steps.format.cells(steps.stamps.ravel(), as_text), **answers}
    if predictions.ids is None:
        return answers
    ids = np.repeat(np.array(predictions.ids, object), horizon)
    name, kind = predictions.id_column
    return {free_name(name, answers): _typed(ids, kind), **answers}
