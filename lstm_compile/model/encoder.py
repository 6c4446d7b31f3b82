"""The encoder of a sequence: the LSTM stack, and Transformer blocks after it if there are any."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.model.transformer import block_shapes, initial_of_block, transform
from lstm_compile.recurrence.cell import LSTMState
from lstm_compile.recurrence.function import lstm
from lstm_compile.recurrence.operator import DEFAULT_CHUNK, Backend
from lstm_compile.recurrence.stack import under, weight_shapes


class Mode(NamedTuple):
    """How a model is run; backend and chunk are those of `lstm_compile.lstm`."""

    training: bool = False  # whether dropout acts
    backend: Backend = "auto"
    chunk: int = DEFAULT_CHUNK


def encoder_shapes(config: ModelConfig, entering: int) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of stack and blocks; `entering` is their input size."""
    sizes = entering, config.hidden_size, config.num_layers
    stack = weight_shapes(*sizes, bidirectional=config.bidirectional, bias=config.bias)
    shapes = {f"lstm.{name}": shape for name, shape in stack.items()}
    for index in range(config.transformer_layers):
        block = block_shapes(config.width).items()
        shapes |= {f"transformer.{index}.{name}": shape for name, shape in block}
    return shapes


def initial(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A fresh tensor with a name of `encoder_shapes`; see `init_params`."""
    if name.startswith("transformer."):
        return initial_of_block(name, shape, generator)
    tensor = torch.zeros(shape)
    if ".bias_ih_" in name:
        tensor.chunk(4)[1].fill_(1.0)
    for gate in tensor.chunk(4) if tensor.dim() == 2 else ():
        if ".weight_hh_" in name:
            torch.nn.init.orthogonal_(gate, generator=generator)
        else:
            torch.nn.init.xavier_uniform_(gate, generator=generator)
    return tensor


def encode(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor | None = None,
    state: LSTMState | None = None,
    resets: Tensor | None = None,
    mode: Mode = Mode(),  # noqa: B008 (it cannot change)
) -> tuple[Tensor, LSTMState]:
    """Run the LSTM stack and the Transformer blocks over padded sequences.

    `x` is (batch, time, width of the first layer), with any number in the padding; the others are
    as in `lstm_compile.forward`. Blocks see the steps of `x` alone, and none from before a reset;
    earlier steps reach them through `state` only.

    Returns:
        (batch, time, config.width), exactly 0 at t >= length; and the LSTM stack's final state.
    """
    zeros = None if state is None else LSTMState(*map(torch.zeros_like, state))
    steps, state = lstm(
        under(params, "lstm."), x, lengths, state, resets=resets, reset_state=zeros,
        dropout=config.dropout, **mode._asdict(),
    )  # fmt: skip
    if config.transformer_layers:
        lengths, resets = (None if t is None else t.to(steps.device) for t in (lengths, resets))
        steps = transform(
            under(params, "transformer."), steps, lengths, resets,
            heads=config.heads, causal=not config.bidirectional,
            drop=config.dropout if mode.training else 0.0,
        )  # fmt: skip
    return steps, state
