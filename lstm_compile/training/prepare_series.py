"""The parts of a forecasting run: windows of series, split by time."""

from collections.abc import Mapping
from typing import Any

import torch

from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.series_table import Shares
from lstm_compile.data.series.windows import (
    Windows,
    check_lengths,
    require,
    split_windows,
    thinned,
    windows_of,
)
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.data.tables.read import locate
from lstm_compile.tasks import fitting_task
from lstm_compile.training.job import JobRequest, Parts, in_place_of_test

MOST_VALIDATED = 4096  # windows in validation, evenly spaced if there are more


def forecast_parts(request: JobRequest) -> tuple[ModelConfig, Parts]:
    """Read series and split them, by time, into a training, a validation and a test part.

    The test file, if any, holds other series or later rows, and all of it is tested.

    Raises:
        InputError: anything wrong with the table, or no window in a part.
    """
    training, test, hyper_parameters = request.training, request.test, request.hyper_parameters
    horizon = hyper_parameters.get("horizon", ModelConfig.horizon)
    shares = Shares(training.validation, 0.0 if test else training.test_share, horizon)
    path = locate(request.data, "train")
    table = read_series(path, request.table, split=shares, progress=request.progress)
    config = config_of(table.schema, hyper_parameters, fitting_task(request.task, is_series=True))
    check_lengths(table, config.horizon)
    parts = split_windows(windows_of(table, config))
    train, known = (thinned(parts[name], training.stride) for name in ("train", "known"))
    validation = None
    if training.validation:
        validation = thinned(require(parts["validation"], "validation"), most=MOST_VALIDATED)
    tested, tested_on = parts["test"], "test"
    if test:
        tested = test_windows(test, config, table.schema, table.roles.options)
    elif not len(tested):
        tested, tested_on = in_place_of_test(request.data, validation), "validation"
    rows = torch.arange(len(train))
    return config, Parts(
        require(train, "training"), validation, tested, known, tested_on, rows, known
    )


def test_windows(path: str, config: ModelConfig, schema: Schema, options: TableOptions) -> Windows:
    """All windows of a test file.

    Raises:
        InputError: the table does not fit the model, or holds no window.
    """
    table = read_series(locate(path, "test"), options, schema=schema)
    return require(windows_of(table, config), "test")


def config_of(schema: Schema, hyper_parameters: Mapping[str, Any], task: str) -> ModelConfig:
    """The architecture for series of these columns.

    Raises:
        InputError: a hyper-parameter out of range.
    """
    assert schema.series is not None
    known = len(schema.series.known_features)
    past = len(schema.features) - len(schema.targets) - known - schema.series.indicator
    return ModelConfig(
        task=task,
        input_size=len(schema.features),
        output_size=len(schema.targets),
        past_size=past,
        known_size=known,
        static_sizes=tuple(map(len, schema.series.categories)),
        **hyper_parameters,
    )
