"""Regularisers of a recurrence, for every cell, and how a stack is trained with them.

Each layer and direction has its own masks. They are drawn from PyTorch's global generator, as
dropout draws them, in the same order whatever backend computes. All but zoneout act in training
alone; values that are kept are scaled up there, so that nothing has to be scaled in evaluation.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout

from lstm_compile.errors import InputError
from lstm_compile.recurrence.any_cell import Cell
from lstm_compile.recurrence.lengths import reverse_within_length
from lstm_compile.recurrence.noisy_cell import Noise, noisy_cell

_LAYER = re.compile(r"(.+)_l(\d+)(_reverse)?")

Weights = dict[str, Tensor]  # the parameters of one layer and direction, with the suffix `_l0`
# weights, x, initial state, state after a reset -> output and final state
RunLayer = Callable[[Weights, Tensor, Any, Any], tuple[Tensor, Sequence[Tensor]]]


class Regularisers(NamedTuple):
    """The probability of each regulariser; 0 switches it off."""

    # one mask a sequence on the input of each layer (Gal and Ghahramani 2016)
    input_dropout: float = 0.0
    # one mask a sequence on the state that the recurrent product reads, and not on the state that
    # is carried on (Gal and Ghahramani 2016)
    hidden_dropout: float = 0.0
    # a value of the state keeps its old number at a step; in evaluation it becomes the expectation
    # zoneout * old + (1 - zoneout) * new (Krueger et al. 2017)
    zoneout: float = 0.0
    # one mask a call on the parameters whose name begins with weight_hh (Merity et al. 2018)
    weight_drop: float = 0.0

    def check(self) -> None:
        """Refuse what is no probability.

        Raises:
            InputError: a value below 0, above 1 or NaN.
        """
        for name, value in self._asdict().items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {value!r}")

    def in_effect(self, *, training: bool) -> "Regularisers":
        """Those that act: all in training, zoneout alone in evaluation."""
        return self if training else Regularisers(zoneout=self.zoneout)

    @property
    def noise(self) -> Noise:
        """What changes the step itself."""
        return Noise(self.hidden_dropout, self.zoneout)


NONE = Regularisers()


def train_by_layers(
    run: RunLayer,
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Tensor | None,
    states: tuple[Sequence[Tensor] | None, Sequence[Tensor] | None],
    regularise: Regularisers,
    drop: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A stack in training, layer by layer and direction by direction, each of them by `run`.

    A direction that reads from the end is given its rows in reverse. `states` are the initial state
    and that after a reset, `drop` is the dropout between layers; otherwise as `recurrent`.
    """
    finals: list[Sequence[Tensor]] = []
    lengths = None if lengths is None else lengths.to(x.device)
    for depth, layer in enumerate(_layers(params)):
        x = dropout(x, drop) if depth and drop else x
        outputs = []
        for is_reverse, weights in enumerate(layer):
            own = _locked(x, regularise.input_dropout)
            own = reverse_within_length(own, lengths) if is_reverse else own
            row = len(finals)
            given = (None if s is None else [part[row : row + 1] for part in s] for s in states)
            y, final = run(_dropped(weights, regularise.weight_drop), own, *given)
            outputs.append(reverse_within_length(y, lengths) if is_reverse else y)
            finals.append(final)
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
    return x, tuple(torch.cat(part) for part in zip(*finals, strict=True))


def with_noise(
    cell: Cell, regularise: Regularisers, x: Tensor, hidden_size: int
) -> tuple[Cell, Tensor]:
    """The cell whose step is regularised, and `x` with the masks that it takes as features."""
    if not any(regularise.noise):
        return cell, x
    noisy, masks = noisy_cell(cell, regularise.noise, x.shape[2], hidden_size)
    batch, time, _ = x.shape
    fresh = x.new_empty(batch, time, masks.fresh).bernoulli_(regularise.zoneout)
    kept = dropout(x.new_ones(batch, 1, masks.locked), regularise.hidden_dropout)
    return noisy, torch.cat([x, fresh, kept.expand(batch, time, masks.locked)], -1)


def _layers(params: Mapping[str, Tensor]) -> list[list[Weights]]:
    """The parameters by layer and direction."""
    found: dict[tuple[int, bool], Weights] = {}
    for key, value in params.items():
        match = _LAYER.fullmatch(key)
        assert match is not None, key  # the keys were checked
        found.setdefault((int(match[2]), bool(match[3])), {})[f"{match[1]}_l0"] = value
    directions = 1 + any(is_reverse for _, is_reverse in found)
    depth = len(found) // directions
    return [[found[layer, bool(way)] for way in range(directions)] for layer in range(depth)]


def _locked(x: Tensor, p: float) -> Tensor:
    """`x` (batch, time, features) with one mask for all steps of a row."""
    return x * dropout(x.new_ones(x.shape[0], 1, x.shape[2]), p) if p else x


def _dropped(weights: Weights, p: float) -> Weights:
    """The weights, with a mask on those that multiply the state."""
    if not p:
        return weights
    return {
        name: dropout(value, p) if name.startswith("weight_hh") else value
        for name, value in weights.items()
    }
