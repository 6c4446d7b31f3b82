"""Untrained models of every task but forecast, and the files that are written of them."""

from functools import cache

import torch

from lstm_compile import ModelConfig, init_params
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.export.write.streaming import to_streaming
from lstm_compile.model.checkpoint import Model, numbered_schema

STREAMED = {"input_size": 3, "output_size": 4, "hidden_size": 5, "bidirectional": False}


def sequence_model(seed=0, **changes):
    sizes = {"task": "classify", "input_size": 3, "output_size": 4, "hidden_size": 5}
    config = ModelConfig(**sizes | changes)
    params = init_params(config, seed)
    params["scaler.shift"] += 20.0
    params["scaler.scale"] *= torch.tensor([0.5, 2.0, 300.0][: config.input_size])
    return Model(params, config, numbered_schema(config), {"seed": seed})


def streaming_model(**changes):
    config = ModelConfig(**{**STREAMED, **changes})
    generator = torch.Generator().manual_seed(0)
    params = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator).abs()
        for name, value in init_params(config, 0).items()
    }
    return Model(params, config, numbered_schema(config), {})


def text_model(size, **changes):
    config = ModelConfig(
        task="lm", input_size=1, output_size=size, vocabulary_size=size, bidirectional=False,
        **{"hidden_size": 12, "embedding_size": 6, "num_layers": 2, "dropout": 0.0,
           "head_dropout": 0.0, **changes},
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    params = {
        name: value + 0.3 * torch.randn(value.shape, generator=generator)
        for name, value in init_params(config, 0).items()
    }
    return Model(params, config, numbered_schema(config), {})


# A file takes a second or more to write. All tests share it, and change no more than a copy.


def sequence_file(profile="portable", **changes):
    return _sequence_file(profile, tuple(sorted(changes.items())))


def streaming_file(cells="node", **changes):
    return _streaming_file(cells, tuple(sorted(changes.items())))


@cache
def _sequence_file(profile, changes):
    return to_onnx(sequence_model(**dict(changes)), profile)


@cache
def _streaming_file(cells, changes):
    return to_streaming(streaming_model(**dict(changes)), cells)


@cache
def text_file(size):
    return to_onnx(text_model(size))
