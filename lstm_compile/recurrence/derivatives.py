"""The recurrence under torch.compile, torch.export and torch.func: the operator and its gradient.

The operator saves its inputs only, and computes the rest again in its backward. Where there is no
second derivative, asking for it raises an error; no derivative is ever silently zero.
"""

# ruff: noqa: D102 (the methods are those of autograd.Function)

from typing import Any, NoReturn

import torch
from torch import Tensor

from lstm_compile.recurrence.cell import Outputs
from lstm_compile.recurrence.dispatch import run_eager
from lstm_compile.recurrence.first_order import FIRST_ORDER_ONLY, refuse

TENSORS = 8  # how many of the operator's inputs are tensors; the others are options
VMAP_OF_GRADIENT = (
    "torch.compile cannot vmap over a gradient of backend={!r}; "
    "use backend='reference', or vmap outside torch.compile"
)


def run_traced(*inputs: Any) -> Outputs:
    """The operator inside torch.compile or torch.export, under any torch.func transforms."""
    if not torch._C._are_functorch_transforms_active():
        return Traced.apply(*inputs)  # type: ignore[no-any-return, no-untyped-call]
    backend, transforms = inputs[-2], _transforms()
    if backend == "reference":
        return run_eager(*inputs)
    if "Jvp" in transforms or transforms.count("Grad") > 1:
        raise RuntimeError(FIRST_ORDER_ONLY.format(backend))
    if "Grad" in transforms and "Vmap" in transforms:
        raise RuntimeError(VMAP_OF_GRADIENT.format(backend))
    # Dynamo drops the backward unless it sees an input that was made inside the transform
    inner = [value.view_as(value) if isinstance(value, Tensor) else value for value in inputs]
    return _TracedTransformed.apply(*inner)  # type: ignore[no-any-return, no-untyped-call]


def _transforms() -> tuple[str, ...]:
    """The active torch.func transforms, the outermost first."""
    return tuple(level.key().name for level in torch._C._functorch.get_interpreter_stack() or ())


# what torch.compiler.assume_constant_result sets, without its import of Dynamo
_transforms._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _gradients(function: Any, ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    grad_x, *grad_others = function(*gradients, *ctx.saved_tensors, *ctx.options)
    return grad_x, None, None, *grad_others, None, None, None


class Traced(torch.autograd.Function):
    """The operator with its backward, for torch.compile, torch.export and torch.func."""

    # Dynamo counts named parameters to tell that ctx is not among them: *inputs would not do
    @staticmethod
    def forward(
        x: Tensor,
        lengths: Tensor | None,
        resets: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor,
        h0: Tensor,
        c0: Tensor,
        reverse: bool,
        backend: str,
        chunk: int,
    ) -> Outputs:
        outputs: Outputs = torch.ops.lstm_compile.recurrence(
            x, lengths, resets, weight_ih, weight_hh, bias, h0, c0, reverse, backend, chunk
        )
        return outputs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: Outputs) -> None:
        ctx.save_for_backward(*inputs[:TENSORS])
        ctx.options = inputs[TENSORS:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(torch.ops.lstm_compile.recurrence_backward, ctx, gradients)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return loop(Transformed.apply, info.batch_size, in_dims, inputs)


class Transformed(Traced):
    """The operator under torch.func in eager code; Dynamo takes no such Function."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(_TransformedBackward.apply, ctx, gradients)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> NoReturn:
        refuse(ctx.options[1])


class _TransformedBackward(torch.autograd.Function):
    """The backward operator, which has no backward of its own."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return torch.ops.lstm_compile.recurrence_backward(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: tuple[Tensor, ...]) -> None:
        ctx.backend = inputs[-2]

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        refuse(ctx.backend)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return loop(_TransformedBackward.apply, info.batch_size, in_dims, inputs)


class _TracedTransformed(Traced):
    """The operator under torch.func inside torch.compile."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Dynamo runs a backward without grad, and so would cut its result from an outer graph
        with torch.enable_grad():
            return _gradients(torch.ops.lstm_compile.recurrence_backward, ctx, gradients)


class TracedBackward(torch.autograd.Function):
    """The backward operator in traced code, where no backend has a second order."""

    forward = _TransformedBackward.forward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _: tuple[Tensor, ...]) -> None:
        ctx.tensors = [isinstance(value, Tensor) for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # AOTAutograd traces this for every gradient, used or not: the error comes with the use
        operator = torch.ops.lstm_compile.refuse_second_order
        refused = iter(operator(ctx.saved_tensors, gradients))
        return tuple(next(refused) if is_tensor else None for is_tensor in ctx.tensors)


def loop(
    function: Any, size: int, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Vmap as a loop over the batch, as different weights make different models."""
    pairs = list(zip(inputs, in_dims, strict=True))
    results = [
        function(*(value if dim is None else value.select(dim, index) for value, dim in pairs))
        for index in range(size)
    ]
    outputs = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return outputs, (0,) * len(outputs)
