"""First derivatives only: a second order or forward mode raises an error that says what to use.

The kernels' own backward cannot be differentiated. No derivative is ever silently zero.
"""

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

FIRST_ORDER_ONLY = (
    "backend={!r} has first-order reverse-mode derivatives only; "
    "use backend='reference' for second order and forward mode"
)
# the nodes that torch.lstm leaves in the graph for oneDNN and cuDNN
NEAR = 40  # nodes to look at for each kernel: further off, the graph is the caller's
_KERNELS = ("MkldnnRnnLayerBackward", "CudnnRnnBackward")


def differentiates(tensors: Iterable[Tensor]) -> bool:
    """Whether autograd will ask for derivatives of what is computed from these."""
    if torch.autograd.forward_ad._current_level >= 0:  # a dual tensor need not require grad
        return True
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def refuse_forward_mode(tensors: Iterable[Tensor], backend: str) -> None:
    """Raise where any of them carries a forward-mode derivative."""
    if torch.autograd.forward_ad._current_level < 0:
        return
    if any(map(is_dual, tensors)):
        refuse(backend)


def is_dual(tensor: Tensor) -> bool:
    """Whether it carries a forward-mode derivative."""
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def mark_kernels(output: Tensor, count: int) -> None:
    """Make the gradients of the `count` kernels behind `output` refuse a second order.

    Hooks on the graph's own nodes cost a tenth of a Function around a call. Where PyTorch ran its
    own operations in place of a kernel, these have a second order, and stay as they are.
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
    """Raise, and name the backend that can do what was asked."""
    raise RuntimeError(FIRST_ORDER_ONLY.format(backend))


def refuse_batched(gradients: Iterable[Tensor]) -> None:
    """Raise where many gradients are asked for in one backward, and name what can do that."""
    # Batched or FuncTorchBatched: PyTorch has two ways to vectorize
    if any("Batched" in str(torch._C._dispatch_keys(gradient)) for gradient in gradients):
        raise RuntimeError(
            "backend='compiled' takes no batched gradients (is_grads_batched=True, "
            "jacobian(vectorize=True)); use backend='vendor' or 'reference'"
        )


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
    """The gradients, through a node that depends on the `anchors` and refuses a second order."""
    if not torch.is_grad_enabled():
        return gradients
    present = [gradient for gradient in gradients if gradient is not None]
    apply: Any = _Once.apply
    guarded = iter(apply(backend, len(present), *present, *anchors))
    return tuple(None if gradient is None else next(guarded) for gradient in gradients)
