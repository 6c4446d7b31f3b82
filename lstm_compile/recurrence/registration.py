"""`torch.ops.lstm_compile.recurrence`: one layer and direction over time as one operator.

Importing this module registers it, with its backward, its shapes and its vmap.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from lstm_compile.recurrence.derivatives import Traced, TracedBackward, loop
from lstm_compile.recurrence.dispatch import Outputs, run_eager

TRACED_FIRST_ORDER_ONLY = (
    "a recurrence traced by torch.compile or torch.export has first-order reverse-mode derivatives "
    "only; use backend='reference' in eager code, or with torch.func inside the compiled function"
)
_SIGNATURE = (
    "Tensor x, Tensor? lengths, Tensor? resets, Tensor weight_ih, Tensor weight_hh, Tensor bias, "
    "Tensor h0, Tensor c0, bool reverse, str backend, int chunk"
)
# cudagraph_unsafe: backends read lengths on the host and call compiled code of their own
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)
_library = torch.library.Library("lstm_compile", "DEF")
_library.define(f"recurrence({_SIGNATURE}) -> (Tensor, Tensor, Tensor)", tags=_TAGS)
_library.define(
    f"recurrence_backward(Tensor grad_output, Tensor grad_h, Tensor grad_c, {_SIGNATURE}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_library.define("refuse_second_order(Tensor[] tensors, Tensor[] gradients) -> Tensor[]", tags=_TAGS)


@torch.library.impl(_library, "refuse_second_order", "CompositeExplicitAutograd")
def _refuse_second_order(*_: list[Tensor]) -> NoReturn:
    raise RuntimeError(TRACED_FIRST_ORDER_ONLY)


@torch.library.impl(_library, "recurrence", "CompositeExplicitAutograd")
def _operator(x: Tensor, *others: Any) -> Outputs:
    with torch.no_grad():
        y, h, c = run_eager(x, *others)
    return _time_major(y), h.clone(), c.clone()  # an operator's output is never its input


@torch.library.impl(_library, "recurrence_backward", "CompositeExplicitAutograd")
def _operator_backward(*inputs: Any) -> tuple[Tensor, ...]:
    gradients, (x, lengths, resets, *others), options = inputs[:3], inputs[3:-3], inputs[-3:]
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (x, *others)]
        outputs = run_eager(leaves[0], lengths, resets, *leaves[1:], *options)
        results = torch.autograd.grad(
            outputs, leaves, gradients, allow_unused=True, materialize_grads=True
        )
    return tuple(result.contiguous() for result in results)


@torch.library.impl(_library, "recurrence", "Autograd")
def _operator_autograd(*inputs: Any) -> Outputs:
    """The operator met outside `Traced`: in an exported program, or called by its name."""
    if not _needs_graph(inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.lstm_compile.recurrence(*inputs)  # type: ignore[no-any-return]
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("under torch.func call lstm_compile.lstm, not the operator itself")
    return Traced.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]


@torch.library.impl(_library, "recurrence_backward", "Autograd")
def _operator_backward_autograd(*inputs: Any) -> tuple[Tensor, ...]:
    """A first-order gradient that refuses to be differentiated."""
    # a transform asks for a graph of its gradient even if nobody uses it: `run_traced` sees to it
    if _needs_graph(inputs) and not torch._C._are_functorch_transforms_active():
        return TracedBackward.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lstm_compile.recurrence_backward(*inputs)  # type: ignore[no-any-return]


def _needs_graph(inputs: tuple[Any, ...]) -> bool:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if torch.autograd.forward_ad._current_level >= 0 and any(map(_is_dual, tensors)):
        raise RuntimeError(TRACED_FIRST_ORDER_ONLY)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _is_dual(tensor: Tensor) -> bool:
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def _operator_vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
    return loop(torch.ops.lstm_compile.recurrence, info.batch_size, in_dims, inputs)


torch.library.register_vmap("lstm_compile::recurrence", _operator_vmap, lib=_library)


def _operator_shapes(x: Tensor, *others: Any) -> Outputs:
    batch, time = x.shape[:2]
    resets, h0 = others[1], others[5]
    h = torch.empty_like(h0) if resets is None else h0.new_empty(batch, h0.shape[1])
    output = x.new_empty(time, batch, h0.shape[1]).transpose(0, 1)
    return output, h, torch.empty_like(h)


def _operator_backward_shapes(*inputs: Any) -> tuple[Tensor, ...]:
    x, _, _, *others = inputs[3:-3]
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, *others))


torch.library.register_fake("lstm_compile::recurrence", _operator_shapes, lib=_library)
torch.library.register_fake(
    "lstm_compile::recurrence_backward", _operator_backward_shapes, lib=_library
)
torch.library.register_fake(
    "lstm_compile::refuse_second_order",
    lambda tensors, gradients: [torch.empty_like(tensor) for tensor in tensors],
    lib=_library,
)


def _time_major(y: Tensor) -> Tensor:
    """`y` (batch, time, H) in the one memory order that the operator declares."""
    return y.transpose(0, 1).contiguous().transpose(0, 1)
