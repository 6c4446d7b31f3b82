"""Forecasters of every kind, untrained, and what is put into them."""

from functools import cache

import torch

from lstm_compile import ModelConfig, init_params
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.batch import Given
from lstm_compile.model.checkpoint import Model, numbered_schema

FORECASTERS = {
    "plain": {},
    "none": {"scaling": "none"},
    "last": {"scaling": "last"},
    "mean": {"scaling": "mean"},
    "revin": {"scaling": "revin", "past_size": 2},
    "series": {"scaling": "series", "past_size": 1},
    "minmax": {"scaling": "minmax"},
    "log1p": {"scaling": "mean", "log1p": True},
    "season": {"scaling": "last", "season": 4},
    "season, revin": {"scaling": "revin", "season": 2, "log1p": True, "past_size": 1},
    "quantiles": {"scaling": "mean", "quantiles": (0.1, 0.5, 0.9), "season": 2},
    "known, static": {"known_size": 3, "static_sizes": (2, 5), "scaling": "mean"},
    "recursive": {"decoder": "recursive", "known_size": 1, "scaling": "last"},
    "no linear path": {"linear": False, "pooling": "mean", "bidirectional": True},
}


def make_forecaster(seed=0, targets=2, indicator=0, **changes):
    """A model whose tensors are all away from where they start."""
    settings = {
        "hidden_size": 5, "num_layers": 1, "bidirectional": False, "pooling": "last",
        "context": 6, "horizon": 5, "dropout": 0.0, "head_dropout": 0.0, **changes,
    }  # fmt: skip
    size = targets + settings.get("past_size", 0) + settings.get("known_size", 0) + indicator
    config = ModelConfig(task="forecast", input_size=size, output_size=targets, **settings)
    generator = torch.Generator().manual_seed(seed)
    params = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in init_params(config, seed).items()
    }
    params["scaler.scale"] = params["scaler.scale"].abs() + 0.5
    return params, config


def inputs(config, lengths, seed=0, time=None):
    generator = torch.Generator().manual_seed(seed)
    rows, lengths = len(lengths), torch.tensor(lengths)
    x = 3 + torch.randn(rows, time or int(lengths.max()), config.input_size, generator=generator)
    levels = config.level_size
    found = {
        "known_future": torch.randn(rows, config.horizon, config.known_size, generator=generator),
        "static": torch.stack(
            [torch.randint(n, (rows,), generator=generator) for n in config.static_sizes], 1
        )
        if config.static_sizes
        else None,
        "series_location": torch.randn(rows, levels, generator=generator),
        "series_scale": torch.rand(rows, levels, generator=generator) + 0.5,
    }
    return x, lengths, Given(**{name: found[name] for name in config.given})


def forecast_model(**changes):
    params, config = make_forecaster(**changes)
    means, deviations = ([40.0, 3.0], [12.0, 0.5])
    size = config.output_size
    training = {"target_mean": means[:size], "target_deviation": deviations[:size]}
    return Model(params, config, numbered_schema(config), training)


def forecast_file(name, profile="portable"):
    """A second or two each, which all tests share; they change no more than a copy."""
    return _forecast_file(name, profile)


@cache
def _forecast_file(name, profile):
    return to_onnx(forecast_model(**FORECASTERS[name]), profile)
