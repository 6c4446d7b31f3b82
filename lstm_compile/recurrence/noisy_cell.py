"""Cells made from another cell by what changes its step: zoneout, and dropout of the hidden state.

Both are functions from a cell to a cell, so that backends, gradients, masks and export need to know
nothing of them. In training the masks are the last features of x, and the last columns of the
share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from lstm_compile.recurrence.any_cell import EXAMPLE_SIZE, Cell, Params, State, find_cell, run_step

_ZONED = ", zoneout "
_EXPECTED = "a product of the state with a parameter whose name begins with weight_hh"
_PRODUCTS = {  # the places of both factors
    linear: (0, 1),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__), (0, 1)),
    **dict.fromkeys((torch.mm, torch.Tensor.mm, torch.Tensor.__rmatmul__), (0, 1)),
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__), (0, 1)),
    **dict.fromkeys((torch.addmm, torch.Tensor.addmm, torch.einsum), (1, 2)),
}


class Noise(NamedTuple):
    """What changes a step; see `lstm_compile.recurrence.regularise.Regularisers`."""

    hidden_dropout: float
    zoneout: float


class MaskSizes(NamedTuple):
    """How many features of x are masks."""

    fresh: int  # drawn for each step, 1 where a value of the state stays as it was
    locked: int  # drawn once a sequence, factors of what recurrent products read


@lru_cache
def zoned_cell(cell: Cell, p: float) -> Cell:
    """The cell with zoneout in evaluation: a part becomes p * old + (1 - p) * new.

    Its name is that of the cell and `, zoneout p`, by which `find_cell` finds it.
    """
    held = _held(cell)

    def step(params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
        output, new = run_step(cell, params, share, state)
        mixed = [
            p * a + (1 - p) * b if name in held else b
            for name, a, b in zip(cell.parts(EXAMPLE_SIZE), state, new, strict=True)
        ]
        return _zoned_output(output, new, mixed), mixed

    return replace(cell, name=f"{cell.name}{_ZONED}{p!r}", step=step, kernels={})


def find_zoned_cell(name: str) -> Cell | None:
    """The cell that `zoned_cell` gave this name; None if it is not such a name."""
    base, _, p = name.rpartition(_ZONED)
    try:
        return zoned_cell(find_cell(base), float(p)) if base else None
    except ValueError:
        return None


@lru_cache
def noisy_cell(
    cell: Cell, noise: Noise, input_size: int, hidden_size: int
) -> tuple[Cell, MaskSizes]:
    """The cell in training, and the masks that are its last features, fresh ones first."""
    parts, shapes = cell.parts(hidden_size), cell.shapes(input_size, hidden_size)
    held = _held(cell) if noise.zoneout else []
    fresh = [parts[name] for name in held]
    widths = {shape[-1] for name, shape in shapes.items() if name.startswith("weight_hh")}
    if noise.hidden_dropout and not widths:
        cell.refuse("hidden_dropout", f"the parameters {', '.join(shapes)}", _EXPECTED)
    locked = sorted(widths) if noise.hidden_dropout else []
    masks = [*fresh, *locked]

    def project(params: Params, x: Tensor) -> Tensor:
        share = cell.project(params, x[..., :input_size])
        return torch.cat([share, x[..., input_size:]], -1)

    def step(params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
        share, *columns = share.split([share.shape[-1] - sum(masks), *masks], -1)
        factors = [column.detach() for column in columns[len(fresh) :]]
        output, new = _step_with_factors(cell, params, share, state, factors)
        stays = dict(zip(held, columns, strict=False))
        kept = [
            torch.where(stays[name] > 0.5, a, b) if name in stays else b
            for name, a, b in zip(parts, state, new, strict=True)
        ]
        return _zoned_output(output, new, kept), kept

    def own_shapes(_: int, size: int) -> dict[str, tuple[int, ...]]:
        return cell.shapes(input_size, size)

    name = f"{cell.name}, in training with {tuple(noise)}, {input_size}, {hidden_size}"
    noisy = replace(
        cell, name=name, shapes=own_shapes, project=project, step=step, kernels={}
    )  # fmt: skip
    return noisy, MaskSizes(sum(fresh), sum(locked))


def _held(cell: Cell) -> list[str]:
    """The parts of the state that zoneout holds."""
    return [name for name in cell.parts(EXAMPLE_SIZE) if cell.zoned is None or name in cell.zoned]


def _zoned_output(output: Tensor, new: State, kept: State) -> Tensor:
    """The output of a step: where it is a part of the state, that part after zoneout."""
    return next((b for a, b in zip(new, kept, strict=True) if output is a), output)


def _step_with_factors(
    cell: Cell, params: Params, share: Tensor, state: State, factors: Sequence[Tensor]
) -> tuple[Tensor, State]:
    """A step whose recurrent products read the state times `factors`, one of each width."""
    if not factors:
        return run_step(cell, params, share, state)
    with _Masked(cell, params, factors) as masked:
        answer = run_step(cell, params, share, state)
    if not masked.count:
        cell.refuse("hidden_dropout", "no product", _EXPECTED)
    return answer


class _Masked(TorchFunctionMode):
    """Multiplies what is multiplied with a recurrent weight, and all that is made of one, first."""

    def __init__(self, cell: Cell, params: Params, factors: Sequence[Tensor]) -> None:
        super().__init__()
        self.cell, self.factors, self.count = cell, factors, 0
        # what is made of parameters alone, and whether a recurrent weight is among them
        self.fixed = {id(v): (v, name.startswith("weight_hh")) for name, v in params.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [*_tensors(args), *_tensors(kwargs.values())]
        fixed = [self.fixed[id(each)][1] for each in tensors if id(each) in self.fixed]
        if any(fixed) and len(fixed) < len(tensors):
            args = self._masked(func, args)
        answer = func(*args, **kwargs)
        if tensors and len(fixed) == len(tensors):
            self.fixed |= {id(each): (each, any(fixed)) for each in _tensors([answer])}
        return answer

    def _masked(self, func: Any, args: Sequence[Any]) -> list[Any]:
        masked = list(args)
        places = [p for p in _PRODUCTS.get(func, ()) if p < len(args)]
        for place in places:
            if id(args[place]) not in self.fixed:
                masked[place] = args[place] * self._factor(args[place])
                self.count += 1
                return masked
        return self.cell.refuse("hidden_dropout", f"a weight_hh in {resolve_name(func)}", _EXPECTED)

    def _factor(self, x: Tensor) -> Tensor:
        found = [factor for factor in self.factors if factor.shape == x.shape]
        if not found:
            expected = " or ".join(f"(rows, {factor.shape[-1]})" for factor in self.factors)
            what = f"a product of a weight_hh with {tuple(x.shape)}"
            self.cell.refuse("hidden_dropout", what, expected)
        return found[0]


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values and in lists of them."""
    return [leaf for leaf in tree_leaves(list(values)) if isinstance(leaf, Tensor)]
