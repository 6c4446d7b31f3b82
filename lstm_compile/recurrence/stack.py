"""A stack of LSTM layers: its weights, a call's arguments, and the loop over its layers."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_compile.errors import InputError

_KEY = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)(_reverse)?")


class Direction(NamedTuple):
    """The weights of one layer and direction."""

    weight_ih: Tensor  # (4 * hidden_size, input_size)
    weight_hh: Tensor  # (4 * hidden_size, hidden_size)
    bias_ih: Tensor | None = None  # (4 * hidden_size,)
    bias_hh: Tensor | None = None  # likewise

    @property
    def bias(self) -> Tensor:
        """The sum of both biases, zeros where there are none."""
        if self.bias_ih is None:
            return self.weight_ih.new_zeros(self.weight_ih.shape[0])
        return self.bias_ih if self.bias_hh is None else self.bias_ih + self.bias_hh

    def summed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Both matrices, and one bias."""
        return self.weight_ih, self.weight_hh, self.bias

    def flat(self) -> list[Tensor]:
        """As torch.lstm takes them: two matrices, and two biases where there are any."""
        matrices = [self.weight_ih, self.weight_hh]
        if self.bias_ih is None:
            return matrices
        bias_hh = torch.zeros_like(self.bias_ih) if self.bias_hh is None else self.bias_hh
        return [*matrices, self.bias_ih, bias_hh]

    def to(self, dtype: torch.dtype) -> "Direction":
        """The same weights in another dtype."""
        return Direction(*(tensor.to(dtype) for tensor in self.tensors()))

    def tensors(self) -> list[Tensor]:
        """The weights, without those that are None."""
        return [tensor for tensor in self if tensor is not None]


def weight_shapes(
    input_size: int, hidden_size: int, num_layers: int = 1, *, bidirectional: bool, bias: bool
) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter of a stack, in nn.LSTM's order."""
    gates, shapes = 4 * hidden_size, dict[str, tuple[int, ...]]()
    for layer in range(num_layers):
        width = hidden_size * (1 + bidirectional) if layer else input_size
        for suffix in (f"l{layer}", f"l{layer}_reverse")[: 1 + bidirectional]:
            shapes[f"weight_ih_{suffix}"] = (gates, width)
            shapes[f"weight_hh_{suffix}"] = (gates, hidden_size)
            if bias:
                shapes[f"bias_ih_{suffix}"] = shapes[f"bias_hh_{suffix}"] = (gates,)
    return shapes


