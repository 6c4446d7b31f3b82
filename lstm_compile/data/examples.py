"""The interface of data for training and evaluation: whole sequences, or windows of series."""

from typing import Protocol

import torch
from torch import Tensor

from lstm_compile.data.schema import Schema
from lstm_compile.data.series.series_table import SeriesRoles
from lstm_compile.data.tables.roles import FilledGaps, Roles
from lstm_compile.model.batch import Batch


class Examples(Protocol):
    """Labelled rows: `Sequences`, or `Windows` of series."""

    @property
    def x(self) -> Tensor:
        """All steps, one after the other, float32 (steps, features)."""

    @property
    def y(self) -> Tensor:
        """The classes or targets, one for each row."""

    @property
    def unit(self) -> Tensor | None:
        """See `Batch.unit`."""

    @property
    def lengths(self) -> Tensor:
        """Steps of each row, int64 (rows,)."""

    @property
    def schema(self) -> Schema:
        """The names, as a trained model carries them."""

    @property
    def roles(self) -> Roles | FilledGaps | SeriesRoles | None:
        """The columns of the long table that the rows come from."""

    def __len__(self) -> int: ...

    def gather(self, indices: Tensor, time: int | None = None) -> Batch:
        """Cut a padded batch of the rows at `indices`."""

    def to(self, device: torch.device | str) -> "Examples":
        """The same rows on `device`."""
