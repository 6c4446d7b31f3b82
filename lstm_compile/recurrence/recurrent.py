"""A stack of layers of any cell as a pure function of flat parameters."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import Backend
from lstm_compile.errors import InputError
from lstm_compile.recurrence.any_cell import (
    EXAMPLE_SIZE,
    Cell,
    State,
    find_cell,
    hidden_size_of,
    known_name,
    masked_step,
    shapes_of,
)
from lstm_compile.recurrence.cell_chunks import chunks_for, read_params, run_layer
from lstm_compile.recurrence.cell_operator import CellInputs
from lstm_compile.recurrence.dispatch import (
    begun,
    chunked_layout,
    rows_of,
    without_autocast,
    without_valid_steps,
)
from lstm_compile.recurrence.forked import check_threads
from lstm_compile.recurrence.function import autocast_dtype, check_input, on_host, refuse_tracing
from lstm_compile.recurrence.inductor import can_compile
from lstm_compile.recurrence.lengths import (
    Lengths,
    as_lengths,
    check_numbers,
    is_abstract,
    reverse_within_length,
    valid_mask,
    zero_padding,
)
from lstm_compile.recurrence.noisy_cell import zoned_cell
from lstm_compile.recurrence.operator import DEFAULT_CHUNK, check_options
from lstm_compile.recurrence.regularise import (
    NONE,
    Regularisers,
    RunLayer,
    train_by_layers,
    with_noise,
)
from lstm_compile.recurrence.resets import both_states, check_resets
from lstm_compile.recurrence.stack import both_ways, is_jit_tracing, run_stack

_KEY = re.compile(r"(\w+)_l(\d+)(_reverse)?")

Weights = dict[str, Tensor]  # the parameters of one layer and direction, by the cell's names


class CellCall(NamedTuple):
    """The arguments of `recurrent`, checked, with defaults filled in; see `stack.Call`."""

    layers: Sequence[Sequence[Weights]]
    x: Tensor
    lengths: Tensor | None
    resets: Tensor | None
    state: State  # each (num_layers * num_directions, batch, size); with resets twice the batch
    backwards: Sequence[bool]
    dropout: float
    backend: str
    chunk: int
    cell: Cell
    hidden_size: int


def recurrent(
    cell: Cell | str,
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Lengths | None = None,
    state: State | None = None,
    *,
    resets: Tensor | None = None,
    reset_state: State | None = None,
    dropout: float = 0.0,
    training: bool = False,
    regularise: Regularisers = NONE,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run a stack of layers of any cell over padded sequences.

    Args:
        cell: a cell, or the name of one that ships or was registered.
        params: flat; each parameter of the cell with the suffix of its layer and direction, such
            as `weight_ih_l0` or `bias_l1_reverse`.
        x: (batch, time, input_size), in the weights' dtype.
        lengths: (batch,) whole numbers, as in `lstm_compile.lstm`.
        state: the initial state, each part (num_layers * num_directions, batch, its size); zeros
            if None.
        resets: (batch, time) bool, as in `lstm_compile.lstm`.
        reset_state: the state after a reset, shaped as `state`; `state` itself if None.
        dropout: probability of dropping a value between layers, in training.
        training: whether dropout and `regularise` act; zoneout acts in evaluation too.
        regularise: see `lstm_compile.recurrence.regularise.Regularisers`.
        backend: `reference`, `compiled` or `auto`, which compiles where there is a compiler; a few
            steps without gradients, less than a chunk, are a loop.
        chunk: steps unrolled in one graph.

    Returns:
        output (batch, time, num_directions * hidden_size), exactly 0 at t >= length, and the parts
        of the state after each row's last valid step.

    Raises:
        InputError: parameters, shapes, dtypes, lengths or resets that do not fit together, or a
            step that does not give what its cell says.
    """
    regularise.check()
    regularise = regularise.in_effect(training=training)
    if torch.compiler.is_dynamo_compiling() and regularise != NONE:
        options: dict[str, Any] = {"resets": resets, "reset_state": reset_state, "dropout": dropout}
        options |= {"training": training, "backend": backend, "chunk": chunk}
        options["regularise"] = regularise
        return _untraced(cell, params, x, lengths, state, **options)  # type: ignore[no-any-return]
    cell, backend = _settle(find_cell(cell), regularise, training, backend)
    layers, hidden_size = _layers(cell, params, x)
    if lengths is not None:
        refuse_tracing("lengths")
        lengths = as_lengths(lengths, x)
    given = _initial_state(cell, layers, hidden_size, x, state, "state")
    if resets is not None:
        refuse_tracing("resets")
        check_resets(resets, x.shape[0], x.shape[1], bidirectional=len(layers[0]) == 2)
        check_numbers("resets", resets, x)
        again = state if reset_state is None else reset_state
        after = _initial_state(cell, layers, hidden_size, x, again, "reset_state")
        given = tuple(both_states(a, b) for a, b in zip(given, after, strict=True))
    if dtype := autocast_dtype(x):
        x, given = x.to(dtype), tuple(part.to(dtype) for part in given)
        layers = [[{k: v.to(dtype) for k, v in one.items()} for one in layer] for layer in layers]
    check_options(backend, chunk)
    if regularise != NONE and training:
        own = {"lengths": lengths, "resets": resets, "backend": backend, "chunk": chunk}
        run = _train_layer(cell, regularise, hidden_size, own)
        return train_by_layers(run, params, x, lengths, (state, reset_state), regularise, dropout)
    backwards = (False, True)[: len(layers[0])]
    dropout = dropout if training else 0.0
    call = CellCall(
        layers, x, lengths, resets, given, backwards, dropout, backend, chunk, cell, hidden_size
    )
    if torch.compiler.is_compiling() or is_abstract(x):
        y, *final = _traced(call)
    else:
        y, *final = _run(call)
    return y, tuple(final)


