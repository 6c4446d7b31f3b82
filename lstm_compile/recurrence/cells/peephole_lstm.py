"""An LSTM whose gates also see the cell state.

    i = sigmoid(W_i x + R_i h + b_i + p_i * c)
    f = sigmoid(W_f x + R_f h + b_f + p_f * c)
    c' = f * c + i * tanh(W_g x + R_g h + b_g)
    o = sigmoid(W_o x + R_o h + b_o + p_o * c')
    h' = o * tanh(c')

Source: Gers and Schmidhuber 2000; the input P of ONNX's LSTM,
https://onnx.ai/onnx/operators/onnx__LSTM.html
"""

import torch
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import linear

from lstm_compile.recurrence.any_cell import Cell, Params, State, fill_matrix


def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Gates in the order i, f, g, o; peepholes in the order i, f, o."""
    gates = 4 * hidden_size
    return {
        "weight_ih": (gates, input_size),
        "weight_hh": (gates, hidden_size),
        "bias": (gates,),
        "peephole": (3 * hidden_size,),
    }


def initial(name: str, tensor: Tensor, generator: torch.Generator | None) -> None:
    """The forget gate's bias is 1 (Jozefowicz et al. 2015), other biases and peepholes are 0."""
    if tensor.dim() == 2:
        fill_matrix(name, tensor, generator)
        return
    tensor.zero_()
    if name == "bias":
        tensor.chunk(4)[1].fill_(1.0)


def project(params: Params, x: Tensor) -> Tensor:
    """W x + b of the four gates."""
    return linear(x, params["weight_ih"], params["bias"])


def step(params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
    """The equations above."""
    h, c = state
    i, f, g, o = (share + linear(h, params["weight_hh"])).chunk(4, -1)
    p_i, p_f, p_o = params["peephole"].chunk(3)
    c_next = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    h = sigmoid(o + p_o * c_next) * tanh(c_next)
    return h, (h, c_next)


PEEPHOLE_LSTM = Cell(
    "peephole-lstm", lambda size: {"h": size, "c": size}, shapes, project, step, initial
)