def under(params: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The parameters whose names begin with `prefix`, by what follows it."""
    return {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)}


def read_layers(params: Mapping[str, Tensor]) -> list[list[Direction]]:
    """The weights by layer and direction, read off nn.LSTM's keys.

    Raises:
        InputError: unknown, missing or misshapen parameters; projections (proj_size > 0).
    """
    read_keys = _read_keys if torch.compiler.is_compiling() else _read_known  # Dynamo has no caches
    depth, suffixes, has_bias = read_keys(tuple(params))
    hidden_size = _get(params, "weight_hh_l0").shape[-1]
    width, layers = _get(params, "weight_ih_l0").shape[-1], []
    for layer in range(depth):
        names = [f"l{layer}{suffix}" for suffix in suffixes]
        layers.append([_direction(params, name, width, hidden_size, has_bias) for name in names])
        width = hidden_size * len(suffixes)
    return layers


def _read_keys(keys: tuple[str, ...]) -> tuple[int, tuple[str, ...], bool]:
    """The number of layers, the suffixes of a layer's directions, and whether there are biases."""
    if not keys:
        raise InputError("params is empty; expected nn.LSTM's keys, such as weight_ih_l0")
    parsed = []
    for key in keys:
        match = _KEY.fullmatch(key)
        if not match:
            why = "; proj_size > 0 is not supported" if key.startswith("weight_hr") else ""
            raise InputError(f"params: {key!r} is not a key of nn.LSTM{why}")
        parsed.append(match)
    depth = 1 + max(int(match[2]) for match in parsed)
    suffixes = ("", "_reverse") if any(match[3] for match in parsed) else ("",)
    return depth, suffixes, any(key.startswith("bias") for key in keys)


_read_known = lru_cache(_read_keys)


def _direction(
    params: Mapping[str, Tensor], suffix: str, input_size: int, hidden_size: int, has_bias: bool
) -> Direction:
    gates = 4 * hidden_size
    weight_ih = _get(params, f"weight_ih_{suffix}", (gates, input_size))
    weight_hh = _get(params, f"weight_hh_{suffix}", (gates, hidden_size))
    if not has_bias:
        return Direction(weight_ih, weight_hh)
    biases = (_get(params, f"{name}_{suffix}", (gates,)) for name in ("bias_ih", "bias_hh"))
    return Direction(weight_ih, weight_hh, *biases)


def _get(params: Mapping[str, Tensor], key: str, shape: tuple[int, ...] | None = None) -> Tensor:
    if key not in params:
        raise InputError(f"params: {key!r} is missing; found {sorted(params)}")
    if shape and tuple(params[key].shape) != shape:
        found = tuple(params[key].shape)
        raise InputError(f"params: {key!r} must have shape {shape}, got {found}")
    return params[key]


# x, weights, the parts of the state (rows, size) and whether the direction reads from the end ->
# output and the parts of the final state
RunLayer = Callable[..., Sequence[Tensor]]


class Call(NamedTuple):
    """The arguments of `lstm`, checked, with defaults filled in."""

    layers: Sequence[Sequence[Direction]]  # the weights by layer and direction
    x: Tensor  # (batch, time, input_size)
    lengths: Tensor | None  # (batch,) int64 on any device; None: every step is valid
    resets: Tensor | None  # (batch, time) bool on any device; only for one direction
    # h and c, each (num_layers * num_directions, batch, hidden_size); with resets twice the batch,
    # as `recurrence.resets.both_states` gives them
    state: Sequence[Tensor]
    backwards: Sequence[bool]  # for each direction of a layer: whether it reads from the end
    dropout: float  # probability of dropping a value between layers
    backend: str  # `reference`, `compiled`, `vendor` or `auto`
    chunk: int  # steps unrolled in one graph by `compiled`

    def tensors(self) -> Iterator[Tensor]:
        """All that derivatives may be asked of: x, the initial state and the weights."""
        yield from (self.x, *self.state)
        for layer in self.layers:
            for weights in layer:
                yield from weights.tensors()


def is_jit_tracing() -> bool:
    """Whether torch.jit.trace runs, also for torch.onnx.export(dynamo=False)."""
    return torch._C._get_tracing_state() is not None


def run_stack(call: Any, run: RunLayer) -> tuple[Tensor, ...]:
    """Layer after layer, its directions side by side, each of them computed by `run`.

    `call` is a `Call`, or has its `layers`, `x`, `state`, `backwards` and `dropout`.

    Returns:
        output with num_directions * hidden_size features, otherwise shaped as `call.x`, and the
        parts of the final state, each (num_layers * num_directions, batch, size).
    """
    x = call.x
    states: list[list[Tensor]] = []
    for depth, layer in enumerate(call.layers):
        if depth and call.dropout:
            x = torch.nn.functional.dropout(x, call.dropout)
        outputs = []
        for weights, backward in zip(layer, call.backwards, strict=True):
            own = [part[len(states)] for part in call.state]
            y, *state = run(x, weights, *own, backward)
            outputs.append(y)
            states.append(state)
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
    return x, *(torch.stack(list(part)) for part in zip(*states, strict=True))


def both_ways(
    run: Callable[..., Sequence[Tensor]], reverse: Callable[[Tensor], Tensor]
) -> RunLayer:
    """`run`, which goes forward in time, for either direction."""

    def run_direction(x: Tensor, weights: Any, *state_and_backward: Any) -> Sequence[Tensor]:
        *state, backward = state_and_backward
        if not backward:
            return run(x, weights, *state)
        y, *final = run(reverse(x), weights, *state)
        return reverse(y), *final

    return run_direction
