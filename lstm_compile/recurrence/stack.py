"""A stack of layers and directions: one call's arguments, and the loop over its layers."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.recurrence.cell import Outputs
from lstm_compile.recurrence.weights import Direction

# x, weights, h0, c0 and whether the direction reads from the end; h0 and c0 (rows, hidden_size)
RunLayer = Callable[[Tensor, Direction, Tensor, Tensor, bool], Outputs]


class Call(NamedTuple):
    """The arguments of `lstm`, checked, with defaults filled in."""

    layers: Sequence[Sequence[Direction]]  # the weights by layer and direction
    x: Tensor  # (batch, time, input_size)
    lengths: Tensor | None  # (batch,) int64 on any device; None: every step is valid
    resets: Tensor | None  # (batch, time) bool on any device; only for one direction
    # (num_layers * num_directions, batch, hidden_size); with resets twice the batch, as
    # `recurrence.resets.both_states` gives them
    h0: Tensor
    c0: Tensor  # likewise
    backwards: Sequence[bool]  # for each direction of a layer: whether it reads from the end
    dropout: float  # probability of dropping a value between layers
    backend: str  # `reference`, `compiled`, `vendor` or `auto`
    chunk: int  # steps unrolled in one graph by `compiled`

    def tensors(self) -> Iterator[Tensor]:
        """All that derivatives may be asked of: x, the initial state and the weights."""
        yield from (self.x, self.h0, self.c0)
        for layer in self.layers:
            for weights in layer:
                yield from weights.tensors()


def run_stack(call: Call, run: RunLayer) -> Outputs:
    """Layer after layer, its directions side by side, each of them computed by `run`.

    Returns:
        output with num_directions * hidden_size features, otherwise shaped as `call.x`, and the
        final state, each (num_layers * num_directions, batch, hidden_size).
    """
    x = call.x
    states: list[list[Tensor]] = []
    for depth, layer in enumerate(call.layers):
        if depth and call.dropout:
            x = torch.nn.functional.dropout(x, call.dropout)
        outputs = []
        for weights, backward in zip(layer, call.backwards, strict=True):
            row = len(states)
            y, *state = run(x, weights, call.h0[row], call.c0[row], backward)
            outputs.append(y)
            states.append(state)
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
    h, c = zip(*states, strict=True)
    return x, torch.stack(h), torch.stack(c)
