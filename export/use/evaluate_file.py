"""Evaluate a trained model on a data set, from its run folder, its file or its ONNX file."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstm_compile.config import CLASSES, FORECAST, LM, STEPWISE, ModelConfig
from lstm_compile.data.bundled import BUNDLED
from lstm_compile.data.corpus import Corpus, read_corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.readers import load_dataset
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.series_table import Split
from lstm_compile.data.series.windows import Windows, require, split_windows, thinned
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import is_table
from lstm_compile.data.tables.read import locate, table_options
from lstm_compile.data.text_files import refuse_columns
from lstm_compile.errors import InputError
from lstm_compile.evaluation.backtest import backtest, headline_of
from lstm_compile.evaluation.baselines import Baseline, read_baselines
from lstm_compile.evaluation.evaluate import Evaluation, evaluate
from lstm_compile.evaluation.perplexity import TextScores, score_text, window_of
from lstm_compile.evaluation.plot import check_plot, plot_forecasts
from lstm_compile.evaluation.predict import predict_all
from lstm_compile.evaluation.text_baselines import evaluate_text
from lstm_compile.export.runtime import OnnxModel
from lstm_compile.export.use.predict_file import open_onnx, sequence_file
from lstm_compile.export.use.score_text import score_exported
from lstm_compile.model.batch import Batch
from lstm_compile.model.checkpoint import load_model
from lstm_compile.model.run_folder import BASELINES_FILE, own_file
from lstm_compile.tasks.series_scaler import target_deviation
from lstm_compile.training.prepare_series import windows_of

BATCH = 256  # windows that are answered together


class MeasuredModel(NamedTuple):
    """A model whatever file it came from."""

    config: ModelConfig
    schema: Schema
    training: dict[str, Any]
    predict: Callable[
        [Any], Any
    ]  # of sequences or windows what `complete` gives, of text `TextScores`


def evaluate_file(
    source: str | Path,
    data: str | None = None,
    *,
    table: TableOptions | None = None,
    on_data: Callable[[Examples | Corpus], None] = lambda data: None,
    progress: Callable[[int, int], None] | None = None,
    stride: int = 1,
    plot: Path | None = None,
) -> Evaluation:
    """Measure a model on data, beside the baselines stored next to it.

    Args:
        source: a run folder, a `.safetensors` or an `.onnx` file.
        data: a bundled data set, of which the test part is taken, or a file; None is the bundled
            data set that the model was trained on.
        table: the columns of a long table; those left open are the ones of training.
        on_data: given the data once they are read.
        progress: called with rows done and rows in all, while a long table is read.
        stride: steps between the origins of forecasts.
        plot: a picture of forecasts to draw.

    Raises:
        InputError: a file that cannot be read, or data that do not fit the model.
    """
    if str(source) in BUNDLED:
        raise InputError(
            f"{source} is data, and a model comes first: lstm-compile evaluate RUN {source}"
        )
    source = Path(source)
    model = _from_onnx(source) if source.suffix == ".onnx" else _from_safetensors(source)
    if plot is not None:
        check_plot(plot)
    name = data or _trained_on(source, model)
    options = table_options(name, table, model.training)
    if model.config.task == FORECAST:
        windows = unseen_windows(name, model, options, stride, progress)
        on_data(windows)
        if plot is not None:
            plot_forecasts(plot, model.predict, model.config, windows)
        return backtest_model(model, windows, _baselines(source))
    if plot is not None:
        raise InputError(f"plot is for task forecast, the model's is {model.config.task}")
    if model.config.task == LM:
        refuse_columns(name, table)
        corpus = _read_text(name, model)
        on_data(corpus)
        return evaluate_text(model.predict(corpus), corpus, _baselines(source))
    rows = load_dataset(
        name, "test", schema=model.schema, table=options, progress=progress,
        per_step=model.config.task == "tag",
    )  # fmt: skip
    on_data(rows)
    if not len(rows):
        raise InputError(f"{data}: holds no sequence; name a file with at least one")
    return evaluate(model.predict(rows), model.config, rows, _baselines(source))


def _read_text(name: str, model: MeasuredModel) -> Corpus:
    corpus = read_corpus(name, vocabulary=model.schema.vocabulary)
    if not int(corpus.starts.diff().max()) > 1:
        raise InputError(f"{name}: one character tells nothing; expected two at least")
    return corpus


def _trained_on(source: Path, model: MeasuredModel) -> str:
    name = str(model.training.get("data"))
    if name in BUNDLED:
        return name
    # the end of a table of series is its own test part
    if model.config.task == FORECAST and is_table(name) and Path(name).exists():
        return name
    raise InputError(
        f"{source}: trained on {name}, which has no test part of its own; name the data: "
        f"lstm-compile evaluate {source} DATA"
    )


def _baselines(source: Path) -> dict[str, Baseline]:
    file = own_file(source if source.is_dir() else source.parent, BASELINES_FILE)
    return {} if file is None else read_baselines(file)


def _from_safetensors(source: Path) -> MeasuredModel:
    model = load_model(source)

    def predict(data: Examples) -> Tensor:
        return predict_all(model.params, model.config, data)

    def score(corpus: Corpus) -> TextScores:
        time = window_of(model.config, model.training.get("unroll"))
        return score_text(model.params, model.config, corpus, time=time)

    answer = score if model.config.task == LM else predict
    return MeasuredModel(model.config, model.schema, model.training, answer)


def _from_onnx(source: Path) -> MeasuredModel:
    if not source.is_file():
        raise InputError(f"{source}: no such file; make one with `lstm-compile export --onnx`")
    opened, config, schema, training = open_onnx(source)
    if config.task == LM:
        return MeasuredModel(config, schema, training, partial(score_exported, opened))
    model = sequence_file(source, opened)

    def forecast(data: Windows) -> Tensor:
        return torch.cat([_ask(model, batch) for batch in _batches(data)])

    def predict(data: Sequences) -> Tensor:
        rows = [row.numpy() for row in data.x.split(data.lengths.tolist())]
        if config.task in STEPWISE:
            found = np.concatenate(model.predict_steps(rows))
        else:
            found = model.predict(rows)
        answer = torch.from_numpy(found)
        return answer.clamp(min=1e-30).log() if config.task in CLASSES else answer

    return MeasuredModel(config, schema, training, forecast if config.task == FORECAST else predict)


def _batches(data: Windows) -> Iterator[Batch]:
    for indices in torch.arange(len(data)).split(BATCH):
        yield data.gather(indices)


def _ask(model: OnnxModel, batch: Batch) -> Tensor:
    inputs = {"x": batch.x, "lengths": batch.lengths, **batch.given._asdict()}
    arrays = {name: value.numpy() for name, value in inputs.items() if value is not None}
    return torch.from_numpy(model.forecast_padded(arrays))


def unseen_windows(
    name: str,
    model: MeasuredModel,
    options: TableOptions | None,
    stride: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Windows:
    """The windows of a table that a model has not seen: those from the start of its test part on.

    Raises:
        InputError: the table does not fit the model, or holds no such window.
    """
    begin = model.training.get("test_from")
    split = Split(-math.inf, -math.inf if begin is None else float(begin))
    path = locate(name, "test")
    table = read_series(path, options, schema=model.schema, split=split, progress=progress)
    windows = require(windows_of(table, model.config), "test")
    tested = split_windows(windows)["test"]
    if not len(tested):
        at = table.stamps(np.array([split.test]).astype(table.ticks.dtype))[0]
        raise InputError(
            f"{name}: no window of {model.config.horizon} steps from {at} on, where the test part "
            "begins; what lies before it the model was trained on"
        )
    return thinned(tested, stride)


def backtest_model(
    model: MeasuredModel, windows: Windows, baselines: Mapping[str, Baseline]
) -> Evaluation:
    """Roll the origin over windows; see `forecast.backtest`."""
    deviation = model.training.get("target_deviation") or target_deviation(windows).tolist()
    headline = headline_of(str(model.training.get("loss", "mse")))
    units = torch.tensor(deviation, dtype=torch.float64)
    return backtest(model.predict, model.config, windows, baselines, units, headline)
