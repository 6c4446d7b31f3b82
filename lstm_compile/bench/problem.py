"""A case made of tensors, and the contestants that compute it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lstm_compile
from lstm_compile.bench.cases import Case, Mode, lengths_of
from lstm_compile.config import Backend
from lstm_compile.devices import autocast
from lstm_compile.recurrence.autotune import explain_backend
from lstm_compile.recurrence.calibrate import calibrate
from lstm_compile.recurrence.cell_file import read_cell
from lstm_compile.recurrence.inductor import can_compile
from lstm_compile.recurrence.lengths import extremes, valid_mask
from lstm_compile.recurrence.module import GRU, LSTM, Recurrent

Forward = Callable[[], Any]  # gives the output (batch, time, features)
Step = Callable[[], object]  # what is timed

REFERENCE_STEPS = 256  # beyond, the plain loop takes longer than all others together
RIVALS = ("padded", "packed")


class Problem(NamedTuple):
    """One stack, its rival of torch.nn, and one batch; all on one device.

    An LSTM has nn.LSTM's own weights, and a GRU those of nn.GRU.
    """

    case: Case
    module: nn.LSTM | nn.GRU  # the rival
    own: LSTM | GRU | Recurrent
    x: Tensor  # (batch, time, input), zeros in the padding
    lengths: Tensor | None  # (batch,) int64, None where all are full
    host_lengths: Tensor  # (batch,) int64 on the CPU, for packing
    mask: Tensor | None  # (batch, time, 1) bool

    def params(self, name: str = "") -> dict[str, Tensor]:
        """The parameters of a contestant; those of the stack that is measured if it has no name."""
        return dict((self.module if name in RIVALS else self.own).named_parameters())

    def autocast(self) -> AbstractContextManager[object]:
        """What a forward runs in."""
        return autocast(self.x.device, self.case.precision)


Contestant = Callable[[Problem], Forward]


def build(case: Case, device: torch.device, mode: Mode, seed: int) -> Problem:
    """Random weights and a random batch of this case.

    Raises:
        InputError: the case's file of lengths does not fit.
    """
    host = torch.tensor(lengths_of(case, seed), device="cpu")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(case.batch, case.time, case.input, generator=generator, device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module, own = _modules(case)
    module, own = (each.to(device).train(mode == "training") for each in (module, own))
    mask = valid_mask(host, case.time)[..., None]
    x = torch.where(mask, x, 0.0).to(device)
    if case.lengths == "full":
        return Problem(case, module, own, x, None, host, None)
    return Problem(case, module, own, x, host.to(device), host, mask.to(device))


def _modules(case: Case) -> tuple[Any, Any]:
    """The rival and the stack that is measured, of one seed."""
    sizes: Any = case.input, case.hidden, case.layers
    options: dict[str, Any] = {"batch_first": True, "bidirectional": case.bidirectional}
    rival = nn.GRU if case.cell == "gru" else nn.LSTM
    module = rival(*sizes, **options)
    if case.cell not in ("lstm", "gru"):
        return module, Recurrent(read_cell(case.cell), *sizes, **options)
    own = (GRU if case.cell == "gru" else LSTM)(*sizes, **options)
    own.load_state_dict(module.state_dict())
    return module, own


def _backend(problem: Problem, name: Backend) -> Forward:
    if problem.case.cell != "lstm":
        own, x, lengths = problem.own, problem.x, problem.lengths
        return lambda: own(x, lengths=lengths, backend=name)[0]
    params = problem.params()  # gathering them takes longer than a short step may
    return lambda: lstm_compile.lstm(params, problem.x, problem.lengths, backend=name)[0]


def _padded(problem: Problem) -> Forward:
    return lambda: problem.module(problem.x)[0]


def _packed(problem: Problem) -> Forward:
    x, lengths = problem.x, problem.host_lengths

    def forward() -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = problem.module(packed)
        return pad_packed_sequence(output, True, total_length=x.shape[1])[0]

    return forward


# `compiled` before `auto`: the time that both need to compile is counted for `compiled`
_OWN: tuple[Backend, ...] = ("vendor", "compiled", "auto", "reference")
CONTESTANTS: Mapping[str, Contestant] = {
    "padded": _padded,
    "packed": _packed,
    **{name: partial(_backend, name=name) for name in _OWN},
}


def step_of(contestant: Contestant, name: str, problem: Problem, mode: Mode) -> Step:
    """What is timed: a forward without gradients, or forward, loss and all parameters' gradients.

    The loss is the sum of squares over valid steps. nn.LSTM over padded rows needs a mask for it;
    the others give zeros in the padding.
    """
    forward, params = contestant(problem), list(problem.params(name).values())
    mask = problem.mask if name == "padded" else None

    def infer() -> object:
        with torch.no_grad(), problem.autocast():
            return forward()

    def train() -> tuple[Tensor, ...]:
        with problem.autocast():
            output = forward()
        output = output if mask is None else torch.where(mask, output, 0.0)
        return torch.autograd.grad(output.float().square().sum(), params)

    return infer if mode == "inference" else train


def calibrated(problem: Problem, mode: Mode) -> str:
    """Calibrate `auto` for this case; returns what it then takes and why, in one line.

    Only an LSTM has a choice to make.
    """
    if problem.case.cell != "lstm":
        return ""
    case, device, training = problem.case, problem.x.device, mode == "training"
    least, longest = extremes(problem.host_lengths)
    if can_compile(device.type):
        calibrate(
            case.hidden, case.input, case.batch, longest,
            ragged=least != longest, training=training, device=device,
            dtype=torch.bfloat16 if case.precision == "bf16" else torch.float32,
        )  # fmt: skip
    with problem.autocast():
        choice = explain_backend(
            problem.params(), case.batch, case.time, problem.host_lengths, training=training
        )
    return str(choice)
