"""From a program to a graph as torch.onnx makes it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

OPSET = 18  # the lowest that torch.onnx writes by itself


def translated(program: nn.Module, inputs: tuple[Any, ...], shapes: Any, table: Any) -> Any:
    """The graph of a program as torch.onnx makes it.

    `inputs` are examples; `shapes` are the dynamic axes of each, as torch.export takes them;
    `table` is a `translation.Table`.
    """
    with quiet("torch.onnx"), warnings.catch_warnings():  # "torchvision is not installed"
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        result = torch.onnx.export(
            torch.export.export(program.eval(), inputs, dynamic_shapes=shapes),
            dynamo=True,
            verbose=False,
            optimize=False,
            external_data=False,
            opset_version=OPSET,
            custom_translation_table=dict(table),
        )
    assert result is not None
    return result.model


@contextmanager
def quiet(library: str | None) -> Iterator[None]:
    """Hold back the log of a library below errors; None is the root logger."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