def _train_layer(cell: Cell, regularise: Regularisers, hidden_size: int, options: Any) -> RunLayer:
    """A layer and direction in training, whose step may be regularised."""

    def run(
        weights: Weights, x: Tensor, state: State | None, reset_state: State | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        noisy, x = with_noise(cell, regularise, x, hidden_size)
        return recurrent(noisy, weights, x, state=state, reset_state=reset_state, **options)

    return run


def _settle(
    cell: Cell, regularise: Regularisers, training: bool, backend: Backend
) -> tuple[Cell, Backend]:
    """The cell with zoneout in evaluation, and a backend that can run the step."""
    if any(regularise.noise) and backend == "vendor" and backend in cell.kernels:
        backend = "auto"  # a kernel knows the step of the cell alone
    if regularise.zoneout and not training:
        return zoned_cell(cell, regularise.zoneout), backend
    return cell, backend


_untraced = torch.compiler.disable(recurrent)  # Dynamo cannot trace how cells are made


def layer_shapes(
    cell: Cell, input_size: int, hidden_size: int, num_layers: int = 1, *, bidirectional: bool
) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter of a stack, layer after layer."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        width = hidden_size * (1 + bidirectional) if layer else input_size
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 1 + bidirectional]:
            own = cell.shapes(width, hidden_size)
            shapes |= {f"{name}{suffix}": shape for name, shape in own.items()}
    return shapes


def _run(call: CellCall) -> Sequence[Tensor]:
    """The stack on plain tensors, or under torch.func, where it is a loop."""
    device, backend = call.x.device.type, call.backend
    with without_autocast(device):
        if torch._C._are_functorch_transforms_active():
            backend = "reference"
        elif call.x.is_cpu and not is_jit_tracing():
            check_threads()
        if kernel := call.cell.kernels.get(backend):
            rows = None if is_jit_tracing() else rows_of(call)
            if rows is not None and rows.longest == 0:
                return without_valid_steps(call, _by_steps)
            return kernel(call, rows)  # type: ignore[no-any-return]
        if backend == "vendor":
            raise InputError(
                f"no vendor has a kernel of cell {call.cell.name!r}; use backend='compiled'"
            )
        is_short = call.x.shape[1] < call.chunk and not torch.is_grad_enabled()
        if backend == "reference" or (backend == "auto" and is_short) or not can_compile(device):
            return _by_steps(call)
        return _by_chunks(call)


