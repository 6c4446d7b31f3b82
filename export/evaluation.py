"""Evaluate a trained model on a data set, from its run folder, its file or its ONNX file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lstm_compile.baselines import Baseline, from_tensors
from lstm_compile.checkpoint import load_model
from lstm_compile.config import ModelConfig
from lstm_compile.data.bundled import BUNDLED, load_dataset
from lstm_compile.data.columns import TableOptions
from lstm_compile.data.files import table_options
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.errors import InputError
from lstm_compile.evaluation import Evaluation, evaluate
from lstm_compile.export.predict import load_onnx
from lstm_compile.runs import BASELINES_FILE
from lstm_compile.training.prediction import predict_all


class Predictor(NamedTuple):
    """A model whatever file it came from."""

    config: ModelConfig
    schema: Schema
    training: dict[str, Any]
    predict: Callable[[Sequences], Tensor]  # (rows, output_size), as `forward` gives


def evaluate_file(
    source: str | Path,
    data: str | None = None,
    *,
    table: TableOptions | None = None,
    on_data: Callable[[Sequences], None] = lambda data: None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a model on data, beside the baselines stored next to it.

    Args:
        source: a run folder, a `.safetensors` or an `.onnx` file.
        data: a bundled data set, of which the test part is taken, or a file; None is the bundled
            data set that the model was trained on.
        table: the columns of a long table; those left open are the ones of training.
        on_data: given the data once they are read.
        progress: called with rows done and rows in all, while a long table is read.

    Raises:
        InputError: a file that cannot be read, or data that do not fit the model.
    """
    if str(source) in BUNDLED:
        raise InputError(
            f"{source} is data, and a model comes first: lstm-compile evaluate RUN {source}"
        )
    source = Path(source)
    model = _from_onnx(source) if source.suffix == ".onnx" else _from_safetensors(source)
    name = data or _trained_on(source, model)
    options = table_options(name, table, model.training)
    rows = load_dataset(name, "test", schema=model.schema, table=options, progress=progress)
    on_data(rows)
    if not len(rows):
        raise InputError(f"{data}: holds no sequence; name a file with at least one")
    return evaluate(model.predict(rows), model.config, rows, _baselines(source))


def _trained_on(source: Path, model: Predictor) -> str:
    name = model.training.get("data")
    if name in BUNDLED:
        return str(name)
    raise InputError(
        f"{source}: trained on {name}, which has no test part of its own; name the data: "
        f"lstm-compile evaluate {source} DATA"
    )


def _baselines(source: Path) -> dict[str, Baseline]:
    file = (source if source.is_dir() else source.parent) / BASELINES_FILE
    if not file.is_file():
        return {}
    try:
        return from_tensors(load_file(file))
    except SafetensorError as error:
        raise InputError(f"{file}: not readable ({error}); remove it or train again") from error


def _from_safetensors(source: Path) -> Predictor:
    model = load_model(source)

    def predict(data: Sequences) -> Tensor:
        return predict_all(model.params, model.config, data)

    return Predictor(model.config, model.schema, model.training, predict)


def _from_onnx(source: Path) -> Predictor:
    if not source.is_file():
        raise InputError(f"{source}: no such file; make one with `lstm-compile export --onnx`")
    model, config, schema, training = load_onnx(source)

    def predict(data: Sequences) -> Tensor:
        rows = data.x.split(data.lengths.tolist())
        answer = torch.from_numpy(model.predict([row.numpy() for row in rows]))
        return answer.clamp(min=1e-30).log() if config.task == "classify" else answer

    return Predictor(config, schema, training, predict)
