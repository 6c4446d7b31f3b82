"""The table of cases that drives every parity test, its tolerances, and the one way to run a case.

Everything is drawn from one seed in the case's own dtype; the oracle gets the same numbers in
float64. A loss with random weights on output and both states makes every gradient take part.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from types import FunctionType
from typing import Any, NamedTuple

import pytest
import torch
from marks import slow
from torch import Tensor

from lstm_compile import lstm

BACKENDS = ("reference", "vendor", "compiled")
SINGLE, DOUBLE, HALF = torch.float32, torch.float64, torch.bfloat16


class Tolerance(NamedTuple):
    """Outputs and states in absolute terms, gradients relative to the largest of their tensor."""

    value: float
    gradient: float


TOLERANCES = {
    SINGLE: Tolerance(1e-5, 1e-4),
    DOUBLE: Tolerance(1e-10, 1e-10),
    # Measured against float64 on the same rounded inputs: values 1.3e-3 to 2.7e-3, which is one
    # rounding of a number below 1 to 8 bits; gradients 4e-3 to 1.9e-2, as the reference rounds its
    # weight gradients once a step. The bounds leave a factor of 1.5 to 3.
    HALF: Tolerance(8e-3, 3e-2),
}
LONG = Tolerance(1e-4, 1e-4)  # float32 beyond 512 steps


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: shapes, what is ragged, and what stands where nothing should be read."""

    hidden_size: int
    input_size: int = 3
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch: int = 3
    time: int = 5
    lengths: tuple[int, ...] | None = None
    state: bool = True  # a non-zero initial state, else None
    padding: float | None = None  # what stands in the padding; None: finite random numbers
    dtypes: tuple[torch.dtype, ...] = (SINGLE,)
    chunk: int = 2

    @property
    def name(self) -> str:
        ragged = "None" if self.lengths is None else "-".join(map(str, self.lengths))
        return "-".join(
            [
                f"H{self.hidden_size}xD{self.input_size}",
                f"l{self.num_layers}{'bi' if self.bidirectional else ''}",
                f"B{self.batch}xT{self.time}",
                f"lengths:{ragged}",
                *([] if self.bias else ["no-bias"]),
                *([] if self.state else ["no-state"]),
                *([] if self.padding is None else [str(self.padding)]),
                *([] if self.chunk == 2 else [f"K{self.chunk}"]),
            ]
        )

    def tolerance(self, dtype: torch.dtype) -> Tolerance:
        return LONG if dtype == SINGLE and self.time > 512 else TOLERANCES[dtype]


