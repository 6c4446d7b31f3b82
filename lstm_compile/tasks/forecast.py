"""Task `forecast`: the next steps of a series itself. Loads no torch."""

from typing import TYPE_CHECKING

from lstm_compile.errors import InputError
from lstm_compile.lazy import lazy
from lstm_compile.tasks.task import ENCODER, OneOf, Range, Task, numbered_categories, numbered_codes

if TYPE_CHECKING:
    from lstm_compile.config import ModelConfig
    from lstm_compile.data.schema import Schema


def check(config: "ModelConfig") -> None:
    """Refuse quantiles that do not rise, and settings that do not go together."""
    q = config.quantiles
    if not all(0 < low < high < 1 for low, high in zip((1e-9, *q), (*q, 1 - 1e-9), strict=True)):
        raise InputError(f"quantiles must rise and lie between 0 and 1, got {list(q)}")
    if config.decoder == "recursive" and (q or config.past_size or config.category_sizes):
        what = "quantiles" if q else "past covariates and categories, whose future nobody knows"
        raise InputError(f"decoder recursive takes no {what}; use decoder direct")
    if config.scaling == "series" and (config.log1p or config.season):
        raise InputError("scaling series goes without log1p and season; use another scaling")


def numbered_series(config: "ModelConfig") -> "Schema":
    """`target_0`, `feature_1`, `static_0` and so on, of a clock that counts steps."""
    from lstm_compile.data.schema import Schema, SeriesSchema, numbered

    targets, levels = numbered("target", config.output_size), config.level_size
    features = targets + numbered("feature", config.input_size)[len(targets) :]
    numbers = len(features) - len(config.category_sizes)
    series = SeriesSchema(
        "number",
        1,
        known=features[levels : levels + config.known_size],
        statics=numbered("static", len(config.static_sizes)),
        categories=numbered_codes(config, config.static_sizes),
        indicator=numbers > levels + config.known_size,
        other=config.has_other and bool(config.static_sizes),
    )
    return Schema(features, (), targets, series=series, categories=numbered_categories(config))


TASK = Task(
    name="forecast",
    data="series",
    output="forecast",
    rows="windows",
    losses=("mse", "mae", "huber"),
    quantile_losses=("pinball",),
    loss=lazy("lstm_compile.tasks.losses:forecast_loss"),
    score=lazy("lstm_compile.tasks.metrics:score_forecasts"),
    headline="scaled_mse",
    tuned=("mae", "rmse", "loss"),
    check=check,
    schema=numbered_series,
    settings={
        "model": {
            "num_layers": 1,
            "bidirectional": False,
            "dropout": 0.0,
            "head_dropout": 0.1,
            "pooling": "last",
            "scaling": "mean",
        },
        "training": {"epochs": 15, "batch_size": 64, "learning_rate": 2e-3, "epoch_size": 8192},
    },
    space={
        **ENCODER,
        "num_layers": Range(1, 2, whole=True),
        "context": Range(24, 192, log=True, whole=True),
        "scaling": OneOf(("standard", "last", "mean", "revin")),
    },
)
