"""Evaluate a trained model on a data set, from its run folder, its file or its ONNX file."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstm_compile.data.bundled import BUNDLED
from lstm_compile.data.corpus import Corpus, read_corpus
from lstm_compile.data.readers import load_dataset
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.series_table import Split
from lstm_compile.data.series.windows import Windows, require, thinned, windows_of
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.folders import is_table
from lstm_compile.data.tables.label_values import spelling
from lstm_compile.data.tables.read import locate, table_options
from lstm_compile.data.text_files import refuse_columns
from lstm_compile.errors import InputError
from lstm_compile.evaluation.baselines import read_baselines
from lstm_compile.evaluation.evaluate import Evaluation, evaluate_model
from lstm_compile.evaluation.plot import check_plot, plot_forecasts
from lstm_compile.export.use.open_model import OpenModel, open_model
from lstm_compile.model.run_folder import BASELINES_FILE, own_file

Data = Sequences | Windows | Corpus


def evaluate_file(
    source: str | Path,
    data: str | None = None,
    *,
    table: TableOptions | None = None,
    on_data: Callable[[Data], None] = lambda data: None,
    progress: Callable[[int, int], None] | None = None,
    stride: int = 1,
    plot: Path | None = None,
) -> Evaluation:
    """Measure a model on data, beside the baselines stored next to it.

    Args:
        source: a run folder, a `.safetensors` or an `.onnx` file.
        data: a bundled data set, of which the test part is taken, or a file; None is the bundled
            data set that the model was trained on.
        table: the columns of a long table; those that are not named are as in training.
        on_data: called with the data once they are read.
        progress: called with rows done and rows in all, while a long table is read.
        stride: steps between the origins of forecasts.
        plot: the picture of forecasts to draw.

    Raises:
        InputError: a file that cannot be read, or data that do not fit the model.
    """
    if str(source) in BUNDLED:
        raise InputError(
            f"{source} is data, and a model comes first: lstm-compile evaluate RUN {source}"
        )
    source = Path(source)
    if source.suffix == ".onnx" and not source.is_file():
        raise InputError(f"{source}: no such file; make one with `lstm-compile export --onnx`")
    model = open_model(source)
    if not model.config.traits.is_text:
        model.check_whole()
    if plot is not None:
        if not model.config.traits.is_series:
            raise InputError(f"plot is for task forecast, the model's is {model.config.task}")
        check_plot(plot)
    name = data or _trained_on(source, model)
    rows = _read(name, model, table, stride, progress)
    on_data(rows)
    if not len(rows):
        raise InputError(f"{data}: holds no sequence; name a file with at least one")
    if plot is not None:
        assert isinstance(rows, Windows)
        plot_forecasts(plot, model.measure, model.config, rows)
    stored = own_file(source if source.is_dir() else source.parent, BASELINES_FILE)
    baselines = {} if stored is None else read_baselines(stored)
    return evaluate_model(model.measure, model.config, rows, baselines, model.training)


def _read(
    name: str,
    model: OpenModel,
    table: TableOptions | None,
    stride: int,
    progress: Callable[[int, int], None] | None,
) -> Data:
    """The data that `name` means, as the model's task reads them."""
    task, options = model.config.traits, table_options(name, table, model.training)
    if task.is_series:
        return unseen_windows(name, model, options, stride, progress)
    if task.is_text:
        refuse_columns(name, table)
        corpus = read_corpus(name, vocabulary=model.schema.vocabulary)
        if not int(corpus.starts.diff().max()) > 1:
            raise InputError(f"{name}: one character cannot be scored; expected at least two")
        return corpus
    return load_dataset(
        name, "test", schema=model.schema, table=options, progress=progress, per_step=task.per_step
    )


def _trained_on(source: Path, model: OpenModel) -> str:
    name = str(model.training.get("data"))
    if name in BUNDLED:
        return name
    # the end of a table of series is its own test part
    has_end = model.config.traits.is_series and model.training.get("test_from") is not None
    if has_end and is_table(name) and Path(name).exists():
        return name
    raise InputError(
        f"{source}: trained on {name}, which has no test part of its own; name the data: "
        f"lstm-compile evaluate {source} DATA"
    )


def unseen_windows(
    name: str,
    model: OpenModel,
    options: TableOptions | None,
    stride: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Windows:
    """The windows of a table that a model has not seen.

    They lie from the start of its test part on, before the first date that it was trained on, or in
    series whose id was none of training's. A model with a test file of its own has seen its
    training file alone.

    Raises:
        InputError: the table does not fit the model, or holds no such window.
    """
    begin, trained_on = model.training.get("test_from"), Path(str(model.training.get("data")))
    if begin is None and trained_on.exists() and Path(name).exists() and trained_on.samefile(name):
        raise InputError(f"{name}: the model was trained on all of it; name other data")
    split = Split(-math.inf, -math.inf if begin is None else float(begin))
    path = locate(name, "test")
    table = read_series(path, options, schema=model.schema, split=split, progress=progress)
    windows = require(windows_of(table, model.config), "test")
    tested = windows.select(_is_unseen(windows, model.training).nonzero()[:, 0])
    if not len(tested):
        at = table.stamps(np.array([split.test]).astype(table.ticks.dtype))[0]
        known = "it knows series by their ids"
        if not model.training.get("trained_ids"):
            known = "without ids only dates tell series apart: name later data, or train with --id"
        raise InputError(
            f"{name}: no window of {model.config.horizon} steps from {at} on, where the test part "
            f"begins; the model was trained on the rows before it ({known})"
        )
    return thinned(tested, stride)


def _is_unseen(windows: Windows, training: dict[str, Any]) -> Tensor:
    """Which windows forecast no step of the training data, bool (windows,)."""
    table, ids = windows.table, training.get("trained_ids")
    ticks = torch.from_numpy(table.ticks)
    first, last = ticks[windows.origins], ticks[windows.origins + windows.shape.horizon - 1]
    found = first >= table.split.test
    if (begin := training.get("trained_from")) is not None:
        found |= last < begin
    if ids and table.ids:
        are_files = not table.roles.options.id
        own, theirs = ([_bare_id(name, are_files) for name in names] for names in (table.ids, ids))
        found |= torch.from_numpy(~np.isin(own, theirs))[windows.series]
    return found


def _bare_id(name: str, is_file: bool) -> str:
    """An id without what another table may write differently: folder, blanks, zeros around it."""
    bare = Path(name).name if is_file else name.strip()
    return spelling(bare).lstrip("0")
