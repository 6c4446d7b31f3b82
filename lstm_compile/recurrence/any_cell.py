"""A recurrent cell as a value: sizes, parameters, and one step as a pure function.

Layers, directions, masks, lengths, gradients and compiled chunks follow from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, NoReturn

import torch
from torch import Tensor

from lstm_compile.config import CELLS
from lstm_compile.errors import InputError

Params = Mapping[str, Tensor]
Sizes = Callable[[int], dict[str, int]]  # from hidden_size
ShapesOf = Callable[[int, int], dict[str, tuple[int, ...]]]  # from input_size and hidden_size
Initial = Callable[[str, Tensor, torch.Generator | None], None]  # fills a parameter in place
State = Sequence[Tensor]  # its parts
Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes of parameters
Step = Callable[[Params, Tensor, State], tuple[Tensor, State]]
# where only names are asked for; a cell may want a multiple, such as that of its heads
EXAMPLE_SIZE = 96


@dataclass(frozen=True)
class Cell:
    """One recurrent cell.

    `project` gives the input's share of all steps in one product, `step` computes one step of
    several rows from it. Both are pure functions of tensors. `step` computes each row by itself:
    the number of rows changes as sequences end.
    """

    name: str
    parts: Sizes  # hidden_size -> the name and size of each part of the state, which starts at 0
    shapes: ShapesOf  # input_size, hidden_size -> the name and shape of each parameter of a layer
    project: Callable[[Params, Tensor], Tensor]  # params, (..., input_size) -> share (..., any)
    # params, share (rows, any), state parts (rows, size) -> output (rows, hidden_size), new state
    step: Step
    initial: Initial | None = None  # None: see `initialise`
    # backends with code of their own -> a function of a `CellCall` and its `Rows`, at least one
    # with a step; None for the rows while torch.jit.trace runs
    kernels: Mapping[str, Callable[..., Any]] = field(default_factory=dict, compare=False)
    zoned: tuple[str, ...] | None = None  # the parts of the state that zoneout holds; None: all

    def refuse(self, what: str, found: object, expected: object) -> NoReturn:
        """Raise an error that names the cell.

        Raises:
            InputError: always.
        """
        raise InputError(f"cell {self.name!r}: {what}: found {found}, expected {expected}")

    def initialise(self, name: str, tensor: Tensor, generator: torch.Generator | None) -> None:
        """Fill a fresh parameter of a layer in place.

        Without a rule of the cell, matrices as `fill_matrix` does, and all else with 0.
        """
        if self.initial is not None:
            self.initial(name, tensor, generator)
        elif tensor.dim() == 2:
            fill_matrix(name, tensor, generator)
        else:
            torch.nn.init.zeros_(tensor)


_CELLS: dict[str, Cell] = {}
_TRACED: dict[str, Cell] = {}  # others, which operators in traced code find by their names
_SHIPPED = {name: name.replace("-", "_") for name in CELLS}  # their modules


def register_cell(cell: Cell) -> Cell:
    """Make a cell known by its name.

    Raises:
        InputError: another cell has the name.
    """
    if cell.name in _SHIPPED or _CELLS.setdefault(cell.name, cell) is not cell:
        raise InputError(f"a cell {cell.name!r} exists already; choose another name")
    return cell


def find_cell(cell: Cell | str) -> Cell:
    """A cell by its name, or the cell itself.

    Raises:
        InputError: no cell has the name.
    """
    if isinstance(cell, Cell):
        return cell
    if cell not in _CELLS and cell in _SHIPPED:  # an import, which Dynamo does not trace
        module = _SHIPPED[cell]
        found = import_module(f"lstm_compile.recurrence.cells.{module}")
        _CELLS[cell] = getattr(found, module.upper())
    if cell in _TRACED and cell not in _CELLS:
        return _TRACED[cell]
    if cell not in _CELLS:
        noisy = import_module("lstm_compile.recurrence.noisy_cell")
        zoned: Cell | None = noisy.find_zoned_cell(cell)
        if zoned is not None:
            return zoned
        raise InputError(f"there is no cell {cell!r}; known are {', '.join(known_cells())}")
    return _CELLS[cell]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def known_name(cell: Cell) -> str:
    """The name by which `find_cell` finds this cell from now on; `known_cells` does not list it.

    Raises:
        InputError: another cell has the name.
    """
    if cell.name in known_cells():
        found = find_cell(cell.name)
    else:
        found = _TRACED.setdefault(cell.name, cell)
    if found is not cell:
        raise InputError(f"a cell {cell.name!r} exists already; choose another name")
    return cell.name


def known_cells() -> tuple[str, ...]:
    """The names of all cells: those that ship, then those that were registered."""
    return tuple({**_SHIPPED, **_CELLS})


def hidden_size_of(cell: Cell, input_size: int, weights: Params) -> int:
    """The hidden size that gives a layer parameters of these names and shapes.

    Raises:
        InputError: none does.
    """
    # Dynamo has no caches
    find = _hidden_size if torch.compiler.is_compiling() else _known_hidden_size
    return find(cell, input_size, shapes_of(weights))


def _hidden_size(cell: Cell, input_size: int, found: Shapes) -> int:
    sizes = sorted({size for _, shape in found for size in shape})
    for hidden_size in range(1, max([0, *sizes]) + 1):
        if _fits(cell, input_size, hidden_size, found):
            return hidden_size
        for other in sizes:
            if _fits(cell, other, hidden_size, found):
                raise InputError(
                    f"x must have shape (batch, time, {other}) for these params of cell "
                    f"{cell.name!r}, got {input_size} features"
                )
    raise InputError(
        f"params: no hidden size of cell {cell.name!r} has the shapes {dict(found)} for x with "
        f"{input_size} features"
    )


def _fits(cell: Cell, input_size: int, hidden_size: int, found: Shapes) -> bool:
    try:
        return cell.shapes(input_size, hidden_size) == dict(found)
    except Exception:  # of a cell that refuses some sizes
        return False


_known_hidden_size = lru_cache(_hidden_size)


def shapes_of(weights: Params) -> Shapes:
    """The names and shapes of parameters."""
    return tuple([(name, tuple(value.shape)) for name, value in weights.items()])


def fill_matrix(name: str, tensor: Tensor, generator: torch.Generator | None) -> None:
    """Fill a matrix in place, gate by gate.

    Orthogonal (Saxe et al. 2014) if its name begins with `weight_hh`, else Glorot-uniform (Glorot
    and Bengio 2010).
    """
    rows, columns = tensor.shape
    if name.startswith("weight_hh") and rows % columns == 0:
        for gate in tensor.split(columns):
            torch.nn.init.orthogonal_(gate, generator=generator)
    else:
        torch.nn.init.xavier_uniform_(tensor, generator=generator)


def run_step(cell: Cell, params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
    """The output and the new state of one step, checked.

    Raises:
        InputError: the step raises, or gives something else than the cell says.
    """
    try:
        answer = cell.step(params, share, tuple(state))
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        cell.refuse("its step raised", f"{type(error).__name__}: {reason}", "no error")
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], tuple | list)):
        cell.refuse("its step returned", type(answer).__name__, "a pair (output, state)")
    output, new = answer
    if len(new) != len(state):
        cell.refuse("its step returned", f"{len(new)} parts of the state", len(state))
    _check_part(cell, "the output of its step", output, state[0], is_shaped=False)
    for index, (found, expected) in enumerate(zip(new, state, strict=True)):
        _check_part(cell, f"its step's state part {index}", found, expected)
    return output, tuple(new)


def _check_part(
    cell: Cell, what: str, found: object, expected: Tensor, *, is_shaped: bool = True
) -> None:
    if not isinstance(found, Tensor):
        cell.refuse(what, type(found).__name__, "a tensor")
    shape, like = tuple(found.shape), tuple(expected.shape)
    if found.dtype != expected.dtype or (is_shaped and shape != like):
        cell.refuse(what, f"{shape} {found.dtype}", f"{like} {expected.dtype}")


def masked_step(
    cell: Cell, params: Params, share: Tensor, valid: Tensor, state: State
) -> tuple[Tensor, State]:
    """One step; rows where `valid` (rows, 1) is False keep their state, and no gradient enters it.

    The state of a row that has ended may be NaN: the step sees zeros in its place.
    """
    running = tuple(torch.where(valid, part, 0.0) for part in state)
    output, new = run_step(cell, params, share, running)
    return output, tuple(torch.where(valid, a, b) for a, b in zip(new, state, strict=True))
