"""The batches of one epoch: which rows they have, and their way to the device."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from lstm_compile.data.batches import bucketed_batches
from lstm_compile.data.examples import Examples
from lstm_compile.data.feed import copied_ahead, feed
from lstm_compile.data.stream import Pool, Stream
from lstm_compile.model.batch import Batch
from lstm_compile.training.processes import ProcessGroup
from lstm_compile.training.settings import TrainingConfig

AT_ONCE = 2  # pools in memory: two neighbours, as a batch may take rows of both


class InMemory:
    """The batches of data in memory: of all rows, or of `epoch_size` rows drawn at random."""

    def __init__(
        self,
        data: Examples,
        training: TrainingConfig,
        generator: Generator,
        processes: ProcessGroup,
        device: torch.device,
    ) -> None:
        self._data, self._processes, self._device = data, processes, device
        self._lengths = data.lengths.cpu()
        rows = torch.arange(len(self._lengths), device="cpu")
        if 0 < training.epoch_size < len(rows):
            rows = torch.randperm(len(rows), generator=generator, device="cpu")[
                : training.epoch_size
            ]
        batches = bucketed_batches(self._lengths[rows], training.batch_size, generator)
        # int64 rows of each batch, on the CPU; the same in all processes
        self.batches = [rows[batch] for batch in batches]

    def share(self, rows: Tensor) -> Tensor:
        """The rows of a batch that this process takes; none where there are too few for all."""
        return self._processes.share(rows, self._lengths)

    def feed(self, groups: Sequence[Sequence[Tensor]]) -> Iterator[list[Batch]]:
        """The batches of each group, on the device, in order."""
        return feed(self._data, self._lengths, groups, self._device)


class Streamed:
    """The batches of data larger than memory, whose units a thread reads ahead.

    Each process reads its share of the units (the row groups of the files).
    """

    def __init__(
        self,
        data: Stream,
        training: TrainingConfig,
        generator: Generator,
        processes: ProcessGroup,
        device: torch.device,
    ) -> None:
        plan = data.plan(training.batch_size, generator, training.epoch_size)
        self.batches = plan.batches  # int64 rows of each, on the CPU; the same in all processes
        self._data, self._processes, self._device = data, processes, device
        self._lengths, self._unit = data.lengths, data.units
        units = len(data.index.steps)
        self._pool, self._owner = torch.full((2, units), -1, device="cpu")
        self._units = list[list[int]]()  # of each pool, those that this process reads
        for number, pool in enumerate(plan.pools):
            self._pool[pool] = number
            if len(pool) >= processes.size:  # else each process reads all of them
                self._owner[pool] = torch.arange(len(pool), device="cpu") % processes.size
            self._units.append([u for u in pool if self._owner[u] in (-1, processes.rank)])

    def share(self, rows: Tensor) -> Tensor:
        """The rows of a batch that this process reads."""
        owner = self._owner[self._unit[rows]]
        shared = self._processes.share(rows[owner == -1], self._lengths)
        return torch.cat([rows[owner == self._processes.rank], shared])

    def feed(self, groups: Sequence[Sequence[Tensor]]) -> Iterator[list[Batch]]:
        """The batches of each group, on the device; zeros in place of rows that others read.

        Raises:
            InputError: a file changed.
        """
        cut = self._feed(groups)
        return cut if self._device.type == "cpu" else copied_ahead(cut, self._device)

    def _feed(self, groups: Sequence[Sequence[Tensor]]) -> Iterator[list[Batch]]:
        rows_of = [torch.cat(list(group)) for group in groups]
        uses = [self._pool[self._unit[rows]].unique().tolist() for rows in rows_of]
        with Reader(self._data, self._units, uses) as reader:
            for number, group in enumerate(groups):
                reader.forget(number)
                yield [self._cut(reader, rows) for rows in group]

    def _cut(self, reader: "Reader", rows: Tensor) -> Batch:
        owner, time = self._owner[self._unit[rows]], max(1, int(self._lengths[rows].max()))
        if not owner.eq(-1).logical_or_(owner == self._processes.rank).all():
            return blank_batch(self._data, rows)
        pools, numbers = self._pool[self._unit[rows]], self._data.kept[rows]
        parts = [
            reader.pool(pool).gather(numbers[pools == pool], time)
            for pool in pools.unique().tolist()
        ]
        x, lengths, y = (torch.cat(columns) for columns in list(zip(*parts, strict=True))[:3])
        return Batch(x, lengths, y)


class Reader:
    """Reads pools in the order of their use; keeps `AT_ONCE` in memory, or what a group needs.

    `units` are those of each pool that this process reads, `uses` the pools of each group.
    """

    def __init__(self, data: Stream, units: list[list[int]], uses: list[list[int]]) -> None:
        self._data, self._units = data, units
        self._last = {pool: number for number, pools in enumerate(uses) for pool in pools}
        self._waiting = sorted(self._last)
        self._found = dict[int, Future[Pool]]()
        self._rooms = dict[int, Tensor]()  # the memory of each pool, used again and again
        self._free = list[Tensor]()
        self._thread = ThreadPoolExecutor(1, "reader")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._found.clear()
        self._thread.shutdown(cancel_futures=True)

    def forget(self, group: int) -> None:
        """Drop the pools that neither this group nor a later one uses, and read ahead."""
        for pool in [pool for pool in self._found if self._last[pool] < group]:
            del self._found[pool]
            self._free.append(self._rooms.pop(pool))
        while self._waiting and len(self._found) < AT_ONCE:
            self._begin()

    def pool(self, number: int) -> Pool:
        """Wait for a pool."""
        while number not in self._found:
            self._begin()
        return self._found[number].result()

    def _begin(self) -> None:
        pool = self._waiting.pop(0)
        # new memory for each pool would leave the heap in pieces of other sizes
        self._rooms[pool] = self._free.pop() if self._free else self._data.room()
        self._found[pool] = self._thread.submit(
            self._data.load, self._units[pool], self._rooms[pool]
        )


def blank_batch(data: Stream, rows: Tensor) -> Batch:
    """A batch with the shape and the labels of rows; its features are zeros."""
    lengths = data.lengths[rows]
    x = torch.zeros(len(rows), max(1, int(lengths.max())), len(data.schema.features), device="cpu")
    return Batch(x, lengths, data.y[rows])
