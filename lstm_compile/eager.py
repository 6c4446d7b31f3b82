"""The recurrence in plain eager code, where the forward may keep what the backward needs.

Backends other than `reference` have first-order reverse-mode derivatives only, and say so.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from lstm_compile import chunked
from lstm_compile.compiling import can_compile
from lstm_compile.lengths import reverse_within_length
from lstm_compile.reference import reference
from lstm_compile.vendor import vendor

Outputs = tuple[Tensor, Tensor, Tensor]

FIRST_ORDER_ONLY = (
    "backend={!r} has first-order reverse-mode derivatives only; "
    "use backend='reference' for second order and forward mode"
)


def run_eager(
    x: Tensor,
    lengths: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    h0: Tensor,
    c0: Tensor,
    reverse: bool,
    backend: str,
    chunk: int,
) -> Outputs:
    """One layer and direction on plain tensors; arguments as in `lstm_compile.recurrence`."""
    with torch.autocast(x.device.type, enabled=False):
        x = reverse_within_length(x, lengths) if reverse else x
        tensors = (x, weight_ih, weight_hh, bias, h0, c0)
        if backend == "reference":
            y, h, c = reference(x, lengths, *tensors[1:])
        elif backend == "compiled" and can_compile(x.device.type):
            y, h, c = _chunked(tensors, lengths, chunk)
        else:
            x, *others = _first_order(tensors, backend)
            y, h, c = vendor(x, lengths, *others)
        return (reverse_within_length(y, lengths) if reverse else y), h, c


def _chunked(tensors: tuple[Tensor, ...], lengths: Tensor | None, chunk: int) -> Outputs:
    if _differentiates(tensors):
        return _Chunked.apply(lengths, chunk, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    x, *others = tensors
    return chunked.infer(x, lengths, *others, chunk=chunk)


def _first_order(tensors: tuple[Tensor, ...], backend: str) -> tuple[Tensor, ...]:
    if _differentiates(tensors):
        return _FirstOrder.apply(backend, *tensors)  # type: ignore[no-any-return, no-untyped-call]
    return tensors


def _differentiates(tensors: tuple[Tensor, ...]) -> bool:
    if torch.autograd.forward_ad._current_level >= 0:  # a dual tensor need not require grad
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def refuse(backend: str) -> NoReturn:
    """Name the backend that can do what was asked."""
    raise RuntimeError(FIRST_ORDER_ONLY.format(backend))


class _FirstOrder(torch.autograd.Function):
    """Identity whose gradients refuse to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, backend: str, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.backend = backend
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_once(ctx.backend, gradients, ())

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        refuse(ctx.backend)


class _Chunked(torch.autograd.Function):
    """The compiled chunks in plain eager autograd: the forward keeps what the backward needs."""

    @staticmethod
    def forward(ctx: Any, lengths: Tensor | None, chunk: int, *tensors: Tensor) -> Outputs:
        x, *others = tensors
        outputs, ctx.pull_back = chunked.record(x, lengths, *others, chunk=chunk)
        ctx.save_for_backward(*tensors)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # reading saved_tensors also refuses weights that were changed in place since the forward
        anchors = (*ctx.saved_tensors, *gradients)
        return None, None, *_once("compiled", ctx.pull_back(*gradients), anchors)

    @staticmethod
    def jvp(*_: Any) -> NoReturn:
        refuse("compiled")


class _Once(torch.autograd.Function):
    """Identity on its first `count` tensors; differentiating it is refused."""

    @staticmethod
    def forward(ctx: Any, backend: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.backend = backend
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        refuse(ctx.backend)


def _once(
    backend: str, gradients: tuple[Tensor | None, ...], anchors: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients, tied to the `anchors` they depend on by a node that refuses a second order."""
    if not torch.is_grad_enabled():
        return gradients
    present = [gradient for gradient in gradients if gradient is not None]
    once: Any = _Once.apply
    guarded = iter(once(backend, len(present), *present, *anchors))
    return tuple(None if gradient is None else next(guarded) for gradient in gradients)
