"""`torch.ops.lstm_compile.any_cell`: one layer and direction of any cell, as one operator.

torch.compile, torch.export and the ONNX translation meet this operator, as they meet the one of
`lstm_compile.recurrence.operator` for an LSTM. It saves its inputs only, and computes the rest
again in its backward, which has no backward of its own. Importing this module registers it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_compile.recurrence.any_cell import EXAMPLE_SIZE, find_cell, hidden_size_of
from lstm_compile.recurrence.operator import TRACED_FIRST_ORDER_ONLY


class CellInputs(NamedTuple):
    """The inputs of `torch.ops.lstm_compile.any_cell`: one layer and direction."""

    cell: str  # its name, see `any_cell.find_cell`
    x: Tensor  # (batch, time, input_size)
    lengths: Tensor | None  # (batch,) int64; None: every step is valid
    resets: Tensor | None  # (batch, time) bool, where the state is set back before the step
    weights: list[Tensor]  # in the order of `Cell.shapes`
    state: list[Tensor]  # each part (batch, its size); with resets (2 * batch, its size)
    reverse: bool  # read each row from its last valid step to its first; not with resets
    backend: str
    chunk: int  # steps unrolled in one graph by `compiled`


_SIGNATURE = (
    "str cell, Tensor x, Tensor? lengths, Tensor? resets, Tensor[] weights, Tensor[] state, "
    "bool reverse, str backend, int chunk"
)
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe)
_library = torch.library.Library("lstm_compile", "FRAGMENT")
_library.define(f"any_cell({_SIGNATURE}) -> Tensor[]", tags=_TAGS)
_library.define(f"any_cell_backward(Tensor[] gradients, {_SIGNATURE}) -> Tensor[]", tags=_TAGS)


@torch.library.impl(_library, "any_cell", "CompositeExplicitAutograd")
def _operator(*inputs: Any) -> list[Tensor]:
    with torch.no_grad():
        return [part.clone(memory_format=torch.contiguous_format) for part in _run(inputs)]


@torch.library.impl(_library, "any_cell_backward", "CompositeExplicitAutograd")
def _operator_backward(gradients: list[Tensor], *inputs: Any) -> list[Tensor]:
    given = CellInputs(*inputs)
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in _differentiable(given)]
        count = len(given.weights)
        x, weights, state = leaves[0], leaves[1 : 1 + count], leaves[1 + count :]
        outputs = _run(given._replace(x=x, weights=weights, state=state))
        found = torch.autograd.grad(
            outputs, leaves, gradients, allow_unused=True, materialize_grads=True
        )
    return [part.contiguous() for part in found]


def _run(inputs: Any) -> list[Tensor]:
    from lstm_compile.recurrence.recurrent import run_one

    return run_one(CellInputs(*inputs))


def _differentiable(given: CellInputs) -> list[Tensor]:
    return [given.x, *given.weights, *given.state]


def _shapes(*inputs: Any) -> list[Tensor]:
    given = CellInputs(*inputs)
    cell, (batch, time, input_size) = find_cell(given.cell), given.x.shape
    weights = dict(zip(cell.shapes(1, EXAMPLE_SIZE), given.weights, strict=True))
    width = hidden_size_of(cell, input_size, weights)
    parts = [part.new_empty(batch, part.shape[1]) for part in given.state]
    return [given.x.new_empty(batch, time, width), *parts]


def _backward_shapes(_: list[Tensor], *inputs: Any) -> list[Tensor]:
    return [part.new_empty(part.shape) for part in _differentiable(CellInputs(*inputs))]


torch.library.register_fake("lstm_compile::any_cell", _shapes, lib=_library)
torch.library.register_fake("lstm_compile::any_cell_backward", _backward_shapes, lib=_library)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:  # noqa: ARG001 (the name counts)
    given = CellInputs(*inputs)
    optional = [part for part in (given.lengths, given.resets) if part is not None]
    ctx.save_for_backward(*_differentiable(given), *optional)
    ctx.given = given._replace(x=None, weights=len(given.weights), state=len(given.state))  # type: ignore[arg-type]
    ctx.has = given.lengths is not None, given.resets is not None


def _backward(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    given, saved = ctx.given, list(ctx.saved_tensors)
    ends = 1 + given.weights, 1 + given.weights + given.state
    x, weights, state = saved[0], saved[1 : ends[0]], saved[ends[0] : ends[1]]
    rest = iter(saved[ends[1] :])
    lengths, resets = (next(rest) if has else None for has in ctx.has)
    found = torch.ops.lstm_compile.any_cell_backward(
        list(gradients), given.cell, x, lengths, resets, weights, state, *given[6:]
    )
    of_x, of_weights, of_state = found[0], found[1 : ends[0]], found[ends[0] :]
    return None, of_x, None, None, list(of_weights), list(of_state), None, None, None


def _refuse(*_: Any) -> Any:
    raise RuntimeError(TRACED_FIRST_ORDER_ONLY)


torch.library.register_autograd(
    "lstm_compile::any_cell", _backward, setup_context=_setup_context, lib=_library
)
torch.library.register_autograd("lstm_compile::any_cell_backward", _refuse, lib=_library)
