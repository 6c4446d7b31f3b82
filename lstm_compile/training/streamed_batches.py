"""Batches of a stream: units are read in a thread while the model learns from those before."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from lstm_compile.data.feed import copied_ahead
from lstm_compile.data.stream import Pool, Stream
from lstm_compile.model.batch import Batch
from lstm_compile.training.processes import Team
from lstm_compile.training.settings import TrainingConfig

AT_ONCE = 2  # pools in memory: neighbours, as a batch may take rows of both


class Streamed:
    """One epoch of a stream for one process of a team, which reads its share of the units.

    Attributes:
        batches: int64 rows of each batch, the same in all processes.
    """

    def __init__(
        self,
        data: Stream,
        training: TrainingConfig,
        generator: Generator,
        team: Team,
        device: torch.device,
    ) -> None:
        plan = data.plan(training.batch_size, generator, training.epoch_size)
        self.batches = plan.batches
        self._data, self._team, self._device = data, team, device
        self._lengths, self._unit = data.lengths, data.units
        units = len(data.survey.steps)
        self._pool, self._owner = torch.full((2, units), -1)
        self._units = list[list[int]]()  # of each pool, those that this process reads
        for number, pool in enumerate(plan.pools):
            self._pool[pool] = number
            if len(pool) >= team.size:  # else each process reads all of them
                self._owner[pool] = torch.arange(len(pool)) % team.size
            self._units.append([u for u in pool if self._owner[u] in (-1, team.rank)])

    def share(self, rows: Tensor) -> Tensor:
        """The rows of a batch that this process takes: those that it reads."""
        owner = self._owner[self._unit[rows]]
        shared = self._team.share(rows[owner == -1], self._lengths)
        return torch.cat([rows[owner == self._team.rank], shared])

    def feed(self, groups: Sequence[Sequence[Tensor]]) -> Iterator[list[Batch]]:
        """The batches of each group, on the device; of rows that others read, zeros of their shape.

        Raises:
            InputError: a file changed.
        """
        cut = self._feed(groups)
        return cut if self._device.type == "cpu" else copied_ahead(cut, self._device)

    def _feed(self, groups: Sequence[Sequence[Tensor]]) -> Iterator[list[Batch]]:
        with Reader(self._data, self._units, self._pools_of(groups)) as reader:
            for number, group in enumerate(groups):
                reader.forget(number)
                yield [self._cut(reader, rows) for rows in group]

    def _pools_of(self, groups: Iterable[Sequence[Tensor]]) -> list[list[int]]:
        """The pools that each group takes rows from."""
        return [
            self._pool[self._unit[torch.cat(list(group))]].unique().tolist() for group in groups
        ]

    def _cut(self, reader: "Reader", rows: Tensor) -> Batch:
        owner, time = self._owner[self._unit[rows]], max(1, int(self._lengths[rows].max()))
        if not owner.eq(-1).logical_or_(owner == self._team.rank).all():
            return blank(self._data, rows)
        pools, numbers = self._pool[self._unit[rows]], self._data.kept[rows]
        parts = [
            reader.pool(pool).gather(numbers[pools == pool], time)
            for pool in pools.unique().tolist()
        ]
        x, lengths, y = (torch.cat(columns) for columns in list(zip(*parts, strict=True))[:3])
        return Batch(x, lengths, y)


class Reader:
    """Pools in the order of their use, at most `AT_ONCE` in memory where a group takes no more."""

    def __init__(self, data: Stream, units: list[list[int]], uses: list[list[int]]) -> None:
        self._data, self._units = data, units
        self._last = {pool: number for number, pools in enumerate(uses) for pool in pools}
        self._waiting = sorted(self._last)
        self._found = dict[int, Future[Pool]]()
        self._rooms = dict[int, Tensor]()  # of pools; what is not in use is taken again
        self._free = list[Tensor]()
        self._thread = ThreadPoolExecutor(1, "reader")

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._found.clear()
        self._thread.shutdown(cancel_futures=True)

    def forget(self, group: int) -> None:
        """Drop what no group from this one on takes, and read ahead in its place."""
        for pool in [pool for pool in self._found if self._last[pool] < group]:
            del self._found[pool]
            self._free.append(self._rooms.pop(pool))
        while self._waiting and len(self._found) < AT_ONCE:
            self._begin()

    def pool(self, number: int) -> Pool:
        """A pool, once it is read."""
        while number not in self._found:
            self._begin()
        return self._found[number].result()

    def _begin(self) -> None:
        pool = self._waiting.pop(0)
        # its own memory again and again: what is freed and taken in other sizes falls to pieces
        self._rooms[pool] = self._free.pop() if self._free else self._data.room()
        self._found[pool] = self._thread.submit(
            self._data.load, self._units[pool], self._rooms[pool]
        )


def blank(data: Stream, rows: Tensor) -> Batch:
    """A batch of the shape and the labels of rows, whose features are zeros."""
    lengths = data.lengths[rows]
    x = torch.zeros(len(rows), max(1, int(lengths.max())), len(data.schema.features))
    return Batch(x, lengths, data.y[rows])
