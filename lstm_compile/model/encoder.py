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
from lstm_compile.recurrence.weights import under


class Mode(NamedTuple):
    """How a model is run.

    Attributes:
        training: whether dropout acts.
        backend: as in `lstm_compile.lstm`.
        chunk: as in `lstm_compile.lstm`.
    """

    training: bool = False
    backend: Backend = "auto"
    chunk: int = DEFAULT_CHUNK


def encoder_shapes(config: ModelConfig, entering: int) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of stack and blocks; `entering` is their input size."""
    hidden, shapes = config.hidden_size, dict[str, tuple[int, ...]]()
    for layer in range(config.num_layers):
        width = config.width if layer else entering
        for suffix in (f"l{layer}", f"l{layer}_reverse")[: config.num_directions]:
            shapes[f"lstm.weight_ih_{suffix}"] = (4 * hidden, width)
            shapes[f"lstm.weight_hh_{suffix}"] = (4 * hidden, hidden)
            if config.bias:
                shapes[f"lstm.bias_ih_{suffix}"] = (4 * hidden,)
                shapes[f"lstm.bias_hh_{suffix}"] = (4 * hidden,)
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

    Blocks see the steps of `x` alone; earlier steps reach them through `state` only.

    Args:
        params: of the model, see `param_shapes`.
        config: the architecture.
        x: (batch, time, width of the first layer), any number in the padding.
        lengths: as in `lstm_compile.forward`.
        state: as there.
        resets: as there; blocks see no step from before a reset either.
        mode: how to run.

    Returns:
        (batch, time, config.width), exactly 0 at t >= length; and the LSTM stack's final state.
    """
    steps, state = lstm(
        under(params, "lstm."), x, lengths, state, resets=resets, reset_state=_zeros_of(state),
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


def _zeros_of(state: LSTMState | None) -> LSTMState | None:
    return None if state is None else LSTMState(*(torch.zeros_like(part) for part in state))
