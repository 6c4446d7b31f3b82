"""`LSTM`, `GRU` and `Recurrent`: the module forms; the first two can replace those of torch.nn."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lstm_compile.config import Backend
from lstm_compile.errors import InputError
from lstm_compile.recurrence.any_cell import Cell, find_cell
from lstm_compile.recurrence.cell import LSTMState, State, check_state
from lstm_compile.recurrence.function import lstm
from lstm_compile.recurrence.operator import DEFAULT_CHUNK
from lstm_compile.recurrence.recurrent import layer_shapes, recurrent
from lstm_compile.recurrence.stack import weight_shapes
from lstm_compile.recurrence.stack_module import Parts, StackModule

Device = torch.device | str | None


class _DropIn(StackModule):
    """What modules of torch.nn have beside that."""

    proj_size = 0
    bias: bool
    check_input = nn.LSTM.check_input
    get_expected_hidden_size = nn.LSTM.get_expected_hidden_size
    check_hidden_size = nn.LSTM.check_hidden_size

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)), as torch.nn does.

        The order of the draws is torch.nn's too, so that one seed gives both the same weights.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, as torch.nn gives them."""
        weights, each = self._flat_weights, 4 if self.bias else 2
        return [weights[start : start + each] for start in range(0, len(weights), each)]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._weight_names]


class LSTM(_DropIn):
    """nn.LSTM's constructor, state_dict and forward, with `lengths` and a choice of backend.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in
            torch.nn.LSTM (https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html).
        proj_size: must be 0.
        device, dtype: of the parameters.
        backend: of every call that does not name one.
        chunk: steps unrolled in one graph by the backend `compiled`.

    Its state is `LSTMState(h, c)`, or another pair of tensors where it is given.

    Raises:
        InputError: proj_size is not 0, a size or probability is out of range, or there is no such
            backend.
        TypeError: a size or flag of another type.
    """

    # nn.LSTM's own, for programs that call them
    mode = "LSTM"
    check_forward_args = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden
    _part_names = ("h", "c")
    _instead = ", or load the state_dict into an nn.LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        backend: Backend = "auto",
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        _check_projection(proj_size)
        flags = {"bias": bias, "batch_first": batch_first, "dropout": dropout}
        super().__init__(sizes, {**flags, "bidirectional": bidirectional}, backend, chunk)
        shapes = weight_shapes(*sizes.values(), bidirectional=bool(bidirectional), bias=bool(bias))
        self._register(shapes, device, dtype)

    _call = staticmethod(lstm)

    def _given(self, state: Any, what: str) -> State:
        check_state(state, what)
        return state  # type: ignore[no-any-return]

    def _returned(self, parts: Sequence[Tensor]) -> LSTMState:
        return LSTMState(*parts)


class GRU(_DropIn):
    """nn.GRU's constructor, state_dict and forward, with `lengths` and a choice of backend.

    The arguments are those of torch.nn.GRU
    (https://docs.pytorch.org/docs/stable/generated/torch.nn.GRU.html), `backend` and `chunk` as for
    `LSTM`. Its state is one tensor.

    Raises:
        InputError: a size or probability is out of range, or there is no such backend.
        TypeError: a size or flag of another type.
    """

    mode = "GRU"
    check_forward_args = nn.GRU.check_forward_args
    permute_hidden = nn.GRU.permute_hidden
    _part_names = ("h",)
    _instead = ", or load the state_dict into an nn.GRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        backend: Backend = "auto",
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        flags = {"bias": bias, "batch_first": batch_first, "dropout": dropout}
        super().__init__(sizes, {**flags, "bidirectional": bidirectional}, backend, chunk)
        self._cell = find_cell("gru")
        shapes = layer_shapes(self._cell, *sizes.values(), bidirectional=bool(bidirectional))
        if not bias:
            shapes = {name: shape for name, shape in shapes.items() if "bias" not in name}
        self._register(shapes, device, dtype)

    def _call(self, params: dict[str, Tensor], *inputs: Any, **options: Any) -> Any:
        if not self.bias:
            for name, weight in list(params.items()):
                params[name.replace("weight", "bias")] = weight.new_zeros(weight.shape[0])
        return recurrent(self._cell, params, *inputs, **options)

    def _given(self, state: Any, what: str) -> Parts:
        if not isinstance(state, Tensor):
            raise InputError(f"{what} must be a tensor h, or None for zeros; got {_kind(state)}")
        return (state,)

    def _returned(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0]


class Recurrent(StackModule):
    """A stack of layers of any cell, called as `LSTM` is.

    Args:
        cell: a `Cell`, or the name of one that ships or was registered.
        input_size: features of a step.
        hidden_size: width of one layer's output in one direction.
        num_layers: layers, one over the other.
        batch_first: whether padded input is (batch, time, features).
        dropout: probability of dropping a value between layers, in training.
        bidirectional: whether each layer reads in both directions.
        device, dtype: of the parameters, which the cell fills.
        backend: of every call that does not name one.
        chunk: steps unrolled in one graph by the backend `compiled`.

    Its state is a tuple of tensors, the parts of the cell in their order.

    Raises:
        InputError: there is no such cell or backend, or a size or probability is out of range.
        TypeError: a size or flag of another type.
    """

    def __init__(
        self,
        cell: Cell | str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        backend: Backend = "auto",
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        flags = {"batch_first": batch_first, "dropout": dropout, "bidirectional": bidirectional}
        super().__init__(sizes, flags, backend, chunk)
        self.cell = find_cell(cell)
        self._part_names = tuple(self.cell.parts(hidden_size))
        shapes = layer_shapes(self.cell, *sizes.values(), bidirectional=bool(bidirectional))
        self._register(shapes, device, dtype)

    def reset_parameters(self) -> None:
        """Fill every parameter as the cell says."""
        with torch.no_grad():
            for name in self._weight_names:
                self.cell.initialise(name.rpartition("_l")[0], getattr(self, name), None)

    def extra_repr(self) -> str:
        """The cell's name, and the arguments that differ from their defaults."""
        return f"{self.cell.name!r}, {super().extra_repr()}"

    def _call(self, params: dict[str, Tensor], *inputs: Any, **options: Any) -> Any:
        return recurrent(self.cell, params, *inputs, **options)

    def _given(self, state: Any, what: str) -> Parts:
        if isinstance(state, tuple | list):
            return tuple(state)
        names = ", ".join(self._part_names)
        raise InputError(f"{what} must be the tensors ({names}), got {_kind(state)}")

    def _returned(self, parts: Sequence[Tensor]) -> Parts:
        return tuple(parts)


def _kind(state: Any) -> str:
    return type(state).__name__


def _check_projection(proj_size: Any) -> None:
    if not isinstance(proj_size, int | np.integer):
        kind = type(proj_size).__name__
        raise TypeError(f"proj_size must be a whole number, got {proj_size!r} ({kind})")
    if proj_size != 0:
        raise InputError(
            f"proj_size={proj_size} is not supported; use proj_size=0 and a Linear behind it"
        )
