"""Several processes that train one model: each takes its rows of every batch, all take one step.

Processes are started by `torchrun`, which tells each its place in the environment. Source:
https://docs.pytorch.org/docs/stable/elastic/run.html
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from lstm_compile.errors import RunError
from lstm_compile.model.model import Params
from lstm_compile.recurrence.cell import LSTMState


class Team(NamedTuple):
    """The place of a process among those that train together; one alone is the first of one.

    Attributes:
        rank: 0, 1, ...; process 0 writes and speaks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The rows of a batch that this process takes: as many as the others, and as long.

        Args:
            rows: int64 (batch,), the same everywhere.
            lengths: int64, of all rows there are.

        Returns:
            Every row once over all processes; empty where there are more processes than rows.
        """
        if self.size == 1:
            return rows
        ranked = rows[lengths[rows].argsort(stable=True, descending=True)]
        turns = torch.arange(len(rows)) % (2 * self.size)  # 0, 1, 1, 0, 0, ...
        return ranked[torch.minimum(turns, 2 * self.size - 1 - turns) == self.rank]

    def average(self, gradients: Params, loss: Tensor, weight: Tensor) -> tuple[Params, Tensor]:
        """The means over all processes of what each found on its rows, weighted by `weight`.

        One flat tensor goes round. A process of weight 0 adds nothing, whatever its gradients are.
        """
        if self.size == 1:
            return gradients, loss
        parts = [value.reshape(-1) for value in gradients.values()]
        flat = torch.cat([*parts, loss.reshape(1), torch.ones_like(loss).reshape(1)])
        flat = self.sum(torch.where(weight > 0, flat * weight, 0.0))
        *means, mean_loss = (flat[:-1] / flat[-1]).split([*(len(part) for part in parts), 1])
        found = {
            name: mean.view_as(gradients[name]) for name, mean in zip(gradients, means, strict=True)
        }
        return found, mean_loss[0]

    def lanes(self, count: int) -> slice:
        """The lanes of a text that this process takes."""
        return slice(self.rank, count, self.size)

    def whole_state(self, state: LSTMState, count: int) -> LSTMState:
        """The states of all `count` lanes, each from the process that has it."""
        if self.size == 1:
            return state
        whole = state.h.new_zeros(2, state.h.shape[0], count, state.h.shape[2])
        whole[:, :, self.lanes(count)] = torch.stack(state)
        return LSTMState(*self.sum(whole))

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, everywhere the same; `value` is changed.

        Raises:
            PeerLostError: another process has ended.
        """
        if self.size > 1:
            with _peers():
                distributed.all_reduce(value)
        return value

    def first(self, value: Tensor) -> Tensor:
        """What process 0 has; `value` is changed.

        Raises:
            PeerLostError: another process has ended.
        """
        if self.size > 1:
            with _peers():
                distributed.broadcast(value, src=0)
        return value

    def agree(self, value: Any) -> Any:
        """What process 0 says.

        Raises:
            PeerLostError: another process has ended.
        """
        if self.size == 1:
            return value
        said = [value]
        with _peers():
            distributed.broadcast_object_list(said, src=0)
        return said[0]


ALONE = Team()


class PeerLostError(RunError):
    """Another process of the team has ended; its own message says why."""


@contextmanager
def _peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(
            "another process of this training has ended; its own message says why"
        ) from error


def team() -> Team:
    """The place of this process, as `together` has made it."""
    if distributed.is_available() and distributed.is_initialized():
        return Team(distributed.get_rank(), distributed.get_world_size())
    return Team()


def is_restarted() -> bool:
    """Whether `torchrun` started this process in place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def together(device: str) -> Iterator[Team]:
    """Meet the other processes that `torchrun` has started, if it has; part at the end.

    Args:
        device: `--device`; on CUDA each process of a machine takes a device of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield Team()
        return
    from torch.distributed.rendezvous import rendezvous  # not where torch lacks distributed

    is_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if is_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun has one store for all its attempts, and the addresses of the processes that
        # failed lie in it still. Source: https://github.com/pytorch/pytorch/issues/135712
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed.PrefixStore(  # type: ignore[attr-defined]
            f"attempt {attempt}", store
        )
    backend = "nccl" if is_cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield team()
    finally:
        distributed.destroy_process_group()
