"""A stack of LSTM layers as a pure function of nn.LSTM's own parameters."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.cell import LSTMState
from lstm_compile.errors import InputError
from lstm_compile.lengths import check_lengths
from lstm_compile.recurrence import DEFAULT_CHUNK, Backend, recurrence

_KEY = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)(_reverse)?")


class Direction(NamedTuple):
    """The weights of one layer and direction."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor


def lstm(
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
    *,
    dropout: float = 0.0,
    training: bool = False,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
) -> tuple[Tensor, LSTMState]:
    """Run a stack of LSTM layers over padded sequences.

    Args:
        params: flat, with nn.LSTM's keys, as `dict(nn.LSTM(...).named_parameters())` gives them;
            the number of layers, directions and biases is read off the keys.
        x: (batch, time, input_size), in the weights' dtype; under autocast in any float dtype.
        lengths: (batch,) int64, 0 <= length <= time, or None where every step is valid. What
            stands in the padding changes nothing, NaN and inf included.
        state: initial `LSTMState`, h and c each (num_layers * num_directions, batch, hidden_size);
            zeros if None.
        dropout: probability of dropping a value between layers, in training.
        training: whether dropout acts.
        backend: `reference`, `compiled`, `vendor` or `auto`.
        chunk: steps unrolled in one graph by `compiled`.

    Returns:
        output (batch, time, num_directions * hidden_size), exactly 0 at t >= length, and the state
        after each row's last valid step; a row of length 0 hands its initial state on.

    Raises:
        InputError: parameters, shapes, dtypes or lengths that do not fit together.
    """
    layers = read_layers(params)
    _check_input(layers, x)
    check_lengths(lengths, x.shape[0], x.shape[1])
    h0, c0 = _initial_state(layers, x, state)
    if dtype := _autocast_dtype(x):
        x, h0, c0 = x.to(dtype), h0.to(dtype), c0.to(dtype)
        layers = [[Direction(*(w.to(dtype) for w in one)) for one in layer] for layer in layers]
    finals: list[tuple[Tensor, Tensor]] = []
    for depth, layer in enumerate(layers):
        if depth and dropout and training:
            x = torch.nn.functional.dropout(x, dropout)
        outputs = []
        for direction, weights in enumerate(layer):
            row = len(finals)
            output, h, c = recurrence(
                x, lengths, *weights, h0[row], c0[row],
                reverse=direction == 1, backend=backend, chunk=chunk,
            )  # fmt: skip
            outputs.append(output)
            finals.append((h, c))
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
    hs, cs = zip(*finals, strict=True)
    return x, LSTMState(torch.stack(hs), torch.stack(cs))


def read_layers(params: Mapping[str, Tensor]) -> list[list[Direction]]:
    """The weights by layer and direction, read off nn.LSTM's keys.

    Raises:
        InputError: unknown, missing or misshapen parameters; projections (proj_size > 0).
    """
    if not params:
        raise InputError("params is empty; expected nn.LSTM's keys, such as weight_ih_l0")
    parsed = {}
    for key in params:
        match = _KEY.fullmatch(key)
        if not match:
            why = "; proj_size > 0 is not supported" if key.startswith("weight_hr") else ""
            raise InputError(f"params: {key!r} is not a key of nn.LSTM{why}")
        parsed[key] = match
    depth = 1 + max(int(match[2]) for match in parsed.values())
    suffixes = ["", "_reverse"] if any(match[3] for match in parsed.values()) else [""]
    has_bias = any(key.startswith("bias") for key in params)
    hidden_size = _get(params, "weight_hh_l0").shape[-1]
    input_size = _get(params, "weight_ih_l0").shape[-1]
    layers = []
    for layer in range(depth):
        width = input_size if layer == 0 else hidden_size * len(suffixes)
        layers.append(
            [
                _direction(params, f"l{layer}{suffix}", width, hidden_size, has_bias)
                for suffix in suffixes
            ]
        )
    return layers


def _direction(
    params: Mapping[str, Tensor], suffix: str, input_size: int, hidden_size: int, has_bias: bool
) -> Direction:
    gates = 4 * hidden_size
    weight_ih = _get(params, f"weight_ih_{suffix}", (gates, input_size))
    weight_hh = _get(params, f"weight_hh_{suffix}", (gates, hidden_size))
    if not has_bias:
        return Direction(weight_ih, weight_hh, weight_ih.new_zeros(gates))
    bias_ih, bias_hh = (
        _get(params, f"{name}_{suffix}", (gates,)) for name in ("bias_ih", "bias_hh")
    )
    return Direction(weight_ih, weight_hh, bias_ih + bias_hh)


def _get(params: Mapping[str, Tensor], key: str, shape: tuple[int, ...] | None = None) -> Tensor:
    if key not in params:
        raise InputError(f"params: {key!r} is missing; found {sorted(params)}")
    if shape and tuple(params[key].shape) != shape:
        found = tuple(params[key].shape)
        raise InputError(f"params: {key!r} must have shape {shape}, got {found}")
    return params[key]


def _check_input(layers: list[list[Direction]], x: Tensor) -> None:
    weight_ih = layers[0][0].weight_ih
    if x.dim() != 3 or x.shape[-1] != weight_ih.shape[1]:
        raise InputError(
            f"x must have shape (batch, time, {weight_ih.shape[1]}), got {tuple(x.shape)}"
        )
    if x.dtype != weight_ih.dtype and _autocast_dtype(x) is None:
        raise InputError(f"x is {x.dtype} but the weights are {weight_ih.dtype}; convert one")
    if x.device != weight_ih.device:
        raise InputError(f"x is on {x.device} but the weights are on {weight_ih.device}")


def _initial_state(
    layers: list[list[Direction]], x: Tensor, state: tuple[Tensor, Tensor] | None
) -> LSTMState:
    rows = len(layers) * len(layers[0])
    shape = (rows, x.shape[0], layers[0][0].weight_hh.shape[1])
    if state is None:  # two tensors: Dynamo refuses one tensor given twice to an autograd.Function
        return LSTMState(x.new_zeros(shape), x.new_zeros(shape))
    for name, part in zip(("h", "c"), state, strict=True):
        if tuple(part.shape) != shape:
            raise InputError(
                f"state.{name} must have shape (num_layers * num_directions, batch, hidden_size) "
                f"= {shape}, got {tuple(part.shape)}"
            )
    return LSTMState(*state)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype autocast asks for, None where it is off; float64 stays as it is, as in PyTorch."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)
