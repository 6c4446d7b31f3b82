"""The LSTM of torch.nn.LSTM."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from lstm_compile.recurrence.any_cell import Cell, Params, State
from lstm_compile.recurrence.cell import lstm_step
from lstm_compile.recurrence.dispatch import run_layers
from lstm_compile.recurrence.stack import Call, Direction


def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """nn.LSTM's parameters, gates in the order i, f, g, o."""
    gates = 4 * hidden_size
    return {
        "weight_ih": (gates, input_size),
        "weight_hh": (gates, hidden_size),
        "bias_ih": (gates,),
        "bias_hh": (gates,),
    }


def project(params: Params, x: Tensor) -> Tensor:
    """W_ih x + b_ih + b_hh."""
    return linear(x, params["weight_ih"], params["bias_ih"] + params["bias_hh"])


def step(params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
    """See `lstm_compile.recurrence.cell.lstm_step`."""
    h, c = state
    h, c = lstm_step(share, h, c, params["weight_hh"])
    return h, (h, c)


def run_layers_of(call: Any, _: Any) -> Sequence[Tensor]:
    """A `CellCall` by the backends of `lstm_compile.lstm`."""
    layers = [[Direction(*one.values()) for one in layer] for layer in call.layers]
    return run_layers(Call(layers, *call[1:9]))


LSTM = Cell(
    "lstm",
    lambda size: {"h": size, "c": size},
    shapes,
    project,
    step,
    kernels=dict.fromkeys(("vendor", "compiled", "auto"), run_layers_of),
)
