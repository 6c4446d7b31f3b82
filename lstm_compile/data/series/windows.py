"""Windows of series: a context and the steps after it, as indices into the flat rows.

A model may also take the location and scale of each series, computed from its own past only.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.data.series.series_table import SeriesRoles, SeriesTable
from lstm_compile.errors import InputError
from lstm_compile.model.batch import Batch, Given

TRAIN, VALIDATION, TEST = 0, 1, 2
CONSTANT = 1e-6  # a deviation below this share of the values is rounding error


@dataclass(frozen=True, eq=False)
class History:
    """Cumulative sums over the rows of all series, minus the first value of each series."""

    first: Tensor  # float64 (series, columns)
    starts: Tensor  # int64 (series,), the first row of each
    sums: Tensor  # float64 (rows + 1, columns), of all rows before
    squares: Tensor  # float64 (rows + 1, columns)

    @classmethod
    def of(cls, x: Tensor, starts: Tensor) -> "History":
        """The sums of `x` (rows, columns), whose series begin at the rows `starts`."""
        lengths = torch.diff(starts, append=starts.new_tensor([len(x)]))
        first = x[starts].double()
        # far from zero, the squares would lose the digits of the deviations
        centred = x.double() - first.repeat_interleave(lengths, 0)
        sums, squares = (pad(v.cumsum(0), (0, 0, 1, 0)) for v in (centred, centred.square()))
        return cls(first, starts, sums, squares)

    def at(self, origins: Tensor, series: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each series before an origin, float32 (origins, columns) each.

        The deviation of a constant series is 1, and so is that of one without a past.
        """
        begin = self.starts[series]
        count = (origins - begin).clamp(min=1).double()[:, None]
        mean = (self.sums[origins] - self.sums[begin]) / count
        square = (self.squares[origins] - self.squares[begin]) / count
        scale = (square - mean.square()).clamp(min=0).sqrt()
        location = mean + self.first[series]
        is_constant = scale <= CONSTANT * location.abs()
        return location.float(), torch.where(is_constant, 1.0, scale).float()

    def to(self, device: torch.device | str) -> "History":
        """The same sums on `device`."""
        return History(*(getattr(self, part.name).to(device) for part in fields(self)))


class Shape(NamedTuple):
    """The sizes of a window."""

    context: int  # most steps before the origin
    horizon: int


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows into the flat rows of series; window i forecasts rows from `origins[i]` on."""

    x: Tensor  # float32 (rows, features), finite, the series one after the other
    # bool (rows, targets), True where a target was filled: training and evaluation leave it out
    is_unknown: Tensor
    starts: Tensor  # int64 (windows,), the first row of each context
    origins: Tensor  # int64 (windows,), the first row to forecast
    series: Tensor  # int64 (windows,), the number of each window's series
    statics: Tensor  # int64 (series, statics)
    shape: Shape
    table: SeriesTable  # the series these are windows of; always on the CPU
    # for `series_location` and `series_scale`, if the model has them
    history: History | None = None

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def lengths(self) -> Tensor:
        """Steps of each context, int64 (windows,)."""
        return self.origins - self.starts

    @property
    def y(self) -> Tensor:
        """The targets to forecast, float32 (windows, horizon, targets); NaN where unknown."""
        return self._truth(self.origins)

    @property
    def subtracted(self) -> Tensor:
        """What is added to each target for the user's own numbers, float64 (targets,)."""
        count = len(self.schema.targets)
        return torch.tensor(
            self.table.info.subtracted[:count] or [0.0] * count, device="cpu"
        ).double()

    @property
    def unit(self) -> Tensor | None:
        """The unit of each target's error, (windows, targets); None if not scaled by series."""
        targets = len(self.schema.targets)
        return self.history.at(self.origins, self.series)[1][:, :targets] if self.history else None

    @property
    def schema(self) -> Schema:
        """The names, as a trained model carries them."""
        return self.table.schema

    @property
    def features(self) -> tuple[str, ...]:
        """One name a feature."""
        return self.schema.features

    @property
    def targets(self) -> tuple[str, ...]:
        """One name a target."""
        return self.schema.targets

    @property
    def roles(self) -> SeriesRoles:
        """The columns of the table."""
        return self.table.roles

    def digest(self) -> str:
        """The sha256 of the names and of all rows up to the end of the last horizon."""
        stop = int(self.origins.max()) + self.shape.horizon
        # earlier versions did not tell stamps without a zone from others
        series = replace(self.table.info, zone=self.table.info.zone or None)
        digest = hashlib.sha256(replace(self.schema, series=series).to_json().encode())
        for part in (self.table.ticks[:stop], self.table.x[:stop], self.table.lengths):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def select(self, indices: Tensor) -> "Windows":
        """The windows at `indices`, int64 (count,), on the same rows."""
        chosen = {name: getattr(self, name)[indices] for name in ("starts", "origins", "series")}
        return replace(self, **chosen)

    def to(self, device: torch.device | str) -> "Windows":
        """The same windows with all tensors on `device`."""
        names = ("x", "is_unknown", "starts", "origins", "series", "statics")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, history=self.history and self.history.to(device))

    def gather(self, indices: Tensor, time: int | None = None) -> Batch:
        """Cut a padded batch out of the flat rows, by indexing alone; see `sequences.gather`."""
        starts, origins = self.starts[indices], self.origins[indices]
        lengths = origins - starts
        steps = torch.arange(time or max(1, int(lengths.max())), device=starts.device)
        is_valid = steps < lengths[:, None]
        x = self.x[torch.where(is_valid, starts[:, None] + steps, 0)]
        x = x.masked_fill(~is_valid[..., None], 0.0)
        given, scale = self._given(origins, self.series[indices]), None
        if given.series_scale is not None:
            scale = given.series_scale[:, : len(self.schema.targets)]
        return Batch(x, lengths, self._truth(origins), given, scale)

    def _given(self, origins: Tensor, series: Tensor) -> Given:
        info = self.table.info
        stop = len(self.schema.features) - len(self.schema.category_sizes) - info.indicator
        columns = slice(stop - len(info.known_features), stop)
        known = self._horizon(self.x, origins)[..., columns]
        location, scale = self.history.at(origins, series) if self.history else (None, None)
        return Given(
            known if info.known_features else None,
            self.statics[series] if info.statics else None,
            location,
            scale,
        )

    def _truth(self, origins: Tensor) -> Tensor:
        targets = self._horizon(self.x[:, : len(self.schema.targets)], origins)
        return targets.masked_fill(self._horizon(self.is_unknown, origins), torch.nan)

    def _horizon(self, rows: Tensor, origins: Tensor) -> Tensor:
        return rows[origins[:, None] + torch.arange(self.shape.horizon, device=origins.device)]