def _traced(call: CellCall) -> Sequence[Tensor]:
    """One operator for each layer and direction, in traced code."""
    name = known_name(call.cell)
    lengths, resets = on_host(call.lengths), on_host(call.resets)

    def run(x: Tensor, weights: Weights, *state_and_backward: Any) -> Sequence[Tensor]:
        *state, backward = state_and_backward
        return torch.ops.lstm_compile.any_cell(  # type: ignore[no-any-return]
            name, x, lengths, resets, list(weights.values()), state,
            backward, call.backend, call.chunk,
        )  # fmt: skip

    return run_stack(call, run)


def run_one(inputs: CellInputs) -> list[Tensor]:
    """One layer and direction on plain tensors: output and the parts of the state."""
    cell = find_cell(inputs.cell)
    weights = dict(zip(cell.shapes(1, EXAMPLE_SIZE), inputs.weights, strict=True))
    hidden_size = hidden_size_of(cell, inputs.x.shape[2], weights)
    given = inputs.x, inputs.lengths, inputs.resets, tuple(part[None] for part in inputs.state)
    options = (inputs.reverse,), 0.0, inputs.backend, inputs.chunk
    y, *final = _run(CellCall([[weights]], *given, *options, cell, hidden_size))
    return [y, *(part[0] for part in final)]


def _layers(cell: Cell, params: Mapping[str, Tensor], x: Tensor) -> tuple[list[list[Weights]], int]:
    """The parameters by layer and direction, and the hidden size."""
    read_keys = _read_keys if torch.compiler.is_compiling() else _read_known
    depth, suffixes = read_keys(cell, tuple(params))
    first = _under(cell, params, "_l0")
    check_input(next(iter(first.values())), x)
    hidden_size = hidden_size_of(cell, x.shape[-1], first)
    layers, width = [], x.shape[-1]
    for layer in range(depth):
        layers.append([_under(cell, params, f"_l{layer}{suffix}") for suffix in suffixes])
        for suffix, weights in zip(suffixes, layers[-1], strict=True):
            for name, shape in cell.shapes(width, hidden_size).items():
                if tuple(weights[name].shape) != shape:
                    raise InputError(
                        f"params: '{name}_l{layer}{suffix}' must have shape {shape}, got "
                        f"{tuple(weights[name].shape)}"
                    )
        width = hidden_size * len(suffixes)
    return layers, hidden_size


