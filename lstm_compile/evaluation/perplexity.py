"""How well a model tells a text, its state carried from chunk to chunk."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.lanes import carried, chunks, on_device
from lstm_compile.data.sequences import IGNORED
from lstm_compile.model.batch import Batch
from lstm_compile.model.model import Params, forward
from lstm_compile.recurrence.operator import DEFAULT_CHUNK, Backend
from lstm_compile.tasks.scoring import Metrics

LANES = 16  # of evaluation; each begins without a past
TIME = 256


class TextScores(NamedTuple):
    """How well a text was told, block by block."""

    nats: Tensor  # float64 (blocks,), sums of -log p
    tokens: Tensor  # float64 (blocks,), how many
    time: int  # most steps of a block


def score_text(
    params: Params,
    config: ModelConfig,
    corpus: Corpus,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
    time: int = TIME,
) -> TextScores:
    """What a model says of a text that it reads from the start, the state carried along.

    `time` is what `window_of` gives.
    """
    device, state = params["head.bias"].device, None

    def logits_of(batch: Batch, fresh: Tensor) -> Tensor:
        nonlocal state
        batch = on_device(batch, device)
        logits, state = forward(
            params, config, batch.x, batch.lengths, carried(state, fresh),
            resets=batch.resets, backend=backend, chunk=chunk,
        )  # fmt: skip
        return logits

    with torch.inference_mode():
        return scores_of(logits_of, corpus, time)


def window_of(config: ModelConfig, unroll: object) -> int:
    """Steps that a text is read by: Transformer blocks see no more of it than in training.

    Args:
        config: of the model.
        unroll: that it was trained with; what a file says may be anything, None if nothing.
    """
    if config.transformer_layers and isinstance(unroll, int) and unroll > 0:
        return unroll
    return TIME


def scores_of(
    logits_of: Callable[[Batch, Tensor], Tensor], corpus: Corpus, time: int = TIME
) -> TextScores:
    """Score anything that gives logits (lanes, time, vocabulary) to chunks, in their order."""
    nats, counts = [], []
    for batch, fresh in chunks(corpus, LANES, time):
        logits = logits_of(batch, fresh).cpu()
        cost = cross_entropy(logits.mT, batch.y, ignore_index=IGNORED, reduction="none")
        nats.append(cost.double().sum(1))
        counts.append(batch.lengths.double())
    sums, tokens = torch.cat(nats), torch.cat(counts)
    return TextScores(sums[tokens > 0], tokens[tokens > 0], time)


def text_metrics(scores: TextScores) -> Metrics:
    """`loss` (nats a character), `bits_per_character` and `perplexity`.

    With the vocabulary `byte` a character is a byte.
    """
    loss = float(scores.nats.sum() / scores.tokens.sum())
    if not math.isfinite(loss):
        return {"loss": loss, "bits_per_character": loss, "perplexity": loss}
    return {
        "loss": loss,
        "bits_per_character": loss / math.log(2),
        "perplexity": math.exp(min(loss, 700.0)),
    }
