"""Text in lanes: each row of a batch reads on where the same row of the batch before stopped.

The tokens are cut into as many parts of one size as there are lanes. A chunk of a lane never goes
beyond the end of a document: it is shorter there, and the next begins from the initial state.

Source: truncated back-propagation through time, Williams and Peng 1990; the lanes are those of
Zaremba et al. 2014, section 4.1.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstm_compile.cell import LSTMState
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import IGNORED, Batch


class Chunk(NamedTuple):
    """Steps of every lane.

    Attributes:
        batch: `x` int64 tokens (lanes, time), 0 in the padding; `y` the token after each.
        fresh: bool (lanes,), which lanes begin anew.
    """

    batch: Batch
    fresh: Tensor


def chunks(corpus: Corpus, lanes: int, time: int, done: int = 0) -> Iterator[Chunk]:
    """Every pair of a token and the next of its document, once.

    Args:
        corpus: on the CPU.
        lanes: rows of a batch; a lane that is through has length 0.
        time: most steps of a chunk.
        done: chunks at the start that are left out.
    """
    for position, lengths, fresh in islice(_windows(corpus, lanes, time), done, None):
        yield Chunk(_cut(corpus, position, lengths), torch.from_numpy(fresh))


def places_at(corpus: Corpus, lanes: int, time: int, number: int) -> Tensor:
    """Where in the text each lane stands as chunk 0, 1, ... begins, int64 (lanes,)."""
    position, *_ = next(islice(_windows(corpus, lanes, time), number, None))
    return torch.from_numpy(position)


def _windows(
    corpus: Corpus, lanes: int, time: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each chunk where its lanes begin, how long they are, and which of them begin anew."""
    total, starts = len(corpus), corpus.starts.numpy()
    stops = np.linspace(0, total, lanes + 1).astype(np.int64)
    position, stop = stops[:-1].copy(), stops[1:]
    fresh = np.ones(lanes, bool)
    while True:
        end = starts[np.searchsorted(starts, position, side="right").clip(max=len(starts) - 1)]
        through = (position >= end - 1) & (position < stop)  # no pair is left in this document
        while through.any():
            position[through], fresh[through] = end[through], True
            end = starts[np.searchsorted(starts, position, side="right").clip(max=len(starts) - 1)]
            through = (position >= end - 1) & (position < np.minimum(stop, total))
        lengths = np.minimum(np.minimum(stop, end - 1) - position, time).clip(min=0)
        if not lengths.any():
            return
        yield position, lengths, fresh
        position, fresh = position + lengths, np.zeros(lanes, bool)


def steps_of(corpus: Corpus, lanes: int, time: int) -> int:
    """How many chunks there are, as long as documents are long."""
    return max(1, -(-len(corpus) // (lanes * time)))


def carried(state: LSTMState | None, fresh: Tensor | None) -> LSTMState | None:
    """The state that a chunk begins from: zeros where a lane begins anew."""
    if state is None or fresh is None:
        return None
    keep = ~fresh.to(state.h.device)[:, None]
    return LSTMState(*(torch.where(keep, part, 0.0) for part in state))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch of tokens on the device of a model; `lengths` stay on the CPU."""
    if device.type == "cpu":
        return batch
    return batch._replace(x=batch.x.to(device), y=batch.y.to(device))


def _cut(corpus: Corpus, position: np.ndarray, lengths: np.ndarray) -> Batch:
    longest = int(lengths.max())
    step = np.arange(longest)
    valid = torch.from_numpy(step < lengths[:, None])
    index = torch.from_numpy(position[:, None] + step)
    x = corpus.tokens[torch.where(valid, index, 0)].long().masked_fill(~valid, 0)
    y = corpus.tokens[torch.where(valid, index + 1, 0)].long().masked_fill(~valid, IGNORED)
    return Batch(x, torch.from_numpy(lengths), y)