def _read_keys(cell: Cell, keys: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """The number of layers, and the suffixes of a layer's directions."""
    names = set(cell.shapes(1, EXAMPLE_SIZE))
    matches = [_KEY.fullmatch(key) for key in keys]
    for key, match in zip(keys, matches, strict=True):
        if match is None or match[1] not in names:
            example = f"{next(iter(names))}_l0"
            raise InputError(
                f"params: {key!r} is not a parameter of cell {cell.name!r}, such as {example!r}"
            )
    if not matches:
        raise InputError(f"params is empty; expected those of cell {cell.name!r}")
    found = [match for match in matches if match is not None]
    depth = 1 + max(int(match[2]) for match in found)
    return depth, ("", "_reverse") if any(match[3] for match in found) else ("",)


_read_known = lru_cache(_read_keys)


def _under(cell: Cell, params: Mapping[str, Tensor], suffix: str) -> Weights:
    """The parameters of one layer and direction."""
    weights = {}
    for name in cell.shapes(1, EXAMPLE_SIZE):
        if f"{name}{suffix}" not in params:
            raise InputError(f"params: '{name}{suffix}' is missing; found {sorted(params)}")
        weights[name] = params[f"{name}{suffix}"]
    return weights


def _initial_state(
    cell: Cell,
    layers: Sequence[Sequence[Weights]],
    hidden_size: int,
    x: Tensor,
    state: State | None,
    what: str,
) -> State:
    rows, parts = len(layers) * len(layers[0]), cell.parts(hidden_size)
    shapes = {name: (rows, x.shape[0], size) for name, size in parts.items()}
    if state is None:
        return tuple(x.new_zeros(shape) for shape in shapes.values())
    given = list(state) if isinstance(state, tuple | list) else []
    if len(given) != len(shapes) or not all(isinstance(part, Tensor) for part in given):
        kinds = [type(part).__name__ for part in given] or type(state).__name__
        raise InputError(f"{what} must be the tensors ({', '.join(shapes)}), got {kinds}")
    for (name, shape), part in zip(shapes.items(), given, strict=True):
        fits = tuple(part.shape) == shape and part.device == x.device
        if not (fits and part.is_floating_point()):
            raise InputError(
                f"{what}.{name} must be floating {shape} on {x.device}, found {part.dtype} "
                f"{tuple(part.shape)} on {part.device}"
            )
    return tuple([part.to(x.dtype) for part in given])


def _by_chunks(call: CellCall) -> Sequence[Tensor]:
    """Compiled chunks."""
    rows = rows_of(call)
    if rows.longest == 0:
        return without_valid_steps(call, _by_steps)
    layout = chunked_layout(rows, call.chunk)

    def run(x: Tensor, weights: Weights, *state: Tensor) -> Sequence[Tensor]:
        share = call.cell.project(weights, x)
        sizes = share.shape[-1], *(part.shape[-1] for part in state)
        names = read_params(call.cell, shapes_of(weights), sizes)
        read = {name: weights[name] for name in names}
        chunks = chunks_for(call.cell, shapes_of(read), sizes, call.chunk, x.dtype, x.device)
        y, final = run_layer(chunks, layout, share, state, list(read.values()))
        return _of_width(call, y), *final

    state = tuple(layout.arrange(part) for part in begun(call, rows))
    packed = call._replace(x=layout.pack(call.x), state=state)
    y, *final = run_stack(packed, both_ways(run, layout.reverse))
    return layout.unpack(y), *final


def _by_steps(call: CellCall) -> Sequence[Tensor]:
    """The plain loop over steps, any dtype and any derivative."""
    device, lengths, resets = call.x.device, call.lengths, call.resets
    lengths = None if lengths is None else lengths.to(device)
    resets = None if resets is None else resets.to(device)

    def run(x: Tensor, weights: Weights, *state: Tensor) -> Sequence[Tensor]:
        y, *final = loop_over_steps(call.cell, x, weights, state, lengths, resets)
        return _of_width(call, y), *final

    return run_stack(call, both_ways(run, partial(reverse_within_length, lengths=lengths)))


def _of_width(call: CellCall, y: Tensor) -> Tensor:
    """`y`, if its features are as many as the hidden size."""
    if y.shape[-1] != call.hidden_size:
        call.cell.refuse("the output of its step has a width of", y.shape[-1], call.hidden_size)
    return y


def loop_over_steps(
    cell: Cell,
    x: Tensor,
    weights: Weights,
    state: State,
    lengths: Tensor | None,
    resets: Tensor | None,
) -> Sequence[Tensor]:
    """One layer, forward in time, as nothing but PyTorch operations."""
    share = cell.project(weights, zero_padding(x, lengths))
    reset = state
    if resets is not None:
        state, reset = zip(*(part.chunk(2) for part in state), strict=True)
        resets = resets if lengths is None else resets & valid_mask(lengths, x.shape[1])
    everywhere = torch.ones(x.shape[0], 1, dtype=torch.bool, device=x.device)
    outputs = []
    for t in range(x.shape[1]):
        if resets is not None:
            is_set_back = resets[:, t, None]
            state = tuple(torch.where(is_set_back, a, b) for a, b in zip(reset, state, strict=True))
        valid = everywhere if lengths is None else (t < lengths)[:, None]
        output, state = masked_step(cell, weights, share[:, t], valid, state)
        outputs.append(torch.where(valid, output, 0.0))
    if not outputs:  # one step that no row takes: it says the width of the output
        nowhere, first = torch.zeros_like(everywhere), share.new_zeros(x.shape[0], share.shape[-1])
        output, state = masked_step(cell, weights, first, nowhere, state)
        return (output * 0.0)[:, None][:, :0], *state
    return torch.stack(outputs, 1), *state
