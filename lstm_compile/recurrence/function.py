"""A stack of LSTM layers as a pure function of nn.LSTM's own parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lstm_compile.config import Backend
from lstm_compile.errors import InputError
from lstm_compile.recurrence.cell import LSTMState, Outputs, State, check_state
from lstm_compile.recurrence.dispatch import OperatorInputs, run_layers
from lstm_compile.recurrence.lengths import Lengths, as_lengths, check_numbers, is_abstract
from lstm_compile.recurrence.operator import DEFAULT_CHUNK, check_options, recurrence
from lstm_compile.recurrence.resets import both_states, check_resets
from lstm_compile.recurrence.stack import (
    Call,
    Direction,
    RunLayer,
    is_jit_tracing,
    read_layers,
    run_stack,
)


def lstm(
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Lengths | None = None,
    state: State | None = None,
    *,
    resets: Tensor | None = None,
    reset_state: State | None = None,
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
        lengths: (batch,) whole numbers, 0 <= length <= time, as a tensor, NumPy array or list; or
            None where every step is valid. On the CPU, even beside data on a device, they are read
            without waiting for it. The content of the padding changes nothing, NaN and inf
            included.
        state: initial `LSTMState`, h and c each (num_layers * num_directions, batch, hidden_size),
            in any floating dtype; zeros if None.
        resets: (batch, time) bool, True where the state is set back before that step, in every
            layer; None where it never is. Not for bidirectional stacks. Values in the padding
            change nothing. Like `lengths`, it may stay on the CPU.
        reset_state: the state after a reset, shaped as `state`; `state` itself if None. Where
            `state` comes from an earlier chunk, give here the state that a sequence begins with.
        dropout: probability of dropping a value between layers, in training.
        training: whether dropout acts.
        backend: `reference`, `compiled`, `vendor` or `auto`.
        chunk: steps unrolled in one graph by `compiled`.

    In plain eager code rows are ordered by length, and each span of time runs only the rows that
    have not ended. There `auto` takes the backend that was measured to be fastest (see
    `explain_backend`); in traced or transformed code it takes `vendor`.

    Returns:
        output (batch, time, num_directions * hidden_size), exactly 0 at t >= length, and the state
        after each row's last valid step; a row of length 0 hands its initial state on.

    Raises:
        InputError: parameters, shapes, dtypes, lengths or resets that do not fit together.
    """
    layers = read_layers(params)
    _check_width(layers[0][0].weight_ih, x)
    check_input(layers[0][0].weight_ih, x)
    if lengths is not None:
        refuse_tracing("lengths")
        lengths = as_lengths(lengths, x)
    h0, c0 = _initial_state(layers, x, state)
    if resets is not None:
        refuse_tracing("resets")
        check_resets(resets, x.shape[0], x.shape[1], bidirectional=len(layers[0]) == 2)
        check_numbers("resets", resets, x)
        again = state if reset_state is None else reset_state
        reset_h, reset_c = _initial_state(layers, x, again, "reset_state")
        h0, c0 = both_states(h0, reset_h), both_states(c0, reset_c)
    if dtype := autocast_dtype(x):
        x, h0, c0 = x.to(dtype), h0.to(dtype), c0.to(dtype)
        layers = [[one.to(dtype) for one in layer] for layer in layers]
    dropout = dropout if training else 0.0
    check_options(backend, chunk)
    backwards = (False, True)[: len(layers[0])]
    call = Call(layers, x, lengths, resets, (h0, c0), backwards, dropout, backend, chunk)
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    plain = not traced and not is_abstract(x)
    if plain:
        y, h, c = run_layers(call)
    else:  # each operator would read lengths on a device again
        call = call._replace(lengths=on_host(lengths), resets=on_host(resets))
        y, h, c = run_stack(call, _by_operator(call))
    return y, LSTMState(h, c)


def _by_operator(call: Call) -> RunLayer:
    """One operator for each layer and direction, in traced or transformed code."""

    def run(x: Tensor, weights: Direction, h0: Tensor, c0: Tensor, backward: bool) -> Outputs:
        lengths, resets, options = call.lengths, call.resets, (backward, call.backend, call.chunk)
        inputs = OperatorInputs(x, lengths, resets, *weights.summed(), h0, c0, *options)
        return recurrence(inputs)

    return run


def on_host(part: Tensor | None) -> Tensor | None:
    """The same numbers on the CPU, or without numbers on meta."""
    return part if part is None or part.device.type in ("cpu", "meta") else part.cpu()


def refuse_tracing(name: str) -> None:
    """Refuse what torch.jit.trace would take for a constant: the values of the example."""
    if not torch.compiler.is_compiling() and is_jit_tracing():
        raise InputError(
            f"torch.jit.trace and torch.onnx.export(dynamo=False) would keep the example's {name} "
            "for ever; use torch.export, or torch.onnx.export(dynamo=True) with "
            "custom_translation_table=translation_table(), on padded rows, not a PackedSequence"
        )


def check_input(weight: Tensor, x: Tensor) -> None:
    """Refuse an input that is no dense (batch, time, features), or not as the weights are.

    Raises:
        InputError: another layout, number of dimensions, dtype or device.
    """
    if not isinstance(x, Tensor) or x.layout is not torch.strided:
        found = x.layout if isinstance(x, Tensor) else type(x).__name__
        raise InputError(f"x must be a dense tensor, got {found}")
    if x.dim() != 3:
        raise InputError(f"x must have shape (batch, time, features), got {tuple(x.shape)}")
    if x.dtype != weight.dtype and autocast_dtype(x) is None:
        raise InputError(f"x is {x.dtype} but the weights are {weight.dtype}; convert one")
    if x.device != weight.device:
        raise InputError(f"x is on {x.device} but the weights are on {weight.device}")


def _check_width(weight_ih: Tensor, x: Tensor) -> None:
    if isinstance(x, Tensor) and (x.dim() != 3 or x.shape[-1] != weight_ih.shape[1]):
        raise InputError(
            f"x must have shape (batch, time, {weight_ih.shape[1]}), got {tuple(x.shape)}"
        )


def _initial_state(
    layers: list[list[Direction]], x: Tensor, state: State | None, what: str = "state"
) -> LSTMState:
    rows = len(layers) * len(layers[0])
    shape = (rows, x.shape[0], layers[0][0].weight_hh.shape[1])
    if state is None:  # two tensors: Dynamo refuses one tensor given twice to an autograd.Function
        return LSTMState(x.new_zeros(shape), x.new_zeros(shape))
    check_state(state, what)
    for name, part in zip(("h", "c"), state, strict=True):
        if tuple(part.shape) != shape:
            raise InputError(
                f"{what}.{name} must have shape (num_layers * num_directions, batch, hidden_size) "
                f"= {shape}, got {tuple(part.shape)}"
            )
        if part.device != x.device or not part.is_floating_point():
            raise InputError(
                f"{what}.{name} must be floating on {x.device}, got {part.dtype} on {part.device}"
            )
    h, c = state
    return LSTMState(h.to(x.dtype), c.to(x.dtype))


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype autocast asks for, None where it is off; float64 stays as it is, as in PyTorch."""
    if x.is_meta or x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)
