"""Streams sequences of Parquet files, for training on more data than memory holds."""

import hashlib
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from lstm_compile.data.batches import MAX_POOL_BATCHES
from lstm_compile.data.schema import Schema
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.tables.columns import Progress
from lstm_compile.data.tables.parquet_index import ParquetIndex
from lstm_compile.data.tables.roles import Roles
from lstm_compile.model.batch import Batch
from lstm_compile.model.scaling import Moments, moments_of
from lstm_compile.tasks import fitting_task

FLOAT = 4  # bytes
BLOCK = 1 << 16  # rows converted to float64 at once


class EpochPlan(NamedTuple):
    """The rows of an epoch and their order; it is the same for any number of processes."""

    pools: list[list[int]]  # the units that are in memory together, one pool after the other
    batches: list[Tensor]  # int64 rows of each batch; its rows lie in one pool or in neighbours


@dataclass(frozen=True, eq=False)
class Stream:
    """Some of the sequences of Parquet files, read when they are needed."""

    index: ParquetIndex  # of all sequences
    schema: Schema
    labels: Tensor  # `y` of all sequences: int64 (sequences,), or float32 (sequences, targets)
    kept: Tensor  # int64 (rows,), the sequences of this stream, rising
    pool_bytes: int  # the most bytes for the features of a pool
    # of the features of the rows; none before `open_stream`
    moments: Moments = field(default_factory=lambda: moments_of(torch.empty(0, 0, device="cpu")))

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def lengths(self) -> Tensor:
        """Steps of each row, int64 (rows,)."""
        return torch.from_numpy(self.index.lengths)[self.kept]

    @property
    def y(self) -> Tensor:
        """The labels of the rows."""
        return self.labels[self.kept]

    @property
    def roles(self) -> Roles:
        """The columns of the files."""
        return self.index.roles

    @property
    def task(self) -> str:
        """The first task that fits the labels: `classify`, or `regress`."""
        return self.task_like(None)

    def task_like(self, wanted: str | None) -> str:
        """The wanted task where it fits the labels, else the first that does."""
        return fitting_task(wanted, can_stream=True, has_classes=bool(self.schema.classes))

    @property
    def units(self) -> Tensor:
        """The unit of each row, int64 (rows,)."""
        bounds = torch.from_numpy(self.index.bounds)
        return torch.bucketize(self.kept, bounds, right=True) - 1

    def digest(self) -> str:
        """The sha256 of names, lengths, labels and moments, as 64 hexadecimal digits."""
        digest = hashlib.sha256(self.schema.to_json().encode())
        _, *moments = self.moments
        for tensor in (self.lengths, self.y, *moments):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def plan(self, batch_size: int, generator: Generator, most: int = 0) -> EpochPlan:
        """The pools and batches of an epoch.

        It shuffles the units, joins them to pools, shuffles the rows of each pool, and makes
        batches of rows of similar length.

        Args:
            batch_size: rows a batch; the last may have fewer.
            generator: on the CPU; the same state gives the same plan.
            most: rows of an epoch at most; 0 takes all.
        """
        lengths, bounds = self.lengths, torch.from_numpy(self.index.bounds)
        starts = torch.searchsorted(self.kept, bounds)  # of the rows of each unit
        used = (starts.diff() > 0).nonzero()[:, 0]
        used = used[torch.randperm(len(used), generator=generator, device="cpu")]
        pools, order = self._pools(used.tolist()), list[Tensor]()
        for pool in pools:
            rows = torch.cat(
                [torch.arange(int(starts[u]), int(starts[u + 1]), device="cpu") for u in pool]
            )
            order.append(rows[torch.randperm(len(rows), generator=generator, device="cpu")])
        rows = torch.cat(order)[: most or None]
        typical = len(rows) // len(pools)  # a window in one pool or two
        window = batch_size * min(max(typical // batch_size, 1), MAX_POOL_BATCHES)
        batches = list[Tensor]()
        for part in rows.split(window):
            ranked = part[lengths[part].argsort(stable=True)].split(batch_size)
            batches += [
                ranked[i] for i in torch.randperm(len(ranked), generator=generator, device="cpu")
            ]
        return EpochPlan(pools, batches)

    def _pools(self, units: list[int]) -> list[list[int]]:
        """Consecutive units, as many a pool as `pool_bytes` hold."""
        sizes = torch.from_numpy(self.index.steps) * len(self.schema.features) * FLOAT
        pools, free = list[list[int]](), 0
        for unit in units:
            if not pools or free < int(sizes[unit]):
                pools.append([])
                free = self.pool_bytes
            pools[-1].append(unit)
            free -= int(sizes[unit])
        return pools

    def room(self) -> Tensor:
        """Memory for the features of any pool, float32 (values,)."""
        return torch.empty(self.pool_bytes // FLOAT, device="cpu")

    def load(self, units: list[int], room: Tensor) -> "Pool":
        """Read all sequences of some units.

        They are the units of one pool; `room` is the memory for their features.

        Raises:
            InputError: a file changed.
        """
        units, bounds, width = sorted(units), self.index.bounds, len(self.schema.features)
        numbers = torch.cat(
            [torch.arange(bounds[unit], bounds[unit + 1], device="cpu") for unit in units]
        )
        steps = self.index.steps[units].tolist()
        x = room[: sum(steps) * width].view(-1, width)
        for unit, part in zip(units, x.split(steps), strict=True):
            self.index.read(unit, part.numpy())
        return Pool(numbers, self.sequences(numbers, x))

    def sequences(self, numbers: Tensor, x: Tensor) -> Sequences:
        """The sequences with these numbers, int64 (count,), and the features `x`."""
        lengths = torch.from_numpy(self.index.lengths)[numbers]
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        names = self.schema.features, self.schema.classes, self.schema.targets
        return Sequences(x, offsets, self.labels[numbers], *names, self.roles)


class Pool(NamedTuple):
    """Sequences in memory."""

    numbers: Tensor  # int64 (sequences,), their places in the index, rising
    sequences: Sequences  # with all their steps

    def gather(self, numbers: Tensor, time: int) -> Batch:
        """A batch of the sequences with these numbers, padded to `time` steps."""
        return self.sequences.gather(torch.searchsorted(self.numbers, numbers), time)


def open_stream(
    stream: Stream, wanted: list[Tensor], progress: Progress | None = None
) -> tuple[Stream, list[Sequences]]:
    """Read all features once, for the moments of a stream and the sequences to keep in memory.

    Each of `wanted` holds numbers of sequences to keep, int64 (count,), rising.

    Raises:
        InputError: a value is no number or missing, or a file changed.
    """
    index, width = stream.index, len(stream.schema.features)
    lengths = torch.from_numpy(index.lengths)
    is_kept, *masks = (_mask(numbers, len(index)) for numbers in (stream.kept, *wanted))
    parts = [torch.empty(int(lengths[numbers].sum()), width, device="cpu") for numbers in wanted]
    places, moments, filled = [0] * len(parts), moments_of(torch.empty(0, width, device="cpu")), 0
    for unit in range(len(index.steps)):
        values, count = index.read(unit)
        x, filled = torch.from_numpy(values), filled + count
        here = slice(int(index.bounds[unit]), int(index.bounds[unit + 1]))
        for block in x[is_kept[here].repeat_interleave(lengths[here])].split(BLOCK):
            moments = moments.merge(moments_of(block))
        for number, mask in enumerate(masks):
            rows = x[mask[here].repeat_interleave(lengths[here])]
            parts[number][places[number] : places[number] + len(rows)] = rows
            places[number] += len(rows)
        if progress is not None:
            progress(int(index.steps[: unit + 1].sum()), int(index.steps.sum()))
    index = replace(index, roles=replace(index.roles, filled=filled))
    stream = replace(stream, index=index, moments=moments)
    return stream, [stream.sequences(*pair) for pair in zip(wanted, parts, strict=True)]


def _mask(numbers: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.bool, device="cpu").index_fill(0, numbers, value=True)
