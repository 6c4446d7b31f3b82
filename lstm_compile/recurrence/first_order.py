"""Derivatives of first order only, refused by name beyond.

The kernels' own backward cannot be differentiated. A second order raises, as does forward mode,
and says which backend can; nothing is ever silently zero.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

FIRST_ORDER_ONLY = (
    "backend={!r} has first-order reverse-mode derivatives only; "
    "use backend='reference' for second order and forward mode"
)
# the nodes that torch.lstm leaves in the graph for oneDNN and cuDNN
NEAR = 40  # nodes a kernel are looked at: further off, the graph is the caller's
_KERNELS = ("MkldnnRnnLayerBackward", "CudnnRnnBackward")


def differentiates(tensors: Sequence[Tensor]) -> bool:
    """Whether autograd will ask for derivatives of what is computed from these."""
    if torch.autograd.forward_ad._current_level >= 0:  # a dual tensor need not require grad
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def refuse_forward_mode(tensors: Sequence[Tensor], backend: str) -> None:
    """Raise where any of them is a dual number."""
    if torch.autograd.forward_ad._current_level < 0:
        return
    if any(torch.autograd.forward_ad.unpack_dual(each).tangent is not None for each in tensors):
        refuse(backend)


def mark_kernels(output: Tensor, count: int) -> None:
    """Let the gradients of the `count` kernels that `output` comes from refuse a second order.

    Hooks on the graph's own nodes cost a tenth of a Function around a call. Where no kernel ran
    but PyTorch's own operations, they have their own second order.
    """
    waiting, looked_at = [output.grad_fn], 0
    while waiting and count and looked_at < NEAR * count:
        node, looked_at = waiting.pop(0), looked_at + 1
        if node is None:
            continue
        if node.name().startswith(_KERNELS):
            node.register_hook(_refuse_second_order)
            count -= 1
        waiting += [below for below, _ in node.next_functions]


def _refuse_second_order(
    gradients: tuple[Tensor | None, ...], _: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...] | None:
    return once("vendor", gradients, ()) if torch.is_grad_enabled() else None


def refuse(backend: str) -> NoReturn:
    """Name the backend that can do what was asked."""
    raise RuntimeError(FIRST_ORDER_ONLY.format(backend))


class _Once(torch.autograd.Function):
    """Identity on its first `count` tensors; differentiating it is refused."""

    @staticmethod
    def forward(ctx: Any, backend: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.backend = backend
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        refuse(ctx.backend)


def once(
    backend: str, gradients: tuple[Tensor | None, ...], anchors: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients, tied to the `anchors` they depend on by a node that refuses a second order."""
    if not torch.is_grad_enabled():
        return gradients
    present = [gradient for gradient in gradients if gradient is not None]
    apply: Any = _Once.apply
    guarded = iter(apply(backend, len(present), *present, *anchors))
    return tuple(None if gradient is None else next(guarded) for gradient in gradients)
