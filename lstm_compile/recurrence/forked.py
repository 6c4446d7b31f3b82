"""Processes forked after PyTorch used several threads: their next parallel call would never end.

GNU OpenMP, which PyTorch uses on Linux, does not start its threads again in a child. nn.LSTM hangs
there. Workers of a DataLoader use one thread and are safe.
"""

import os
import sys

import torch


class _Pool:
    """Whether this process, or the one it was forked from, ran the recurrence in threads."""

    used = False
    is_lost = False


def _after_fork() -> None:
    _Pool.is_lost = _Pool.used


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_after_fork)


def check_threads() -> None:
    """Refuse a call that would hang, and remember one that uses threads.

    Raises:
        RuntimeError: the process was forked after such a call, and would use threads again.
    """
    if torch.get_num_threads() == 1:
        return
    if _Pool.is_lost:
        raise RuntimeError(
            "this process was forked after an LSTM ran in several threads, which it does not have: "
            "the call would never end; call torch.set_num_threads(1) in it, or start processes "
            "with multiprocessing's spawn or forkserver"
        )
    _Pool.used = True
