"""The one door to the recurrence: one layer and direction over time, as one operator.

torch.compile, torch.export, torch.func and the ONNX translation all meet
`torch.ops.lstm_compile.recurrence`, whatever backend then does the work, so that nothing outside
ever unrolls time. Plain eager calls go round it with the same backends, since there the forward may
keep what the backward needs; the operator saves its inputs only and computes the rest again.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

import lstm_compile.recurrence.registration  # noqa: F401 (registers the operator)
from lstm_compile.errors import InputError
from lstm_compile.recurrence.derivatives import run_traced, run_transformed
from lstm_compile.recurrence.dispatch import Outputs, run_eager
from lstm_compile.recurrence.resets import check_resets

Backend = Literal["auto", "reference", "compiled", "vendor"]
BACKENDS = get_args(Backend)

DEFAULT_CHUNK = 8


def recurrence(
    x: Tensor,
    lengths: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    *,
    resets: Tensor | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
) -> Outputs:
    """One layer and direction of an LSTM over time.

    Args:
        x: (batch, time, input_size).
        lengths: (batch,) int64, or None where every step is valid.
        weight_ih: (4 * hidden_size, input_size), gates in the order i, f, g, o.
        weight_hh: (4 * hidden_size, hidden_size).
        bias: (4 * hidden_size,), the sum of nn.LSTM's two.
        h0: (batch, hidden_size); with `resets` (2 * batch, hidden_size), as
            `lstm_compile.recurrence.resets.both_states` gives them.
        c0: likewise; not the same tensor as h0.
        resets: (batch, time) bool, before which steps the state is set back, or None; not with
            `reverse`.
        reverse: read each row from its last valid step to its first.
        backend: who computes; `auto` is `vendor`.
        chunk: steps unrolled in one graph by `compiled`.

    Returns:
        output (batch, time, hidden_size), zero at and after each row's length, and the state h, c
        (batch, hidden_size) after each row's last valid step.

    Raises:
        InputError: unknown backend, chunk < 1, or resets that do not fit.
        RuntimeError: a second-order or forward-mode derivative is asked of a backend other than
            `reference`.
    """
    check_options(backend, chunk)
    backend = "vendor" if backend == "auto" else backend
    check_resets(resets, x.shape[0], x.shape[1], bidirectional=reverse)
    inputs = (x, lengths, resets, weight_ih, weight_hh, bias, h0, c0, reverse, backend, chunk)
    if torch.compiler.is_compiling():
        return run_traced(*inputs)
    if backend != "reference" and torch._C._are_functorch_transforms_active():
        return run_transformed(*inputs)
    return run_eager(*inputs)


def check_options(backend: str, chunk: int) -> None:
    """Refuse what is no backend or no chunk.

    Raises:
        InputError: unknown backend, or chunk < 1.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
