"""Text in lanes: each row of a batch continues where the same row of the batch before stopped.

A pair is a token and the next token of its document. All pairs are cut into equal parts, one for
each lane. A chunk marks where documents begin; there the state is reset to zero, so that no
prediction uses, or crosses, the end of a document.

Source: truncated back-propagation through time, Williams and Peng 1990; the lanes are those of
Zaremba et al. 2014, section 4.1.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import IGNORED
from lstm_compile.model.batch import Batch


class Chunk(NamedTuple):
    """The next steps of every lane."""

    # `x` int64 tokens (lanes, time), 0 in the padding; `y` the token after each; `resets` where a
    # document begins, None where none does
    batch: Batch
    fresh: Tensor  # bool (lanes,), the lanes that begin from a zero state


def chunks(corpus: Corpus, lanes: int, time: int, done: int = 0) -> Iterator[Chunk]:
    """Every pair of a token and the next of its document, once; `done` chunks are skipped.

    A chunk has at most `time` steps, and a row for each lane; a finished lane has length 0.
    """
    edges = _edges(corpus, lanes)
    for start in range(done * time, int(np.diff(edges).max()), time):
        pair = edges[:-1] + start
        batch = _cut(corpus, pair, (edges[1:] - pair).clip(0, time))
        begins = (
            torch.zeros(lanes, 1, device="cpu").bool() if batch.resets is None else batch.resets
        )
        yield Chunk(batch, begins[:, 0] | (start == 0))


def places_at(corpus: Corpus, lanes: int, time: int, number: int) -> Tensor:
    """The first token of each lane in chunk `number`, from 0, int64 (lanes,)."""
    pairs = _pairs(corpus)
    pair = (_edges(corpus, lanes)[:-1] + number * time).clip(max=pairs[-1] - 1)
    return torch.from_numpy(pair + np.searchsorted(pairs, pair, side="right") - 1)


def steps_of(corpus: Corpus, lanes: int, time: int) -> int:
    """The number of chunks, at least 1."""
    return max(1, -(-int(np.diff(_edges(corpus, lanes)).max()) // time))


def carried(state: tuple[Tensor, ...] | None, fresh: Tensor | None) -> tuple[Tensor, ...] | None:
    """The state at the begin of a chunk: `state`, with zeros in the `fresh` lanes."""
    if state is None or fresh is None:
        return None
    keep = ~fresh.to(state[0].device)[:, None]
    return tuple(torch.where(keep, part, 0.0) for part in state)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch of tokens on the device of a model; `lengths` and `resets` stay on the CPU."""
    if device.type == "cpu":
        return batch
    return batch._replace(x=batch.x.to(device), y=batch.y.to(device))


def _pairs(corpus: Corpus) -> np.ndarray:
    """The first pair of each document, and the number of pairs; the last token begins none."""
    pairs: np.ndarray = corpus.starts.numpy() - np.arange(len(corpus.starts))
    return pairs


def _edges(corpus: Corpus, lanes: int) -> np.ndarray:
    """The first pair of each lane, and the number of pairs."""
    edges: np.ndarray = np.arange(lanes + 1) * _pairs(corpus)[-1] // lanes
    return edges


def _cut(corpus: Corpus, first: np.ndarray, lengths: np.ndarray) -> Batch:
    """`lengths` pairs of each lane, from the pair `first` on."""
    step, begins = np.arange(lengths.max()), _pairs(corpus)
    is_valid = step < lengths[:, None]
    pair = np.where(is_valid, first[:, None] + step, 0)
    document = np.searchsorted(begins, pair, side="right") - 1
    resets = is_valid & (pair == begins[document])
    place, padding = torch.from_numpy(pair + document), torch.from_numpy(~is_valid)
    return Batch(
        corpus.tokens[place].long().masked_fill(padding, 0),
        torch.from_numpy(lengths),
        corpus.tokens[place + 1].long().masked_fill(padding, IGNORED),
        resets=torch.from_numpy(resets) if resets.any() else None,
    )
