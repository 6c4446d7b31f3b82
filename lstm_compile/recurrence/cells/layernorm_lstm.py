"""An LSTM whose gates and cell state are normalised at each step.

    i, f, g, o = split(norm(W_ih x) * a_ih + norm(W_hh h) * a_hh + b)
    c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h' = sigmoid(o) * tanh(norm(c') * a_c + b_c)

norm(v) is (v - mean(v)) / sqrt(var(v) + 1e-5) over the features.

Source: Ba et al. 2016, equations 20 to 22; their three biases of the gates are one here.
"""

import torch
from torch import Tensor, sigmoid, tanh
from torch.nn.functional import layer_norm, linear

from lstm_compile.recurrence.any_cell import Cell, Params, State, fill_matrix


def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Gates in the order i, f, g, o."""
    gates = 4 * hidden_size
    return {
        "weight_ih": (gates, input_size),
        "weight_hh": (gates, hidden_size),
        "bias": (gates,),
        "gain_ih": (gates,),
        "gain_hh": (gates,),
        "gain_c": (hidden_size,),
        "bias_c": (hidden_size,),
    }


def initial(name: str, tensor: Tensor, generator: torch.Generator | None) -> None:
    """Gains are 1, the forget gate's bias is 1 (Jozefowicz et al. 2015), other biases are 0."""
    if tensor.dim() == 2:
        fill_matrix(name, tensor, generator)
        return
    tensor.fill_(float(name.startswith("gain")))
    if name == "bias":
        tensor.chunk(4)[1].fill_(1.0)


def project(params: Params, x: Tensor) -> Tensor:
    """norm(W_ih x) * a_ih + b."""
    share = linear(x, params["weight_ih"])
    return layer_norm(share, share.shape[-1:], params["gain_ih"], params["bias"])


def step(params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
    """The equations above."""
    h, c = state
    own = layer_norm(linear(h, params["weight_hh"]), share.shape[-1:], params["gain_hh"])
    i, f, g, o = (share + own).chunk(4, -1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(layer_norm(c, c.shape[-1:], params["gain_c"], params["bias_c"]))
    return h, (h, c)


LAYERNORM_LSTM = Cell(
    "layernorm-lstm", lambda size: {"h": size, "c": size}, shapes, project, step, initial
)
