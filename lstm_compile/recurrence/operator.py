"""`torch.ops.lstm_compile.recurrence`: one layer and direction over time, as one operator.

torch.compile, torch.export, torch.func and the ONNX translation all meet this operator, whatever
backend then does the work, so nothing outside ever unrolls time. Plain eager calls go round it with
the same backends, since there the forward may keep what the backward needs; the operator saves its
inputs only and computes the rest again. Importing this module registers it, with its backward, its
shapes and its vmap.
"""

from typing import Any, NoReturn, get_args

import torch
from torch import Tensor

from lstm_compile.config import Backend
from lstm_compile.errors import InputError
from lstm_compile.recurrence.cell import Outputs
from lstm_compile.recurrence.derivatives import (
    Traced,
    TracedBackward,
    Transformed,
    loop,
    run_traced,
)
from lstm_compile.recurrence.dispatch import OperatorInputs, run_eager
from lstm_compile.recurrence.first_order import is_dual
from lstm_compile.recurrence.lengths import is_abstract
from lstm_compile.recurrence.resets import check_resets

BACKENDS = get_args(Backend)

DEFAULT_CHUNK = 8

TRACED_FIRST_ORDER_ONLY = (
    "a recurrence traced by torch.compile or torch.export has first-order reverse-mode derivatives "
    "only; use backend='reference' in eager code, or with torch.func inside the compiled function"
)


def recurrence(inputs: OperatorInputs) -> Outputs:
    """One layer and direction of an LSTM over time; backend `auto` is `vendor`.

    Returns:
        output (batch, time, hidden_size), zero at and after each row's length, and the state h, c
        (batch, hidden_size) after each row's last valid step.

    Raises:
        InputError: unknown backend, chunk < 1, or resets that do not fit.
        RuntimeError: a second-order or forward-mode derivative is asked of a backend other than
            `reference`.
    """
    backend, (batch, time) = inputs.backend, inputs.x.shape[:2]
    check_options(backend, inputs.chunk)
    check_resets(inputs.resets, batch, time, bidirectional=inputs.reverse)
    if backend == "auto":
        inputs = inputs._replace(backend="vendor")
    if torch.compiler.is_compiling():
        return run_traced(*inputs)
    if is_abstract(inputs.x):
        return Traced.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    if backend != "reference" and torch._C._are_functorch_transforms_active():
        return Transformed.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    return run_eager(*inputs)


def check_options(backend: str, chunk: int) -> None:
    """Refuse an unknown backend or a chunk without steps.

    Raises:
        InputError: unknown backend, or chunk < 1.
    """
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")


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
def _operator(*inputs: Any) -> Outputs:
    with torch.no_grad():
        y, h, c = run_eager(*inputs)
    return _time_major(y), h.clone(), c.clone()  # an operator's output is never its input


@torch.library.impl(_library, "recurrence_backward", "CompositeExplicitAutograd")
def _operator_backward(*inputs: Any) -> tuple[Tensor, ...]:
    gradients, options = inputs[:3], inputs[-3:]
    x, lengths, resets, *weights_and_state = inputs[3:-3]
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (x, *weights_and_state)]
        outputs = run_eager(leaves[0], lengths, resets, *leaves[1:], *options)
        results = torch.autograd.grad(
            outputs, leaves, gradients, allow_unused=True, materialize_grads=True
        )
    return tuple(result.contiguous() for result in results)


@torch.library.impl(_library, "recurrence", "Autograd")
def _operator_autograd(*inputs: Any) -> Outputs:
    """The operator outside `Traced`: in an exported program, or called by its name."""
    if not _needs_graph(inputs):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.lstm_compile.recurrence(*inputs)  # type: ignore[no-any-return]
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError("under torch.func call lstm_compile.lstm, not the operator itself")
    return Traced.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]


@torch.library.impl(_library, "recurrence_backward", "Autograd")
def _operator_backward_autograd(*inputs: Any) -> tuple[Tensor, ...]:
    """A first-order gradient that refuses to be differentiated."""
    # a transform asks for a graph of its gradient even if nothing uses it: `run_traced` refuses
    if _needs_graph(inputs) and not torch._C._are_functorch_transforms_active():
        return TracedBackward.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lstm_compile.recurrence_backward(*inputs)  # type: ignore[no-any-return]


def _needs_graph(inputs: tuple[Any, ...]) -> bool:
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if torch.autograd.forward_ad._current_level >= 0 and any(map(is_dual, tensors)):
        raise RuntimeError(TRACED_FIRST_ORDER_ONLY)
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _operator_vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
    return loop(torch.ops.lstm_compile.recurrence, info.batch_size, in_dims, inputs)


torch.library.register_vmap("lstm_compile::recurrence", _operator_vmap, lib=_library)


def _operator_shapes(*inputs: Any) -> Outputs:
    x, _, resets, _, _, _, h0, *_ = inputs
    batch, time = x.shape[:2]
    h = torch.empty_like(h0) if resets is None else h0.new_empty(batch, h0.shape[1])
    output = x.new_empty(time, batch, h0.shape[1]).transpose(0, 1)
    return output, h, torch.empty_like(h)


def _operator_backward_shapes(*inputs: Any) -> tuple[Tensor, ...]:
    x, _, _, *weights_and_state = inputs[3:-3]
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, *weights_and_state))


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
