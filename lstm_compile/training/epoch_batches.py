"""The batches of an epoch, and the share of each that a process takes."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from lstm_compile.data.batches import bucketed_batches
from lstm_compile.data.examples import Examples
from lstm_compile.data.feed import feed
from lstm_compile.model.batch import Batch
from lstm_compile.training.processes import Team
from lstm_compile.training.settings import TrainingConfig


class Pass(Protocol):
    """The batches of one epoch, and what one process of a team takes of them."""

    @property
    def batches(self) -> list[Tensor]:
        """int64 rows of each batch, on the CPU; the same in all processes."""

    def share(self, rows: Tensor) -> Tensor:
        """The rows of a batch that this process takes; none where there are too few for all."""

    def feed(self, groups: Sequence[Sequence[Tensor]]) -> Iterator[list[Batch]]:
        """The batches of each group, on the device, in order."""


class InMemory(NamedTuple):
    """A pass over data in memory, whose `lengths` are on the CPU."""

    data: Examples
    lengths: Tensor
    batches: list[Tensor]
    team: Team
    device: torch.device

    def share(self, rows: Tensor) -> Tensor:
        """As many as the other processes take, and as long."""
        return self.team.share(rows, self.lengths)

    def feed(self, groups: Sequence[Sequence[Tensor]]) -> Iterator[list[Batch]]:
        """See `feed`."""
        return feed(self.data, self.lengths, groups, self.device)


def pass_in_memory(
    data: Examples, training: TrainingConfig, generator: Generator, team: Team, device: torch.device
) -> InMemory:
    """An epoch of all rows, or of `epoch_size` drawn at random."""
    lengths = data.lengths.cpu()
    rows = torch.arange(len(lengths))
    if 0 < training.epoch_size < len(lengths):
        rows = torch.randperm(len(lengths), generator=generator)[: training.epoch_size]
    batches = bucketed_batches(lengths[rows], training.batch_size, generator)
    return InMemory(data, lengths, [rows[batch] for batch in batches], team, device)
