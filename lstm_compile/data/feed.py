"""Batches on the device of a model: cut there, or cut on the CPU and copied ahead of their use."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lstm_compile.data.examples import Examples
from lstm_compile.model.batch import Batch

LARGEST_SHARE = 0.25  # of a device's free memory that data may take


def feed(
    data: Examples, lengths: Tensor, groups: Iterable[Sequence[Tensor]], device: torch.device
) -> Iterator[list[Batch]]:
    """The batches of each group, on `device`, in order.

    Data on the device are cut there. Data on the CPU are cut there and copied to a CUDA device from
    pinned memory on a stream of their own, one group ahead of the one that is worked on.

    `lengths` are the data's, and `groups` the int64 indices of each batch, both on the CPU.
    """
    cut = ([gather_rows(data, lengths, indices) for indices in group] for group in groups)
    return copied_ahead(cut, device) if data.x.device != device else cut


def gather_rows(data: Examples, lengths: Tensor, indices: Tensor) -> Batch:
    """The batch at `indices`, int64 on the CPU; `lengths` are the data's, on the CPU too.

    So are the batch's: nothing need be asked of the device, which would have to be waited for.
    """
    own = lengths[indices]
    batch = data.gather(indices.to(data.x.device), time=max(1, int(own.max())))
    return batch._replace(lengths=own)


def within_reach(data: Examples, device: torch.device) -> Examples:
    """The data on `device` where they take a small part of its free memory, else as they are."""
    if device.type == "cpu":
        return data.to(device)
    free, _ = torch.cuda.mem_get_info(device)
    return data if data.x.nbytes > LARGEST_SHARE * free else data.to(device)


def copied_ahead(groups: Iterable[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """Each group on a CUDA device, but for the lengths; the next is under way meanwhile."""
    stream, waiting = torch.cuda.Stream(device), None
    for group in groups:
        with torch.cuda.stream(stream):
            copies = [_copy(batch, device) for batch in group]
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copies, stream.record_event()
    if waiting is not None:
        yield _arrived(*waiting)


def _copy(batch: Batch, device: torch.device) -> Batch:
    parts = batch._asdict() | {"lengths": None}
    return Batch(**tree_map(partial(_copied, device=device), parts) | {"lengths": batch.lengths})


def _copied(part: Any, device: torch.device) -> Any:
    if not isinstance(part, Tensor):
        return part
    return part.pin_memory().to(device, non_blocking=True)


def _arrived(group: list[Batch], event: torch.cuda.Event) -> list[Batch]:
    working = torch.cuda.current_stream(group[0].x.device)
    working.wait_event(event)
    for batch in group:
        for part in tree_leaves(batch):
            if isinstance(part, Tensor) and part is not batch.lengths:
                part.record_stream(working)  # else its memory could be reused while it is read
    return group
