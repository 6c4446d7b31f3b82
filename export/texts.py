"""How well an exported file tells a text: the sequence file lane by lane, the streaming file on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import Batch
from lstm_compile.errors import InputError
from lstm_compile.export.runtime import OnnxModel, Streams
from lstm_compile.training.lanes import chunks
from lstm_compile.training.text import LANES, Scores, scores_of

LARGEST = 1 << 27  # logits that are in memory at once, 512 MiB
Logits = Callable[[Batch, Tensor], Tensor]


def score_exported(model: OnnxModel | Streams, corpus: Corpus) -> Scores:
    """What `score_text` gives, from an exported file; the state is carried along by either.

    Raises:
        InputError: the text is too long for a sequence file, which takes each lane of it at once.
    """
    logits_of = _stepping(model) if isinstance(model, Streams) else _whole(model, corpus)
    return scores_of(logits_of, corpus)


def _stepping(streams: Streams) -> Logits:
    def logits_of(batch: Batch, fresh: Tensor) -> Tensor:
        lanes = batch.lengths.nonzero()[:, 0].tolist()
        streams.reset(fresh.nonzero()[:, 0].tolist())
        rows = [batch.x[lane, : batch.lengths[lane]].numpy() for lane in lanes]
        return _padded(batch, lanes, streams.push(lanes, rows), streams.schema.outputs)

    return logits_of


def _whole(model: OnnxModel, corpus: Corpus) -> Logits:
    if len(corpus) * model.outputs > LARGEST:
        raise InputError(
            f"a text of {len(corpus)} tokens is too long for the sequence file, which reads it at "
            "once; name the run folder, or the file of export --onnx --streaming"
        )
    # the whole of what a lane reads before it begins anew, lane by lane
    ahead: list[list[Any]] = [[] for _ in range(LANES)]
    for batch, _ in chunks(corpus, LANES, len(corpus)):
        for lane, length in enumerate(batch.lengths.tolist()):
            ahead[lane] += [batch.x[lane, :length].numpy()] if length else []
    ready: list[Any] = [None] * LANES

    def logits_of(batch: Batch, fresh: Tensor) -> Tensor:
        lanes = batch.lengths.nonzero()[:, 0].tolist()
        found = []
        for lane in lanes:
            if fresh[lane]:
                (ready[lane],) = model.predict_steps([ahead[lane].pop(0)])
            length = int(batch.lengths[lane])
            found.append(ready[lane][:length])
            ready[lane] = ready[lane][length:]
        return _padded(batch, lanes, found, model.outputs)

    return logits_of


def _padded(batch: Batch, lanes: list[int], rows: Any, outputs: int) -> Tensor:
    """Rows (time, outputs) of some lanes as logits (lanes, time, outputs) of all."""
    logits = np.zeros((*batch.x.shape, outputs), np.float32)
    for lane, row in zip(lanes, rows, strict=True):
        logits[lane, : len(row)] = row
    return torch.from_numpy(logits)
