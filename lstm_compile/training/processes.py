"""Several processes that train one model: each takes its rows of every batch, all take one step.

`torchrun` starts the processes and tells each its rank in the environment. Source:
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


class ProcessGroup(NamedTuple):
    """The processes that train one model together, as one of them sees the group.

    Methods that communicate raise PeerLostError if another process has ended.
    """

    rank: int = 0  # of this process, 0, 1, ...
    size: int = 1  # the number of processes

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The rows of a batch for this process; all get about as many rows and steps.

        The `rows`, int64 (batch,), are the same in all processes, and each is given to one of them.
        A process may get none. `lengths`, int64, are of all rows of the data.
        """
        if self.size == 1:
            return rows
        ranked = rows[lengths[rows].argsort(stable=True, descending=True)]
        turns = torch.arange(len(rows), device="cpu") % (2 * self.size)  # 0, 1, 1, 0, 0, ...
        return ranked[torch.minimum(turns, 2 * self.size - 1 - turns) == self.rank]

    def average(self, gradients: Params, loss: Tensor, weight: Tensor) -> tuple[Params, Tensor]:
        """The means over all processes of gradients and loss, weighted by each one's `weight`.

        One flat tensor is sent. A process of weight 0 adds nothing, whatever its gradients are.
        """
        if self.size == 1:
            return gradients, loss
        parts = [value.reshape(-1) for value in gradients.values()]
        flat = torch.cat([*parts, loss.reshape(1), torch.ones_like(loss).reshape(1)])
        flat = self.sum(torch.where(weight > 0, flat * weight, 0.0))
        *means, mean_loss = (flat[:-1] / flat[-1]).split([*(len(part) for part in parts), 1])
        pairs = zip(gradients.items(), means, strict=True)
        return {name: mean.view_as(value) for (name, value), mean in pairs}, mean_loss[0]

    def every_nth(self, count: int) -> slice:
        """The part of `count` rows or lanes for this process: one in `size`."""
        return slice(self.rank, count, self.size)

    def gather_states(self, state: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
        """The states of all `count` lanes, each from the process that has it."""
        if self.size == 1:
            return state
        own = torch.cat(state, -1)
        whole = own.new_zeros(own.shape[0], count, own.shape[2])
        whole[:, self.every_nth(count)] = own
        parts = self.sum(whole).split([part.shape[2] for part in state], -1)
        return tuple(part.contiguous() for part in parts)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same in each; `value` is changed."""
        if self.size > 1:
            with _peer_errors():
                distributed.all_reduce(value)
        return value

    def broadcast(self, value: Tensor) -> Tensor:
        """The tensor of process 0; `value` is changed."""
        if self.size > 1:
            with _peer_errors():
                distributed.broadcast(value, src=0)
        return value

    def broadcast_object(self, value: Any) -> Any:
        """Any value of process 0."""
        if self.size == 1:
            return value
        values = [value]
        with _peer_errors():
            distributed.broadcast_object_list(values, src=0)
        return values[0]


ALONE = ProcessGroup()


class PeerLostError(RunError):
    """Another process of this training has ended; its own message says why."""


@contextmanager
def _peer_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError(
            "another process of this training has ended; its own message says why"
        ) from error


def current_processes() -> ProcessGroup:
    """The group that `joined_processes` has joined; outside of it this process alone."""
    if distributed.is_available() and distributed.is_initialized():
        return ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    return ALONE


def is_restarted() -> bool:
    """Whether `torchrun` started this process in place of one that failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined_processes(device: str) -> Iterator[ProcessGroup]:
    """Join the other processes that `torchrun` has started, if any; leave them at the end.

    On CUDA each process of a machine takes a device of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    from torch.distributed.rendezvous import rendezvous  # not where torch lacks distributed

    is_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if is_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun has one store for all its attempts, which still holds the addresses of the
        # processes that failed. Source: https://github.com/pytorch/pytorch/issues/135712
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    backend = "nccl" if is_cuda else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield current_processes()
    finally:
        distributed.destroy_process_group()
