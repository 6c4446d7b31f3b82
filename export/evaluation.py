"""Evaluate a trained model on a data set, from its run folder, its file or its ONNX file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import onnxruntime
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lstm_compile.baselines import Baseline, from_tensors
from lstm_compile.checkpoint import load_model
from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import ordered_batches
from lstm_compile.data.bundled import BUNDLED, load_dataset
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences, gather
from lstm_compile.errors import InputError
from lstm_compile.evaluation import Evaluation, evaluate
from lstm_compile.export.names import INPUT, LENGTHS
from lstm_compile.runs import BASELINES_FILE
from lstm_compile.training.loop import predict_all


class Predictor(NamedTuple):
    """A model whatever file it came from."""

    config: ModelConfig
    schema: Schema
    training: dict[str, Any]
    predict: Callable[[Sequences], Tensor]  # (rows, output_size), as `forward` gives


def evaluate_file(source: str | Path, data: str | None = None) -> Evaluation:
    """Measure a model on data, beside the baselines stored next to it.

    Args:
        source: a run folder, a `.safetensors` or an `.onnx` file.
        data: a bundled data set, of which the test part is taken, or a file; None is the bundled
            data set that the model was trained on.

    Raises:
        InputError: a file that cannot be read, or data that do not fit the model.
    """
    if str(source) in BUNDLED:
        raise InputError(
            f"{source} is data, and a model comes first: lstm-compile evaluate RUN {source}"
        )
    source = Path(source)
    model = _from_onnx(source) if source.suffix == ".onnx" else _from_safetensors(source)
    rows = load_dataset(data or _trained_on(source, model), "test", schema=model.schema)
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
    try:
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
        config = ModelConfig.from_json(metadata["config"])
        schema, training = Schema.from_json(metadata["schema"]), json.loads(metadata["training"])
    except KeyError as error:
        raise InputError(f"{source}: not exported by lstm-compile (no metadata {error})") from error
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except Exception as error:  # onnxruntime's errors share no base class of their own
        raise InputError(f"{source}: not a readable ONNX file ({error})") from error

    def predict(data: Sequences) -> Tensor:
        answer = _run(session, data)
        return answer.clamp(min=1e-30).log() if config.task == "classify" else answer

    return Predictor(config, schema, training, predict)


def _run(session: Any, data: Sequences, batch_size: int = 256) -> Tensor:
    batches = ordered_batches(data.lengths, batch_size)
    answers = []
    for indices in batches:
        x, lengths, _ = gather(data, indices)
        answers.append(session.run(None, {INPUT: x.numpy(), LENGTHS: lengths.numpy()})[0])
    return torch.from_numpy(numpy.concatenate(answers))[torch.argsort(torch.cat(batches))]
