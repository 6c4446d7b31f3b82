"""Puts sequences into batches, and splits off those for validation."""

import torch
from torch import Generator, Tensor

from lstm_compile.errors import InputError

# Larger pools save padding. With fewer pools, each epoch would have almost the same batches.
MAX_POOL_BATCHES = 32
MIN_POOLS = 2


def bucketed_batches(lengths: Tensor, batch_size: int, generator: Generator) -> list[Tensor]:
    """Random batches of sequences with similar lengths, so that little is padded.

    Shuffles, cuts into pools of whole batches, sorts each pool by length, cuts the pools into
    batches and shuffles the batches.

    Args:
        lengths: int64 (sequences,), on any device.
        batch_size: sequences a batch, at least 1; one batch may be smaller.
        generator: on the CPU; the same state gives the same batches.

    Returns:
        int64 index tensors on the CPU; every index occurs exactly once.

    Raises:
        InputError: `batch_size` is below 1.
    """
    _check_batch_size(batch_size)
    lengths = lengths.cpu()
    shuffled = torch.randperm(len(lengths), generator=generator, device="cpu")
    pool_batches = min(max(len(lengths) // (batch_size * MIN_POOLS), 1), MAX_POOL_BATCHES)
    pools = _cut(shuffled, batch_size * pool_batches)
    ranked = [pool[lengths[pool].argsort(stable=True)] for pool in pools]
    batches = [batch for pool in ranked for batch in _cut(pool, batch_size)]
    return [
        batches[i] for i in torch.randperm(len(batches), generator=generator, device="cpu").tolist()
    ]


def ordered_batches(lengths: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of rising length, for evaluation; no randomness.

    Args:
        lengths: int64 (sequences,), on any device.
        batch_size: sequences a batch, at least 1; the last may be smaller.

    Returns:
        int64 index tensors on the CPU; every index occurs exactly once.

    Raises:
        InputError: `batch_size` is below 1.
    """
    _check_batch_size(batch_size)
    return _cut(lengths.cpu().argsort(stable=True), batch_size)


def stratified_split(y: Tensor, fraction: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Choose sequences for validation at random, class by class where there are classes.

    Args:
        y: int64 (sequences,) class codes, or float32 (sequences, targets).
        fraction: of each class (of all rows, for targets) to keep for validation, between 0 and 1;
            rounded, but at least one row stays on each side. A class with one row is all training.
        generator: on the CPU; the same state gives the same split.

    Returns:
        Training and validation indices, int64, sorted, on the CPU.

    Raises:
        InputError: `fraction` is out of range, or nothing can be kept apart.
    """
    if not 0.0 < fraction < 1.0:
        raise InputError(f"the validation fraction must be between 0 and 1, got {fraction!r}")
    if len(y) < 2:
        raise InputError(f"a validation split needs at least 2 sequences, found {len(y)}")
    codes = (
        torch.zeros(len(y), dtype=torch.int64, device="cpu") if y.is_floating_point() else y.cpu()
    )
    is_validation = torch.zeros(len(y), dtype=torch.bool, device="cpu")
    for code in sorted(set(codes.tolist())):
        is_validation[_choose(torch.nonzero(codes == code)[:, 0], fraction, generator)] = True
    if not is_validation.any():
        raise InputError("a validation split needs a class with at least 2 sequences, found none")
    return torch.nonzero(~is_validation)[:, 0], torch.nonzero(is_validation)[:, 0]


def _choose(members: Tensor, fraction: float, generator: Generator) -> Tensor:
    count = min(max(round(len(members) * fraction), 1), len(members) - 1)
    return members[torch.randperm(len(members), generator=generator, device="cpu")[:count]]


def _cut(order: Tensor, size: int) -> list[Tensor]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size!r}")
