"""Answers of a trained model for every sequence of a file; with an ONNX file, without torch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lstm_compile.config import CLASSES, FORECAST, LM, STEPWISE, ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.read import locate, read_table, table_options
from lstm_compile.data.tables.table import Table, check_features
from lstm_compile.errors import InputError
from lstm_compile.export.runtime import (
    Floats,
    Inputs,
    ModelError,
    OnnxModel,
    Streams,
    from_json,
    open_any,
)
from lstm_compile.files import write_atomically

if TYPE_CHECKING:
    from lstm_compile.export.use.forecast_file import Steps

SUFFIXES = (".csv", ".parquet")
BLOCK = 4096  # sequences between two reports of progress
Answer = Callable[[list[Floats]], Floats]  # (time, features) each -> (rows or steps, outputs)
Progress = Callable[[str, int, int], None]


class Predictor(NamedTuple):
    """A model whatever file it came from."""

    config: ModelConfig
    schema: Schema
    training: dict[str, Any]
    answer: Answer
    forecast: Callable[[Inputs], Floats]  # a padded batch by the names of the file's inputs


class Predictions(NamedTuple):
    """What a model says of each sequence or series of a file, in the file's order."""

    task: str
    schema: Schema
    ids: list[str] | None  # None where the file has none
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
    """Ask a model about every sequence of a file; labels in the file are not read.

    Args:
        source: a run folder, a `.safetensors` or an `.onnx` file; the last loads no torch.
        data: a file, or a bundled data set, of which the test part is taken.
        options: the columns of a long table; what they leave open is as it was in training.
        progress: told what is read (`rows`) or answered (`sequences`), how many, and of how many.

    Raises:
        InputError: a file that cannot be read, or data that do not fit the model.
    """
    model = open_model(Path(source))
    if model.config.task == FORECAST:
        from lstm_compile.export.use.forecast_file import forecast_series  # loads pyarrow

        options, path = table_options(data, options, model.training), locate(data, "test")
        found = forecast_series(model.config, model.schema, model.forecast, path, options, progress)
        return Predictions(FORECAST, model.schema, *found)
    if model.config.task == LM:
        raise InputError(
            f"{source}: its task is lm, which answers with text; use lstm-compile generate"
        )
    table = _read(model, data, options, progress)
    values = _answer_all(model, table, progress)
    return Predictions(model.config.task, model.schema, table.ids, values, lengths=table.lengths)


def open_model(source: Path) -> Predictor:
    """The model of a run folder, a `.safetensors` or an `.onnx` file.

    Raises:
        InputError: it cannot be read.
    """
    return _from_onnx(source) if source.suffix == ".onnx" else _from_safetensors(source)


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
    if predictions.task in CLASSES:
        answers: dict[str, Any] = {
            "prediction": [schema.classes[code] for code in values.argmax(1)]
        }
        answers |= {f"probability_{name}": values[:, i] for i, name in enumerate(schema.classes)}
    else:
        answers = {name: values[:, i] for i, name in enumerate(schema.targets)}
    lengths, ids = predictions.lengths, predictions.ids
    count = len(values) if ids is None and lengths is None else len(ids or lengths)
    names: dict[str, Any] = {
        _free("sequence" if ids is None else "id", answers): np.arange(count)
        if ids is None
        else ids
    }
    if predictions.task == "tag":
        names = {name: np.repeat(np.array(rows), lengths) for name, rows in names.items()}
        starts = np.repeat(lengths.cumsum() - lengths, lengths)
        names[_free("step", answers)] = np.arange(len(values)) - starts
    return {**names, **answers}


def _free(title: str, taken: dict[str, Any]) -> str:
    return _free(title + "_", taken) if title in taken else title


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


def _read(
    model: Predictor, data: str, given: TableOptions | None, progress: Progress | None
) -> Table:
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


def _answer_all(model: Predictor, table: Table, progress: Progress | None) -> Floats:
    offsets = np.concatenate(([0], table.lengths.cumsum()))
    count = len(table.lengths)
    parts = []
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        rows = [table.x[offsets[row] : offsets[row + 1]] for row in range(start, stop)]
        parts.append(model.answer(rows))
        if progress is not None:
            progress("sequences", stop, count)
    return np.concatenate(parts)


class Exported(NamedTuple):
    """An ONNX file with its metadata read."""

    model: OnnxModel | Streams
    config: ModelConfig
    schema: Schema
    training: dict[str, Any]


def open_onnx(source: Path) -> Exported:
    """Open an exported file of either kind for its answers.

    Raises:
        InputError: no such file, not one of this package, or damaged.
    """
    try:
        model = open_any(source)
        config = ModelConfig.from_json(model.metadata["config"])
        schema = Schema.from_json(model.metadata["schema"])
        return Exported(model, config, schema, from_json(model.metadata, "training"))
    except ModelError as error:
        raise InputError(str(error)) from error
    except (InputError, KeyError, ValueError) as error:
        raise InputError(f"{source}: damaged metadata ({error}); export it again") from error


def sequence_file(source: Path, model: OnnxModel | Streams) -> OnnxModel:
    """The file, once it is seen to take whole sequences.

    Raises:
        InputError: it streams.
    """
    if isinstance(model, Streams):
        raise InputError(
            f"{source}: this file streams, and sequences are answered by the file that export "
            "--onnx writes without --streaming"
        )
    return model


def _from_onnx(source: Path) -> Predictor:
    found = open_onnx(source)
    model = sequence_file(source, found.model)

    def answer(rows: list[Floats]) -> Floats:
        if found.config.task in STEPWISE:
            return np.concatenate(model.predict_steps(rows))
        return model.predict(rows)

    return Predictor(found.config, found.schema, found.training, answer, model.forecast_padded)


def _from_safetensors(source: Path) -> Predictor:
    import torch

    from lstm_compile.data.sequences import Sequences
    from lstm_compile.evaluation.predict import predict_all
    from lstm_compile.model.batch import Given
    from lstm_compile.model.checkpoint import load_model
    from lstm_compile.model.model import complete

    params, config, schema, training = load_model(source)
    names = schema.features, schema.classes, schema.targets
    vocabulary = schema.vocabulary

    def answer(rows: list[Floats]) -> Floats:
        offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
        x, y = torch.from_numpy(np.concatenate(rows)), torch.zeros(len(rows), dtype=torch.int64)
        data = Sequences(x, torch.from_numpy(offsets), y, *names, vocabulary=vocabulary)
        found = predict_all(params, config, data)
        found = found.softmax(-1) if config.task in CLASSES else found
        return np.asarray(found.cpu().numpy(), np.float32)

    def forecast(inputs: Inputs) -> Floats:
        found = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in inputs.items()}
        x, lengths = found.pop("x"), found.pop("lengths")
        with torch.inference_mode():
            return complete(params, config, x, lengths, given=Given(**found)).numpy()

    return Predictor(config, schema, training, answer, forecast)
