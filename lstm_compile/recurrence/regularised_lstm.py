"""`lstm` with regularisers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lstm_compile.recurrence.cell import LSTMState, State
from lstm_compile.recurrence.lengths import Lengths
from lstm_compile.recurrence.recurrent import recurrent
from lstm_compile.recurrence.stack import read_layers


def regularised_lstm(
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Lengths | None = None,
    state: State | None = None,
    **options: Any,
) -> tuple[Tensor, LSTMState]:
    """Run `lstm_compile.recurrent` with the parameters of `lstm_compile.lstm`.

    There may be no biases; `options` are other arguments of `recurrent`.

    Raises:
        InputError: as `lstm_compile.recurrent`.
    """
    read_layers(params)
    full = dict(params)
    if "bias_ih_l0" not in params:
        for name, weight in params.items():
            full[name.replace("weight", "bias")] = weight.new_zeros(len(weight))
    y, final = recurrent("lstm", full, x, lengths, state, **options)
    return y, LSTMState(*final)
