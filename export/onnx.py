"""`export_onnx`: one ONNX file of a model, written only if it is proven to agree with the model."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from lstm_compile.checkpoint import Model, load_model
from lstm_compile.config import ModelConfig
from lstm_compile.errors import RunError
from lstm_compile.export import names
from lstm_compile.export.graph import simplify
from lstm_compile.export.portable import TRACED_OPSET, to_portable
from lstm_compile.export.translation import translation_table
from lstm_compile.model import predict


def to_onnx(model: Model) -> onnx.ModelProto:
    """The model as one ONNX graph in the portable form, scaling included.

    Raises:
        RunError: torch.onnx cannot translate it.
    """
    config = model.config
    program = _Program(model)
    traced = _translate(program, config)
    features = helper.make_tensor_value_info(
        names.INPUT, TensorProto.FLOAT, [names.BATCH, names.TIME, config.input_size]
    )
    lengths = helper.make_tensor_value_info(names.LENGTHS, TensorProto.INT64, [names.BATCH])
    output = helper.make_tensor_value_info(
        names.OUTPUTS[config.task], TensorProto.FLOAT, [names.BATCH, config.output_size]
    )
    return to_portable(
        simplify(traced, program.names),
        [features, lengths],
        [output],
        program.names,
        layer_names(config),
        metadata(model),
    )


def layer_names(config: ModelConfig) -> list[str]:
    """A name for each LSTM node, `l0`, `l0_reverse`, `l1` and so on, in the order of computation."""
    suffixes = ("", "_reverse")[: config.num_directions]
    return [f"l{layer}{suffix}" for layer in range(config.num_layers) for suffix in suffixes]


def metadata(model: Model) -> dict[str, str]:
    """The file's metadata_props: `names.METADATA_KEYS`, values as JSON where they are no words."""
    return {
        "interface_version": names.INTERFACE_VERSION,
        "format": names.FORMAT,
        "profile": names.PROFILE,
        "task": model.config.task,
        "config": model.config.to_json(),
        "schema": model.schema.to_json(),
        "training": json.dumps(model.training, sort_keys=True),
    }


class _Program(nn.Module):
    """`predict` with the model's tensors as buffers, which is what torch.export takes."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = model.config
        # a buffer's name holds no dot: weight 'head.weight' is buffer 'head__weight'
        self.names = {name.replace(".", "__"): name for name in model.params}
        for buffer, name in self.names.items():
            self.register_buffer(buffer, model.params[name].detach().float().cpu())

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        params = {name: self.get_buffer(buffer) for buffer, name in self.names.items()}
        return predict(params, self.config, x, lengths)


def _translate(program: _Program, config: ModelConfig) -> Any:
    # sizes of 2 or more: torch.export takes a size of 1 for a constant
    x, lengths = torch.zeros(3, 5, config.input_size), torch.tensor([5, 2, 0])
    batch, time = (torch.export.Dim(name, min=1) for name in (names.BATCH, names.TIME))
    with _quiet():
        exported = torch.export.export(
            program.eval(), (x, lengths), dynamic_shapes=({0: batch, 1: time}, {0: batch})
        )
        translated = torch.onnx.export(
            exported,
            dynamo=True,
            verbose=False,
            optimize=False,
            external_data=False,
            opset_version=TRACED_OPSET,
            custom_translation_table=translation_table(),
        )
    assert translated is not None
    return translated.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch.onnx says to its own developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
