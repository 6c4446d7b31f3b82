"""Score an exported language model on a text, carrying the state between chunks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lstm_compile.data.corpus import Corpus
from lstm_compile.data.lanes import chunks
from lstm_compile.errors import InputError
from lstm_compile.evaluation.perplexity import LANES, scores_of
from lstm_compile.export.runtime import OnnxModel, Streams
from lstm_compile.model.batch import Batch
from lstm_compile.tasks.metrics import TextScores

LARGEST = 1 << 27  # logits in memory at once, 512 MiB
Logits = Callable[[Batch, Tensor], Tensor]


def score_exported(model: OnnxModel | Streams, corpus: Corpus) -> TextScores:
    """The scores of `score_text`, from a sequence file or a streaming file.

    Raises:
        InputError: the text is too long for a sequence file, which takes each lane of it at once.
    """
    logits_of = _stepping(model) if isinstance(model, Streams) else _whole(model, corpus)
    return scores_of(logits_of, corpus)


def _stepping(streams: Streams) -> Logits:
    def logits_of(batch: Batch, fresh: Tensor) -> Tensor:
        pieces = _pieces(batch)
        found: dict[int, list[Any]] = {lane: [] for lane, cut in enumerate(pieces) if cut}
        streams.reset(fresh.nonzero()[:, 0].tolist())
        while lanes := [lane for lane in found if pieces[lane]]:
            streams.reset([lane for lane in lanes if found[lane]])  # a document begins
            answers = streams.push(lanes, [pieces[lane].pop(0) for lane in lanes])
            for lane, answer in zip(lanes, answers, strict=True):
                found[lane].append(answer)
        rows = [np.concatenate(parts) for parts in found.values()]
        return _padded(batch, list(found), rows, streams.schema.outputs)

    return logits_of


def _whole(model: OnnxModel, corpus: Corpus) -> Logits:
    if len(corpus) * model.outputs > LARGEST:
        raise InputError(
            f"a text of {len(corpus)} tokens is too long for the sequence file, which reads it at "
            "once; name the run folder, or the file of export --onnx --streaming"
        )
    if model.config.get("transformer_layers"):
        raise InputError(
            "Transformer blocks read text by windows, the state carried from one to the next, and "
            "the sequence file hands no state on; name the run folder"
        )
    (batch, _), *_ = chunks(corpus, LANES, len(corpus))  # all of each lane
    ready = [
        np.concatenate([np.zeros((0, model.outputs), np.float32), *model.predict_steps(pieces)])
        for pieces in _pieces(batch)
    ]

    def logits_of(batch: Batch, _: Tensor) -> Tensor:
        lanes, found = batch.lengths.nonzero()[:, 0].tolist(), []
        for lane in lanes:
            length = int(batch.lengths[lane])
            found.append(ready[lane][:length])
            ready[lane] = ready[lane][length:]
        return _padded(batch, lanes, found, model.outputs)

    return logits_of


def _pieces(batch: Batch) -> list[list[Any]]:
    """The part of each document that each lane reads; the first may continue an earlier chunk."""
    x, resets = batch.x, torch.zeros_like(batch.x) if batch.resets is None else batch.resets
    cut = [
        np.split(x[lane, :length].numpy(), np.flatnonzero(resets[lane, :length]))
        for lane, length in enumerate(batch.lengths.tolist())
    ]
    return [[piece for piece in pieces if len(piece)] for pieces in cut]


def _padded(batch: Batch, lanes: list[int], rows: Any, outputs: int) -> Tensor:
    """Rows (time, outputs) of some lanes as logits (lanes, time, outputs) of all."""
    logits = np.zeros((*batch.x.shape, outputs), np.float32)
    for lane, row in zip(lanes, rows, strict=True):
        logits[lane, : len(row)] = row
    return torch.from_numpy(logits)
