"""One step of an LSTM as a pure function: the equations that every backend must meet."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from lstm_compile.errors import InputError

State = tuple[Tensor, Tensor]  # h and c
Outputs = tuple[Tensor, Tensor, Tensor]  # the output of all steps, then the final h and c


class LSTMState(NamedTuple):
    """Hidden and cell state, each (num_layers * num_directions, batch, hidden_size)."""

    h: Tensor
    c: Tensor


# so that torch.export.save writes programs that return it, and torch.load reads saved states
_register_namedtuple(LSTMState, serialized_type_name="lstm_compile.LSTMState")
torch.serialization.add_safe_globals([LSTMState])


def check_state(state: Any, what: str) -> None:
    """Refuse a state that is no pair of tensors.

    Raises:
        InputError: one tensor, as the state of a GRU; more or fewer parts; a part that is none.
    """
    parts = state if isinstance(state, tuple | list) else ()
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        kinds = [type(part).__name__ for part in parts] or type(state).__name__
        raise InputError(f"{what} must be (h, c), two tensors, or None for zeros; got {kinds}")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the cell state: float32 for 16-bit inputs, else the input's own."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def lstm_step(projected: Tensor, h: Tensor, c: Tensor, weight_hh: Tensor) -> tuple[Tensor, Tensor]:
    """The h and c after one step of `batch` rows, in the gate order i, f, g, o of torch.nn.LSTM.

        i, f, g, o = split(W_ih x + b_ih + b_hh + W_hh h)
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

    Args:
        projected: (batch, 4 * hidden_size), the input's share W_ih x + b_ih + b_hh.
        h: (batch, hidden_size), in projected's dtype.
        c: (batch, hidden_size), in accumulator(projected.dtype).
        weight_hh: (4 * hidden_size, hidden_size).

    Source: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; notation of
    https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html
    """
    i, f, g, o = torch.addmm(projected, h, weight_hh.t()).to(c.dtype).chunk(4, -1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    return (o * torch.tanh(c)).to(h.dtype), c
