"""What programs do with a file of each format, for the tests of hostile files."""

from pathlib import Path

import numpy as np

from lstm_compile.data.tables.columns import ReadRequest
from lstm_compile.data.tables.read import read_table
from lstm_compile.errors import InputError
from lstm_compile.evaluation.baselines import read_baselines
from lstm_compile.export.runtime import ModelError, load, open_streams
from lstm_compile.export.use.inspect import inspect_source
from lstm_compile.export.use.open_model import open_model
from lstm_compile.model.checkpoint import load_model

Refused = (InputError, ModelError)
FORMATS = {
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
    "npz": (".npz",),
    "tables": (".csv", ".parquet", ".arrow", ".feather", ".jsonl", ".ts"),
}


def open_file(path):
    """Read a file in every way there is, and ask a model for an answer.

    Raises:
        Refused: what the first way said, where no way took it.
    """
    errors = []
    ways = ways_of(path)
    for way in ways:
        try:
            way(str(path))
        except Refused as error:
            errors.append(error)
    if len(errors) == len(ways):
        raise errors[0]


def ways_of(path):
    return WAYS.get(path.suffix, (lambda name: read_table(ReadRequest(Path(name))), inspect_source))


def _answer(path):
    model = load(path)
    size = len(model.schema.features)
    if model.schema.vocabulary is not None:
        model.predict_steps([[0, 1, 2]])
    elif model.task == "tag":
        model.predict_steps([np.ones((3, size)), np.ones((1, size))])
    elif model.task == "forecast":
        known = np.ones((1, model.config["horizon"], model.config["known_size"]))
        model.forecast([np.ones((5, size))], known, [[0]])
    else:
        model.predict([np.ones((3, size)), np.ones((0, size))])


def _stream(path):
    streams = open_streams(path)
    streams.push(["a"], [np.array([0, 1])])
    streams.push(["a", "b"], np.array([[0], [1]]))


WAYS = {
    ".safetensors": (load_model, inspect_source, read_baselines),
    ".onnx": (_answer, _stream, lambda name: open_model(Path(name)), inspect_source),
}
