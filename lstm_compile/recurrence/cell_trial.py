"""A trial of a cell on small tensors: whether it is what `Cell` says, in one line if not."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lstm_compile.errors import InputError, reason
from lstm_compile.recurrence.any_cell import EXAMPLE_SIZE, Cell, Params, State, run_step

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
INPUT_SIZE, HIDDEN_SIZE = 3, EXAMPLE_SIZE
ROWS = 2
# what inputs of exported files are called, and how the names of their state outputs end
TAKEN = ("x", "tokens", "lengths", "known_future", "static", "series_location", "series_scale")
NEXT = "_next"
CLOSE = 1e-9  # in float64


def try_cell(cell: Cell) -> None:
    """Run a cell on small tensors, in float32 and float64.

    Raises:
        InputError: its name, parts or shapes make no sense; it gives something else than it says;
            its step does not treat each row by itself, has a memory or is random; or a parameter
            gets no gradient.
    """
    if not isinstance(cell.name, str) or not NAME.fullmatch(cell.name):
        cell.refuse("its name", repr(cell.name), "a letter, then letters, digits, - and _")
    parts_of(cell, HIDDEN_SIZE)
    shapes = shapes_of(cell, INPUT_SIZE, HIDDEN_SIZE)
    if shapes == shapes_of(cell, INPUT_SIZE, 2 * HIDDEN_SIZE):
        cell.refuse("its shapes", "the same for two hidden sizes", "shapes with hidden_size")
    with torch.random.fork_rng(devices=[]), torch.inference_mode(mode=False), torch.enable_grad():
        for dtype in (torch.float32, torch.float64):
            _try_steps(cell, _fresh(cell, shapes, dtype))
        _trace(cell, _fresh(cell, shapes, torch.float32))


def parts_of(cell: Cell, hidden_size: int) -> dict[str, int]:
    """The name and size of each part of the state, checked.

    Raises:
        InputError: there are none, the first is not of `hidden_size`, or one has no good name or
            size.
    """
    parts = _call(cell, "parts", cell.parts, hidden_size)
    if not isinstance(parts, dict) or not parts:
        cell.refuse("its parts", repr(parts), "a dict of names and sizes")
    for name, size in parts.items():
        is_name = isinstance(name, str) and name.isidentifier() and name.isascii()
        if not is_name or type(size) is not int or size < 1:
            cell.refuse("its parts", repr(parts), "plain names, and whole sizes above 0")
        if name in TAKEN or name.endswith(NEXT):
            cell.refuse("its parts", repr(name), "a name that exported files leave free, as h or c")
    first, size = next(iter(parts.items()))
    if size != hidden_size:
        cell.refuse(f"its first part {first!r}", size, f"hidden_size, {hidden_size}")
    return parts


def shapes_of(cell: Cell, input_size: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """The name and shape of each parameter of a layer, checked.

    Raises:
        InputError: there are none, or one has no good name or shape.
    """
    shapes = _call(cell, "shapes", cell.shapes, input_size, hidden_size)
    if not isinstance(shapes, dict) or not shapes:
        cell.refuse("its shapes", repr(shapes), "a dict of names and shapes")
    for name, shape in shapes.items():
        is_name = isinstance(name, str) and name.isidentifier() and name.isascii()
        is_shape = isinstance(shape, tuple) and all(type(s) is int and s > 0 for s in shape)
        if not is_name or not is_shape:
            cell.refuse("its shapes", f"{name!r}: {shape!r}", "a plain name and a tuple of sizes")
    return shapes


def fill(cell: Cell, name: str, tensor: Tensor, generator: torch.Generator) -> None:
    """Fill a fresh parameter in place, see `Cell.initialise`.

    Raises:
        InputError: the cell's rule raises.
    """
    with torch.no_grad():
        _call(cell, "initial", cell.initialise, name, tensor, generator)


def _fresh(
    cell: Cell, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Initial parameters; they must follow from the generator alone."""
    made = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(0)
        values = {
            name: torch.full(shape, torch.nan, device="cpu") for name, shape in shapes.items()
        }
        for name, value in values.items():
            fill(cell, name, value, generator)
            if value.shape != shapes[name] or not value.isfinite().all():
                cell.refuse(f"its initial {name!r}", "values not set", "finite numbers, in place")
        made.append(values)
    if any(not made[0][name].equal(made[1][name]) for name in shapes):
        cell.refuse("its initial values", "others for the same generator", "the same ones")
    return {name: value.to(dtype).requires_grad_() for name, value in made[0].items()}