NAN, INF = float("nan"), float("inf")
BOTH, ALL = (SINGLE, DOUBLE), (SINGLE, DOUBLE, HALF)
CASES = (
    Case(hidden_size=1, input_size=1, batch=1, time=1),
    Case(hidden_size=1, num_layers=2, bidirectional=True, lengths=(0, 1, 5), padding=NAN),
    Case(hidden_size=1, batch=2, time=4, state=False, bias=False),
    Case(hidden_size=5, dtypes=ALL),
    Case(hidden_size=5, lengths=(5, 5, 5), dtypes=ALL),
    Case(hidden_size=5, lengths=(0, 1, 5), padding=NAN, dtypes=ALL),
    Case(hidden_size=5, lengths=(3, 0, 4), padding=INF, num_layers=2, dtypes=BOTH),
    Case(hidden_size=5, lengths=(0, 0, 0), padding=NAN, bidirectional=True, dtypes=BOTH),
    Case(hidden_size=5, lengths=(5, 2, 1), num_layers=2, bidirectional=True, dtypes=ALL),
    Case(hidden_size=5, lengths=(2, 5, 4), num_layers=3, bias=False, state=False, dtypes=BOTH),
    Case(hidden_size=5, time=6, bidirectional=True, num_layers=2, dtypes=ALL),
    Case(hidden_size=5, time=0, num_layers=2, bidirectional=True, dtypes=BOTH),
    Case(hidden_size=5, time=0, lengths=(0, 0, 0), bidirectional=True, dtypes=BOTH),
    Case(hidden_size=5, batch=0, bidirectional=True, dtypes=BOTH),
    Case(hidden_size=5, batch=0, lengths=(), bidirectional=True, num_layers=2, dtypes=BOTH),
    Case(hidden_size=5, batch=0, time=0, lengths=(), bidirectional=True, dtypes=BOTH),
    Case(hidden_size=5, batch=1, time=1, lengths=(0,), padding=NAN, dtypes=BOTH),
    Case(hidden_size=5, batch=1, time=9, lengths=(4,), padding=-INF, bidirectional=True),
    Case(hidden_size=5, input_size=11, batch=2, time=600, lengths=(600, 333), bidirectional=True),
    Case(hidden_size=7, batch=8, time=3, num_layers=2, lengths=(3, 0, 1, 2, 3, 1, 0, 2)),
    Case(hidden_size=7, input_size=7, batch=7, time=7),
    Case(hidden_size=17, time=2, batch=1, lengths=(2,), dtypes=BOTH),
    Case(hidden_size=17, lengths=(1, 5, 0), bidirectional=True, padding=NAN, dtypes=BOTH),
    Case(hidden_size=33, input_size=2, time=8, lengths=(7, 8, 0), padding=INF),
    Case(hidden_size=66, input_size=5, lengths=(4, 5, 1), num_layers=2, state=False),
    Case(hidden_size=66, input_size=66, bidirectional=True, bias=False, time=4),
    # the default chunk: T below, at, and beyond it
    Case(hidden_size=33, time=5, lengths=(0, 1, 5), padding=NAN, chunk=16),
    Case(hidden_size=33, time=16, chunk=16),
    Case(hidden_size=33, time=41, lengths=(40, 17, 16), bidirectional=True, chunk=16),
)


# Backends where torch.compile traces them: seconds each, and the reference's loop the longest.
UNDER_COMPILE = (slow("reference"), "vendor", slow("compiled"))


def _is_slow(case: Case, dtype: torch.dtype, backend: str) -> bool:
    """A chunk is compiled for each hidden size, dtype and K: seconds, and more the longer it is."""
    other_chunk = case.hidden_size != 5 or dtype == HALF or case.chunk > 2
    return case.time > 512 or (backend == "compiled" and other_chunk)


PARITY = [
    pytest.param(
        case,
        dtype,
        backend,
        id=f"{case.name}-{str(dtype).removeprefix('torch.')}-{backend}",
        marks=[pytest.mark.slow] if _is_slow(case, dtype, backend) else [],
    )
    for case in CASES
    for dtype in case.dtypes
    for backend in BACKENDS
]


