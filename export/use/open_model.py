"""A model opened for its answers: a run folder, a `.safetensors` or an `.onnx` file.

An `.onnx` file is opened, and answers, without torch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_compile.config import ModelConfig
from lstm_compile.data.bundled import BUNDLED
from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.folders import FORMATS, TEXT_SUFFIXES
from lstm_compile.errors import InputError
from lstm_compile.export.runtime import (
    Floats,
    Inputs,
    ModelError,
    OnnxModel,
    Streams,
    finite,
    from_json,
    open_any,
)

if TYPE_CHECKING:
    from lstm_compile.model.model import Params

BATCH = 256  # windows that are answered together
SUFFIXES_OF_DATA = (*FORMATS, *TEXT_SUFFIXES, ".npz", ".ts")
SMALLEST = 1e-30  # a probability whose logarithm is taken


@contextmanager
def told_as_input() -> Iterator[None]:
    """Errors of `runtime` become those of this package."""
    try:
        yield
    except ModelError as error:
        raise InputError(str(error)) from error


@dataclass(frozen=True)
class OpenModel:
    """What every file of a model holds: its config, its names, how it was trained."""

    source: Path
    config: ModelConfig
    schema: Schema
    training: dict[str, Any]


@dataclass(frozen=True)
class TorchModel(OpenModel):
    """The model of a run folder or `.safetensors` file, on the CPU."""

    params: "Params"

    def check_whole(self) -> None:
        """Accept it: it answers whole sequences."""

    def predict(self, rows: list[Floats]) -> Floats:
        """Probabilities or values (rows, outputs), or (steps, outputs) of all steps.

        `rows` are float32 (time, features) or tokens (time,), one array a sequence.
        """
        import torch

        from lstm_compile.data.sequences import Sequences
        from lstm_compile.evaluation.predict import predict_all

        offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
        data = Sequences(
            torch.from_numpy(np.concatenate(rows)),
            torch.from_numpy(offsets),
            torch.zeros(len(rows), dtype=torch.int64, device="cpu"),
            self.schema.features,
            self.schema.classes,
            self.schema.targets,
            vocabulary=self.schema.vocabulary,
        )
        found = predict_all(self.params, self.config, data)
        found = found.softmax(-1) if self.config.traits.has_classes else found
        with told_as_input():
            return finite(np.asarray(found.numpy(), np.float32))

    def forecast(self, inputs: Inputs) -> Floats:
        """Forecasts of whole horizons, of a padded batch: inputs by the names of the ONNX file."""
        import torch

        from lstm_compile.model.batch import Given
        from lstm_compile.model.model import complete

        found = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in inputs.items()}
        x, lengths = found.pop("x"), found.pop("lengths")
        with torch.inference_mode(), told_as_input():
            given = Given(**found)
            return finite(complete(self.params, self.config, x, lengths, given=given).numpy())

    def measure(self, data: Any) -> Any:
        """The answers that `evaluate_model` compares with the truth."""
        from lstm_compile.evaluation.predict import answer_all

        return answer_all(self.params, self.config, data, self.training.get("unroll"))


@dataclass(frozen=True)
class ExportedModel(OpenModel):
    """The model of an `.onnx` file, in ONNX Runtime. Its methods are those of `TorchModel`."""

    file: OnnxModel | Streams

    def check_whole(self) -> OnnxModel:
        """The file, unless it takes one chunk of steps after the other.

        Raises:
            InputError: it does.
        """
        if isinstance(self.file, Streams):
            raise InputError(
                f"{self.source}: this file streams, and sequences are answered by the file that "
                "export --onnx writes without --streaming"
            )
        return self.file

    def predict(self, rows: list[Floats]) -> Floats:
        """See `TorchModel.predict`."""
        file = self.check_whole()
        with told_as_input():
            if self.config.traits.per_step:
                return np.concatenate(file.predict_steps(rows))
            return file.predict(rows)

    def forecast(self, inputs: Inputs) -> Floats:
        """See `TorchModel.forecast`."""
        file = self.check_whole()
        with told_as_input():
            return file.forecast_padded(inputs)

    def measure(self, data: Any) -> Any:
        """See `TorchModel.measure`."""
        import torch

        from lstm_compile.export.use.score_text import score_exported

        task = self.config.traits
        if task.is_text:
            return score_exported(self.file, data)
        if task.is_series:
            found = []
            for part in torch.arange(len(data), device="cpu").split(BATCH):
                batch = data.gather(part)
                inputs = {"x": batch.x, "lengths": batch.lengths, **batch.given._asdict()}
                arrays = {name: v.numpy() for name, v in inputs.items() if v is not None}
                found.append(torch.from_numpy(self.forecast(arrays)))
            return torch.cat(found)
        rows = [row.numpy() for row in data.x.split(data.lengths.tolist())]
        answer = torch.from_numpy(self.predict(rows))
        return answer.clamp(min=SMALLEST).log() if task.has_classes else answer


def open_model(source: Path) -> TorchModel | ExportedModel:
    """Open a run folder, a `.safetensors` or an `.onnx` file; the last loads no torch.

    Raises:
        InputError: no such file, not one of this package, or damaged.
    """
    _refuse_data(source)
    if source.suffix != ".onnx":
        from lstm_compile.model.checkpoint import load_model

        params, config, schema, training = load_model(source)
        return TorchModel(source, config, schema, training, params)
    try:
        file = open_any(source)
        config = ModelConfig.from_json(file.metadata["config"])
        schema = Schema.from_json(file.metadata["schema"])
        return ExportedModel(source, config, schema, from_json(file.metadata, "training"), file)
    except ModelError as error:
        raise InputError(str(error)) from error
    except (InputError, KeyError, ValueError) as error:
        raise InputError(f"{source}: damaged metadata ({error}); export it again") from error


def _refuse_data(source: Path) -> None:
    """Refuse data where a model is expected: the two are easily swapped."""
    is_file = not source.is_dir() and source.suffix.lower() in SUFFIXES_OF_DATA
    if is_file or str(source) in BUNDLED:
        raise InputError(
            f"{source}: is data, and a model comes first; name a run folder, a .safetensors or an "
            f".onnx file before {source}"
        )
