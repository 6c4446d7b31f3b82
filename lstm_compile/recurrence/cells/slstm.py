"""An LSTM with an exponential input gate, a normaliser n and a stabiliser m.

    z, i, f, o = split(W x + R h + b)
    m' = max(log sigmoid(f) + m, i), but i where n is 0, as before the first step
    i' = exp(i - m'), f' = exp(log sigmoid(f) + m - m')
    c' = f' * c + i' * tanh(z)
    n' = f' * n + i'
    h' = sigmoid(o) * c' / n'

n' is never 0 after a step: one of i' and f' is 1.

Source: Beck et al. 2024 (xLSTM), equations 8 to 17, with the sigmoid forget gate and one head.
"""

import torch
from torch import Tensor, exp, maximum, sigmoid, tanh, where
from torch.nn.functional import linear, logsigmoid

from lstm_compile.recurrence.any_cell import Cell, Params, State, fill_matrix


def parts(hidden_size: int) -> dict[str, int]:
    """Hidden and cell state, normaliser and stabiliser."""
    return dict.fromkeys("hcnm", hidden_size)


def shapes(input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Gates in the order z, i, f, o."""
    gates = 4 * hidden_size
    return {
        "weight_ih": (gates, input_size),
        "weight_hh": (gates, hidden_size),
        "bias": (gates,),
    }


def initial(name: str, tensor: Tensor, generator: torch.Generator | None) -> None:
    """The forget gate's bias is 1, other biases are 0."""
    if tensor.dim() == 2:
        fill_matrix(name, tensor, generator)
        return
    tensor.zero_().chunk(4)[2].fill_(1.0)


def project(params: Params, x: Tensor) -> Tensor:
    """W x + b of the four gates."""
    return linear(x, params["weight_ih"], params["bias"])


def step(params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
    """The equations above."""
    h, c, n, m = state
    z, i, f, o = (share + linear(h, params["weight_hh"])).chunk(4, -1)
    kept = logsigmoid(f) + m
    m = where(n == 0, i, maximum(kept, i))
    entering, staying = exp(i - m), exp(kept - m)
    c, n = staying * c + entering * tanh(z), staying * n + entering
    h = sigmoid(o) * c / n
    return h, (h, c, n, m)


# c, n and m are numbers only together: zoneout of one of them would change what the others say
SLSTM = Cell("slstm", parts, shapes, project, step, initial, zoned=("h",))
