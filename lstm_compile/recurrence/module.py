"""`LSTM`: the module form, which can replace nn.LSTM."""

import inspect
import math
import warnings
from numbers import Real
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from lstm_compile.config import Backend
from lstm_compile.errors import InputError
from lstm_compile.recurrence.cell import LSTMState, State, check_state
from lstm_compile.recurrence.function import lstm
from lstm_compile.recurrence.lengths import Lengths
from lstm_compile.recurrence.operator import DEFAULT_CHUNK, check_options
from lstm_compile.recurrence.stack import weight_shapes


class LSTM(nn.Module):
    """nn.LSTM's constructor, state_dict and forward, with `lengths` and a choice of backend.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in
            torch.nn.LSTM (https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html).
        proj_size: must be 0.
        device, dtype: of the parameters.
        backend: of every call that does not name one.
        chunk: steps unrolled in one graph by the backend `compiled`.

    Raises:
        InputError: proj_size is not 0, a size or probability is out of range, or there is no such
            backend.
        TypeError: a size or flag of another type.
    """

    # nn.LSTM's own, for programs that call them
    mode = "LSTM"
    check_input = nn.LSTM.check_input
    check_hidden_size = nn.LSTM.check_hidden_size
    check_forward_args = nn.LSTM.check_forward_args
    get_expected_hidden_size = nn.LSTM.get_expected_hidden_size
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: Backend = "auto",
        chunk: int = DEFAULT_CHUNK,
    ) -> None:
        super().__init__()
        _check_sizes(input_size, hidden_size, num_layers, proj_size)
        _check_flags(bias, batch_first, dropout, num_layers)
        check_options(backend, chunk)
        self.input_size, self.hidden_size, self.proj_size = input_size, hidden_size, 0
        self.num_layers, self.bidirectional, self.bias = num_layers, bidirectional, bias
        self.batch_first, self.dropout = batch_first, float(dropout)
        self.backend: Backend = backend
        self.chunk = chunk
        sizes = input_size, hidden_size, num_layers
        shapes = weight_shapes(*sizes, bidirectional=bool(bidirectional), bias=bool(bias))
        # read as attributes: parametrizations, pruning and sharding leave no parameter of that name
        self._weight_names = tuple(shapes)
        for name, shape in shapes.items():
            weight = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(weight))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)), as nn.LSTM does.

        The order of the draws is nn.LSTM's too, so that one seed gives both the same weights.
        """
        bound = 1 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights of each layer and direction, as nn.LSTM gives them."""
        weights, each = self._flat_weights, 4 if self.bias else 2
        return [weights[start : start + each] for start in range(0, len(weights), each)]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._weight_names]

    def flatten_parameters(self) -> None:
        """Do nothing: kept for programs that call it on an nn.LSTM."""

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse torch.jit.script, which asks for this."""
        raise InputError(
            "torch.jit.script cannot compile LSTM; use torch.export, torch.compile or "
            "torch.onnx.export(dynamo=True), or load the state_dict into an nn.LSTM"
        )

    def extra_repr(self) -> str:
        """The constructor's arguments that differ from their defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "backend"):
            value, default = getattr(self, name), _DEFAULTS[name].default
            parts += [] if value == default else [f"{name}={value}"]
        return ", ".join(parts)

    def forward(
        self,
        input: Any,  # noqa: A002 (nn.LSTM's name)
        hx: State | None = None,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: State | None = None,
        backend: Backend | None = None,
    ) -> tuple[Any, LSTMState]:
        """Run the stack.

        Args:
            input: (time, batch, input_size), (batch, time, input_size) with batch_first,
                (time, input_size) for one unbatched sequence, or a PackedSequence.
            hx: initial state, h and c each (num_layers * num_directions, batch, hidden_size),
                without the batch for unbatched input; zeros if None.
            lengths: (batch,) whole numbers for padded input, as `lstm` takes them; a PackedSequence
                carries its own.
            resets: bool, True where the state is reset to `hx` before the step, laid out as input:
                (time, batch), (batch, time) with batch_first, or (time,) for unbatched input. Not
                for bidirectional modules, nor for a PackedSequence.
            reset_state: the state after a reset, in place of `hx` and in its layout.
            backend: in place of the module's own.

        Returns:
            output in the layout of the input, and LSTMState(h, c) in the layout of hx.

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
            hx, reset_state = _batched(hx, "state"), _batched(reset_state, "reset_state")
            again = {"resets": None if resets is None else resets[None], "reset_state": reset_state}
            output, state = self._run(backend, input[None], None, hx, **again)
            return output[0], LSTMState(state.h[:, 0], state.c[:, 0])
        if input.dim() != 3:
            raise InputError(f"input must have 2 or 3 dimensions, got {tuple(input.shape)}")
        if self.batch_first:
            again = {"resets": resets, "reset_state": reset_state}
            return self._run(backend, input, lengths, hx, **again)
        resets = None if resets is None else _transposed(resets, input)
        x = input.transpose(0, 1)
        output, state = self._run(backend, x, lengths, hx, resets=resets, reset_state=reset_state)
        return output.transpose(0, 1).contiguous(), state  # nn.LSTM's can be viewed as it is

    def _traced_by_fx(self, x: Any, options: dict[str, Any]) -> tuple[Any, LSTMState]:
        """One node of the graph, as torch.fx makes one of nn.LSTM."""
        tracer = getattr(x, "tracer", None)
        if tracer is None or type(self) is not LSTM:
            raise InputError(f"input must be a tensor or PackedSequence, got {type(x).__name__}")
        given = {name: value for name, value in options.items() if value is not None}
        path = tracer.path_of_module(self)
        return tracer.create_proxy("call_module", path, (x,), given)  # type: ignore[no-any-return]

    def _forward_packed(
        self, packed: PackedSequence, hx: State | None, backend: Backend | None
    ) -> tuple[PackedSequence, LSTMState]:
        order, inverse = packed.sorted_indices, packed.unsorted_indices
        by_length = PackedSequence(packed.data, packed.batch_sizes)
        x, lengths = pad_packed_sequence(by_length, batch_first=True)
        if hx is not None and order is not None:
            check_state(hx, "state")
            hx = (hx[0].index_select(1, order), hx[1].index_select(1, order))
        output, state = self._run(backend, x, lengths, hx)
        data = pack_padded_sequence(output, lengths, batch_first=True).data
        if inverse is not None:
            state = LSTMState(*(part.index_select(1, inverse) for part in state))
        return PackedSequence(data, packed.batch_sizes, order, inverse), state

    def _run(
        self,
        backend: Backend | None,
        x: Tensor,
        lengths: Lengths | None,
        hx: State | None,
        **resets: Any,
    ) -> tuple[Tensor, LSTMState]:
        return lstm(
            {name: getattr(self, name) for name in self._weight_names},
            x, lengths, hx, **resets, dropout=self.dropout,
            training=self.training, backend=backend or self.backend, chunk=self.chunk,
        )  # fmt: skip


_DEFAULTS = inspect.signature(LSTM.__init__).parameters


def _check_sizes(input_size: int, hidden_size: int, num_layers: int, proj_size: int) -> None:
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
    for name, size in {**sizes, "proj_size": proj_size}.items():
        if not isinstance(size, int | np.integer):
            raise TypeError(f"{name} must be a whole number, got {size!r} ({type(size).__name__})")
    if proj_size != 0:
        raise InputError(
            f"proj_size={proj_size} is not supported; use proj_size=0 and a Linear behind it"
        )
    if min(sizes.values()) < 1:
        found = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(f"input_size, hidden_size and num_layers must be at least 1; got {found}")


def _check_flags(bias: Any, batch_first: Any, dropout: Any, num_layers: int) -> None:
    for name, flag in (("bias", bias), ("batch_first", batch_first)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {flag!r} ({type(flag).__name__})")
    is_number = isinstance(dropout, Real) and not isinstance(dropout, bool)
    if not (is_number and 0 <= dropout <= 1):
        raise InputError(f"dropout must be a number in [0, 1]; got dropout={dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout={dropout} does nothing with num_layers=1: it acts between layers",
            stacklevel=3,
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


def _batched(state: State | None, what: str) -> State | None:
    """The state of unbatched input as that of a batch of one."""
    if state is None:
        return None
    check_state(state, what)
    for name, part in zip(("h", "c"), state, strict=True):
        if part.dim() != 2:
            raise InputError(
                f"{what}.{name} of unbatched input must have 2 dimensions, got {tuple(part.shape)}"
            )
    return state[0][:, None], state[1][:, None]