class Data(NamedTuple):
    """Leaves and loss weights of one case."""

    x: Tensor
    lengths: Tensor | None
    params: dict[str, Tensor]
    state: tuple[Tensor, Tensor]
    loss_weights: tuple[Tensor, Tensor, Tensor]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "Data":
        """A copy whose floating tensors are new, independent leaves."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype, copy=True).requires_grad_()

        return Data(
            leaf(self.x),
            None if self.lengths is None else self.lengths.to(device),
            {name: leaf(value) for name, value in self.params.items()},
            (leaf(self.state[0]), leaf(self.state[1])),
            tuple(weight.to(device, dtype) for weight in self.loss_weights),  # type: ignore[arg-type]
        )


class Result(NamedTuple):
    """All that is compared: output, final state, and the gradient of every leaf by its name."""

    output: Tensor
    h: Tensor
    c: Tensor
    gradients: dict[str, Tensor]


def make_params(
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    dtype: torch.dtype = SINGLE,
) -> dict[str, Tensor]:
    """nn.LSTM's parameters with nn.LSTM's initialisation, as plain tensors."""
    module = torch.nn.LSTM(
        input_size, hidden_size, num_layers, bias=bias, bidirectional=bidirectional, dtype=dtype
    )
    return {name: value.detach() for name, value in module.named_parameters()}


def make_data(case: Case, dtype: torch.dtype) -> Data:
    torch.manual_seed(20240607)
    x = torch.randn(case.batch, case.time, case.input_size, dtype=DOUBLE)
    params = make_params(
        case.input_size, case.hidden_size, case.num_layers, case.bidirectional, case.bias, DOUBLE
    )
    directions = 2 if case.bidirectional else 1
    shape = (case.num_layers * directions, case.batch, case.hidden_size)
    state = torch.randn(shape, dtype=DOUBLE).tanh(), torch.randn(shape, dtype=DOUBLE)
    output = torch.randn(case.batch, case.time, directions * case.hidden_size, dtype=DOUBLE)
    weights = output, torch.randn(shape, dtype=DOUBLE), torch.randn(shape, dtype=DOUBLE)
    lengths = None if case.lengths is None else torch.tensor(case.lengths, dtype=torch.int64)
    if lengths is not None and case.padding is not None:
        x[padding_of(lengths, case.time)] = case.padding
    return Data(x, lengths, params, state, weights).to(dtype)


def padding_of(lengths: Tensor, time: int) -> Tensor:
    return torch.arange(time, device=lengths.device) >= lengths[:, None]


def run_case(case: Case, backend: str, data: Data) -> Result:
    """Forward and backward of one case on fresh leaves."""
    state = data.state if case.state else None
    output, (h, c) = lstm(
        data.params, data.x, data.lengths, state, backend=backend, chunk=case.chunk
    )
    return differentiate(case, data, output, h, c)


def differentiate(case: Case, data: Data, output: Tensor, h: Tensor, c: Tensor) -> Result:
    leaves = {"x": data.x, **data.params}
    if case.state:
        leaves |= {"h0": data.state[0], "c0": data.state[1]}
    loss = sum(
        (value * weight).sum()
        for value, weight in zip((output, h, c), data.loss_weights, strict=True)
    )
    gradients = torch.autograd.grad(
        loss, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return Result(
        output.detach(), h.detach(), c.detach(), dict(zip(leaves, gradients, strict=True))
    )


@cache
def oracle(case: Case, dtype: torch.dtype) -> Result:
    """The float64 reference on the numbers that `dtype` has."""
    return run_case(case, "reference", make_data(case, dtype).to(DOUBLE))


def assert_close(found: Result, expected: Result, tolerance: Tolerance) -> None:
    """Outputs, states and gradients within tolerance; NaN is never equal to anything."""
    for name in ("output", "h", "c"):
        assert_values(name, getattr(found, name), getattr(expected, name), tolerance.value)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in expected.gradients.items():
        largest = gradient.abs().max().item() if gradient.numel() else 0.0
        assert_values(name, found.gradients[name], gradient, tolerance.gradient * largest)


def assert_values(name: str, found: Tensor, expected: Tensor, bound: float) -> None:
    assert found.shape == expected.shape, name
    assert found.isfinite().all(), name
    error = (found.double().cpu() - expected.double().cpu()).abs()
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= bound, f"{name}: {worst:.3g} off, {bound:.3g} allowed"


def compiled_alone(function: Callable[..., Any], backend: Any = "inductor") -> Callable[..., Any]:
    """`function` under torch.compile(fullgraph=True), with a code object of its own.

    Dynamo counts recompiles per code object, and one function of a parametrised test is one.
    """

    def alone(*args: Any) -> Any:
        return function(*args)

    code = alone.__code__.replace(co_name=f"alone_{next(_numbers)}")
    copy = FunctionType(code, alone.__globals__, code.co_name, None, alone.__closure__)
    return torch.compile(copy, fullgraph=True, backend=backend)


_numbers = count()


def of(**changes: object) -> Case:
    """A case for a single question: hidden size 5 and chunk 2, which the table compiles anyway."""
    return replace(Case(hidden_size=5), **changes)  # type: ignore[arg-type]
