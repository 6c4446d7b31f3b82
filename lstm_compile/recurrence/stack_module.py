"""The module form of a stack: what LSTM, GRU and Recurrent have in common."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_compile.config import Backend
from lstm_compile.errors import InputError
from lstm_compile.recurrence.lengths import Lengths
from lstm_compile.recurrence.operator import check_options

Parts = tuple[Tensor, ...]  # of a state


class StackModule(nn.Module):
    """A stack of layers with nn.LSTM's layouts of input, output and state.

    A subclass says what its state is, and calls the function of its cell.
    """

    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    bidirectional: bool
    _weight_names: tuple[str, ...]
    _part_names: Sequence[str]  # of the state

    def __init__(
        self,
        sizes: Mapping[str, Any],
        flags: Mapping[str, Any],
        backend: Backend,
        chunk: int,
    ) -> None:
        super().__init__()
        _check_sizes(sizes)
        _check_flags(flags, sizes["num_layers"])
        check_options(backend, chunk)
        for name, value in {**sizes, **flags}.items():
            setattr(self, name, value)
        self.dropout = float(flags["dropout"])
        self.backend: Backend = backend
        self.chunk = chunk

    def _register(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make the parameters, and fill them."""
        # read as attributes: parametrizations, pruning and sharding leave no parameter of that name
        self._weight_names = tuple(shapes)
        for name, shape in shapes.items():
            weight = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(weight))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew."""
        raise NotImplementedError

    def _given(self, state: Any, what: str) -> Any:
        """The parts of a state that the caller gave, checked."""
        raise NotImplementedError

    def _returned(self, parts: Any) -> Any:
        """The state in the form that the caller gets."""
        raise NotImplementedError

    def _call(self, params: dict[str, Tensor], *inputs: Any, **options: Any) -> Any:
        """The function of the cell, which takes these arguments."""
        raise NotImplementedError

    def flatten_parameters(self) -> None:
        """Do nothing: kept for programs that call it on a module of torch.nn."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse torch.jit.script, which asks for this."""
        name = type(self).__name__
        raise InputError(
            f"torch.jit.script cannot compile {name}; use torch.export, torch.compile or "
            f"torch.onnx.export(dynamo=True){self._instead}"
        )

    _instead = ""

    def extra_repr(self) -> str:
        """The constructor's arguments that differ from their defaults."""
        names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "backend")
        known = inspect.signature(type(self).__init__).parameters
        given = {name: getattr(self, name) for name in names if name in known}
        other = [f"{k}={value}" for k, value in given.items() if value != known[k].default]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *other])

    def forward(
        self,
        input: Any,  # noqa: A002 (the name in torch.nn)
        hx: Any = None,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: Any = None,
        backend: Backend | None = None,
    ) -> tuple[Any, Any]:
        """Run the stack.

        Args:
            input: (time, batch, input_size), (batch, time, input_size) with batch_first,
                (time, input_size) for one unbatched sequence, or a PackedSequence.
            hx: initial state, each part (num_layers * num_directions, batch, its size), without the
                batch for unbatched input; zeros if None.
            lengths: (batch,) whole numbers for padded input, as `lstm` takes them; a PackedSequence
                carries its own.
            resets: bool, True where the state is reset to `hx` before the step, laid out as input:
                (time, batch), (batch, time) with batch_first, or (time,) for unbatched input. Not
                for bidirectional modules, nor for a PackedSequence.
            reset_state: the state after a reset, in place of `hx` and in its layout.
            backend: in place of the module's own.

        Returns:
            output in the layout of the input, and the final state in the layout of hx.

        Raises:
            InputError: shapes that do not fit, lengths with packed or unbatched input, or resets
                with packed input.
        """
        if isinstance(input, PackedSequence):
            _refuse("lengths", lengths, "a PackedSequence")
            _refuse("resets", resets, "a PackedSequence")
            return self._forward_packed(input, hx, backend)
        if not isinstance(input, Tensor):
            options = {"hx": hx, "lengths": lengths, "resets": resets, "reset_state": reset_state}
            return self._traced_by_fx(input, {**options, "backend": backend})
        if input.dim() == 2:
            _refuse("lengths", lengths, "unbatched input")
            again = None if reset_state is None else self._batched(reset_state, "reset_state")
            state = None if hx is None else self._batched(hx, "state")
            resets = None if resets is None else resets[None]
            output, state = self._run(backend, input[None], None, state, resets, again)
            return output[0], self._returned([part[:, 0] for part in state])
        if input.dim() != 3:
            raise InputError(f"input must have 2 or 3 dimensions, got {tuple(input.shape)}")
        state = None if hx is None else self._given(hx, "state")
        again = None if reset_state is None else self._given(reset_state, "reset_state")
        if self.batch_first:
            output, state = self._run(backend, input, lengths, state, resets, again)
            return output, self._returned(state)
        resets = None if resets is None else _transposed(resets, input)
        output, state = self._run(backend, input.transpose(0, 1), lengths, state, resets, again)
        # nn.LSTM's output can be viewed as it is
        return output.transpose(0, 1).contiguous(), self._returned(state)

    def _traced_by_fx(self, x: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """One node of the graph, as torch.fx makes one of a module of torch.nn."""
        tracer, kind = getattr(x, "tracer", None), type(self)
        if tracer is None or not kind.__module__.startswith("lstm_compile."):
            raise InputError(f"input must be a tensor or PackedSequence, got {type(x).__name__}")
        given = {name: value for name, value in options.items() if value is not None}
        path = tracer.path_of_module(self)
        return tracer.create_proxy(  # type: ignore[no-any-return]
            "call_module", path, (x,), given
        )

    def _forward_packed(
        self, packed: PackedSequence, hx: Any, backend: Backend | None
    ) -> tuple[PackedSequence, Any]:
        order, inverse = packed.sorted_indices, packed.unsorted_indices
        by_length = PackedSequence(packed.data, packed.batch_sizes)
        x, lengths = pad_packed_sequence(by_length, batch_first=True)
        state = None if hx is None else self._given(hx, "state")
        if state is not None and order is not None:
            state = tuple(part.index_select(1, order) for part in state)
        output, state = self._run(backend, x, lengths, state, None, None)
        data = pack_padded_sequence(output, lengths, batch_first=True).data
        if inverse is not None:
            state = [part.index_select(1, inverse) for part in state]
        return PackedSequence(data, packed.batch_sizes, order, inverse), self._returned(state)

    def _batched(self, state: Any, what: str) -> Parts:
        """The state of unbatched input as that of a batch of one."""
        parts = self._given(state, what)
        for name, part in zip(self._part_names, parts, strict=False):
            if part.dim() != 2:
                found = tuple(part.shape)
                raise InputError(
                    f"{what}.{name} of unbatched input must have 2 dimensions, got {found}"
                )
        return tuple(part[:, None] for part in parts)

    def _run(
        self,
        backend: Backend | None,
        x: Tensor,
        lengths: Lengths | None,
        state: Any,
        resets: Tensor | None,
        reset_state: Any,
    ) -> tuple[Tensor, Any]:
        return self._call(  # type: ignore[no-any-return]
            {name: getattr(self, name) for name in self._weight_names},
            x, lengths, state, resets=resets, reset_state=reset_state, dropout=self.dropout,
            training=self.training, backend=backend or self.backend, chunk=self.chunk,
        )  # fmt: skip


def _check_sizes(sizes: Mapping[str, Any]) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer):
            raise TypeError(f"{name} must be a whole number, got {size!r} ({type(size).__name__})")
    if min(sizes.values()) < 1:
        found = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(f"input_size, hidden_size and num_layers must be at least 1; got {found}")


def _check_flags(flags: Mapping[str, Any], num_layers: int) -> None:
    for name in {"bias", "batch_first"} & set(flags):
        if not isinstance(flags[name], bool):
            kind = type(flags[name]).__name__
            raise TypeError(f"{name} must be True or False, got {flags[name]!r} ({kind})")
    dropout = flags["dropout"]
    is_number = isinstance(dropout, Real) and not isinstance(dropout, bool)
    if not (is_number and 0 <= dropout <= 1):
        raise InputError(f"dropout must be a number in [0, 1]; got dropout={dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout={dropout} does nothing with num_layers=1: it acts between layers",
            stacklevel=4,
        )


def _refuse(name: str, value: Any, what: str) -> None:
    if value is not None:
        raise InputError(f"{name} cannot be combined with {what}; leave it out")


def _transposed(resets: Tensor, x: Tensor) -> Tensor:
    if resets.shape != x.shape[:2]:
        raise InputError(
            f"resets must have shape (time, batch) = {tuple(x.shape[:2])} without batch_first, "
            f"got {tuple(resets.shape)}"
        )
    return resets.transpose(0, 1)
