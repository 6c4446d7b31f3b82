"""The GRU of torch.nn.GRU.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
    h' = (1 - z) * n + z * h

Source: Cho et al. 2014 with the reset after the product, as in
https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html
"""

from torch import Tensor, sigmoid, tanh
from torch.nn.functional import linear

from lstm_compile.recurrence.any_cell import Cell, Params, State
from lstm_compile.recurrence.gru_kernel import run_gru


def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """nn.GRU's parameters, gates in the order r, z, n."""
    gates = 3 * hidden_size
    return {
        "weight_ih": (gates, input_size),
        "weight_hh": (gates, hidden_size),
        "bias_ih": (gates,),
        "bias_hh": (gates,),
    }


def project(params: Params, x: Tensor) -> Tensor:
    """W_i x + b_i of the three gates."""
    return linear(x, params["weight_ih"], params["bias_ih"])


def step(params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
    """The equations above."""
    (h,) = state
    r, z, n = share.chunk(3, -1)
    of_r, of_z, of_n = linear(h, params["weight_hh"], params["bias_hh"]).chunk(3, -1)
    r, z = sigmoid(r + of_r), sigmoid(z + of_z)
    n = tanh(n + r * of_n)
    h = n + z * (h - n)
    return h, (h,)


GRU = Cell(
    "gru",
    lambda size: {"h": size},
    shapes,
    project,
    step,
    kernels={"vendor": run_gru, "auto": run_gru},
)