def _try_steps(cell: Cell, params: Params) -> None:
    """Two steps from a state of zeros."""
    dtype = next(iter(params.values())).dtype
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 2, INPUT_SIZE, generator=generator, dtype=dtype, device="cpu")
    share = _project(cell, params, x)
    zeros = [x.new_zeros(ROWS, size) for size in parts_of(cell, HIDDEN_SIZE).values()]
    first, state = _step(cell, params, share[:, 0], zeros)
    output, new = _step(cell, params, share[:, 1], state)
    if dtype == torch.float64:
        _check_rows(cell, params, x, state, [output, *new])
    _check_gradients(cell, params, [first, output, *new])


def _project(cell: Cell, params: Params, x: Tensor) -> Tensor:
    share = _call(cell, "project", cell.project, params, x)
    if not isinstance(share, Tensor) or share.dtype != x.dtype or share.shape[:-1] != x.shape[:-1]:
        found = f"{tuple(share.shape)} {share.dtype}" if isinstance(share, Tensor) else type(share)
        cell.refuse("its project gave", found, f"{(*x.shape[:-1], 'any')} {x.dtype}")
    return share


def _step(cell: Cell, params: Params, share: Tensor, state: State) -> tuple[Tensor, State]:
    """A step, which must give the same twice, change nothing, and be finite."""
    before = [share.clone(), *(part.clone() for part in state)]
    output, new = run_step(cell, params, share, state)
    again, others = run_step(cell, params, share, state)
    if any(not a.equal(b) for a, b in zip([share, *state], before, strict=True)):
        cell.refuse("its step", "share or state changed in place", "new tensors")
    expected = share.shape[0], HIDDEN_SIZE
    if output.shape != expected:
        cell.refuse("the output of its step", tuple(output.shape), expected)
    if not all(part.isfinite().all() for part in (output, *new)):
        cell.refuse("its step, from a state of zeros on, gave", "NaN or infinity", "finite numbers")
    if any(not a.equal(b) for a, b in zip([output, *new], [again, *others], strict=True)):
        cell.refuse("its step", "two answers to the same input", "a pure function")
    return output, new


def _check_rows(cell: Cell, params: Params, x: Tensor, state: State, answers: list[Tensor]) -> None:
    """Each row alone must get the answers that it gets among others."""
    for row in range(ROWS):
        only = slice(row, row + 1)
        share = _project(cell, params, x[only])[:, 1]
        output, new = run_step(cell, params, share, [part[only] for part in state])
        for found, whole in zip([output, *new], answers, strict=True):
            if not torch.allclose(found, whole[only], rtol=CLOSE, atol=CLOSE):
                cell.refuse("its step", "a row that depends on other rows", "rows by themselves")


def _check_gradients(cell: Cell, params: Params, outputs: list[Tensor]) -> None:
    total = torch.stack([part.sum() for part in outputs]).sum()
    if not total.requires_grad:
        cell.refuse("its step", "no gradient", "operations that PyTorch differentiates")
    found = torch.autograd.grad(total, list(params.values()), allow_unused=True)
    for name, gradient in zip(params, found, strict=True):
        if gradient is None:
            cell.refuse(f"its parameter {name!r}", "no gradient", "a parameter that takes part")
        if not gradient.isfinite().all():
            cell.refuse(f"the gradient of {name!r}", "NaN or infinity", "finite numbers")


def _trace(cell: Cell, params: Params) -> None:
    """The graph of a step, which must not branch on numbers."""
    from lstm_compile.recurrence.step_graph import ROWS as EXAMPLE_ROWS
    from lstm_compile.recurrence.step_graph import step_graph

    values = {name: value.detach() for name, value in params.items()}
    share = _project(cell, values, torch.zeros(EXAMPLE_ROWS, INPUT_SIZE, device="cpu"))
    sizes = parts_of(cell, HIDDEN_SIZE).values()
    state = [share.new_zeros(EXAMPLE_ROWS, size) for size in sizes]
    valid = torch.ones(EXAMPLE_ROWS, 1, dtype=torch.bool, device="cpu")
    rows = [share, valid, *state]
    try:
        step_graph(cell, values, rows)
    except Exception as error:
        fault = error.__context__ or error  # what the step raised
        found = f"{type(fault).__name__}: {reason(fault)}" if fault is not error else str(error)
        cell.refuse("its step cannot be traced", found, "no branch on numbers, and any rows")


def _call(cell: Cell, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the cell gives; its error becomes one of the cell."""
    try:
        return function(*arguments)
    except InputError:
        raise
    except Exception as error:
        cell.refuse(f"its {what} raised", f"{type(error).__name__}: {reason(error)}", "no error")