def windows_of(table: SeriesTable, config: ModelConfig) -> Windows:
    """Every window of series, as a model wants them; see `all_windows`."""
    return all_windows(table, Shape(config.context, config.horizon), config.scaling == "series")


def all_windows(table: SeriesTable, shape: Shape, by_series: bool = False) -> Windows:
    """Every window whose horizon lies within its series and holds a known target.

    The shortest context has `shape.context` steps, or half of the steps before the last origin if
    these are fewer. No origin follows a step that was interpolated: its value uses a later one.

    `by_series` says that the windows are for a model with `scaling` `series`.
    """
    targets = len(table.schema.targets)
    rows, unknown = torch.from_numpy(table.x), table.missing[:, :targets]
    origins, owners, starts = _origins(table, shape)
    known = np.concatenate(([0], (~unknown).any(1).cumsum()))
    keep = known[origins + shape.horizon] > known[origins]
    keep &= known[origins] > known[starts]
    if table.roles.gaps == "linear":
        keep &= ~table.missing[origins - 1].any(1)
    history, levels = None, targets + len(table.roles.options.features)
    if by_series:
        history = History.of(rows[:, :levels], torch.from_numpy(table.starts))
    begins, places, numbers = (torch.from_numpy(each[keep]) for each in (starts, origins, owners))
    is_unknown, statics = torch.from_numpy(unknown), torch.from_numpy(table.statics)
    return Windows(rows, is_unknown, begins, places, numbers, statics, shape, table, history)


def _origins(table: SeriesTable, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row of each origin, its series and the first row of its context, int64 (windows,)."""
    room = table.history - shape.horizon  # the last origin of each series
    first = np.minimum(shape.context, np.maximum(room // 2, 1))
    count = np.maximum(room - first + 1, 0)
    owners = np.repeat(np.arange(len(count)), count)
    step = np.arange(len(owners)) - np.repeat(count.cumsum() - count, count) + first[owners]
    begin = table.starts[owners]
    return begin + step, owners, begin + np.maximum(step - shape.context, 0)


def split_windows(windows: Windows) -> dict[str, Windows]:
    """The windows of each part: `train`, `validation`, `test`, and `known` (all before the test).

    The horizon of a window lies in its part; its context may begin in the part before.
    """
    parts = torch.from_numpy(windows.table.split.part_of(windows.table.ticks))
    begin, end = parts[windows.origins], parts[windows.origins + windows.shape.horizon - 1]
    chosen: Mapping[str, Tensor] = {
        "train": end == TRAIN,
        "validation": (begin == VALIDATION) & (end == VALIDATION),
        "known": end <= VALIDATION,
        "test": begin == TEST,
    }
    return {name: windows.select(mask.nonzero()[:, 0]) for name, mask in chosen.items()}


def thinned(windows: Windows, stride: int = 1, most: int = 0) -> Windows:
    """Every `stride`-th window, and of these at most `most` (0: all), at equal distances."""
    indices = torch.arange(0, len(windows), stride, device="cpu")
    if most and len(indices) > most:
        indices = indices[torch.linspace(0, len(indices) - 1, most, device="cpu").round().long()]
    return windows.select(indices)


def require(windows: Windows, part: str) -> Windows:
    """The same windows, if there is any.

    Raises:
        InputError: there is none.
    """
    if len(windows):
        return windows
    raise InputError(
        f"{windows.table.place}: no window of {windows.shape.horizon} steps lies in the {part} "
        "part; take a smaller --horizon, other shares (--validation, --test-share) or a longer "
        "table"
    )


def check_lengths(table: SeriesTable, horizon: int) -> None:
    """Check that a window fits into every series.

    Raises:
        InputError: names the first series that is too short, and its first row.
    """
    for series in np.flatnonzero(table.history <= horizon)[:1]:
        begin = table.stamps(table.ticks[table.starts[series:][:1]])[0]
        raise InputError(
            f"{table.name(series)}, from {begin} on: {table.history[series]} steps with a target, "
            f"expected more than the horizon of {horizon}; take a smaller --horizon or leave the "
            "series out"
        )
