"""Training on text: truncated back-propagation through time, its state carried from chunk to chunk.

Source: Williams and Peng 1990; the lanes are those of Zaremba et al. 2014, section 4.1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lstm_compile.cell import LSTMState
from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import IGNORED, Batch
from lstm_compile.errors import RunError
from lstm_compile.model import Params, forward, trainable
from lstm_compile.recurrence import DEFAULT_CHUNK, Backend
from lstm_compile.tasks import Metrics, row_weight
from lstm_compile.training.config import TrainingConfig
from lstm_compile.training.lanes import carried, chunks, steps_of
from lstm_compile.training.passes import Passed
from lstm_compile.training.step import (
    average_update,
    init_adam,
    learning_rate_at,
    plateau_factor,
    train_step,
)

LANES = 16  # of evaluation; each begins without a past
TIME = 256


class Scores(NamedTuple):
    """How well a text was told, block by block."""

    nats: Tensor  # float64 (blocks,), sums of -log p
    tokens: Tensor  # float64 (blocks,), how many
    time: int  # most steps of a block


def text_passes(
    params: Params,
    config: ModelConfig,
    training: TrainingConfig,
    train: Corpus,
    losses: Sequence[float],
) -> Iterator[Passed]:
    """Train on text, pass by pass; arguments as of `passes`.

    Raises:
        RunError: a loss was not finite.
    """
    device = params["head.bias"].device
    optimizer, average = init_adam(params, training.freeze), trainable(params, training.freeze)
    lanes, time = training.batch_size, training.unroll
    steps = training.epochs * steps_of(train, lanes, time)
    for number in range(1, training.epochs + 1):
        state: LSTMState | None = None
        found, weights, rate = [], [], 0.0
        factor = plateau_factor(losses[: number - 1], training)
        for batch, fresh in chunks(train, lanes, time):
            batch = _on(batch, device)
            rate = factor * learning_rate_at(min(optimizer.step, steps - 1), steps, training)
            params, optimizer, loss, state = train_step(
                params, optimizer, batch, rate, config, training, state=carried(state, fresh)
            )
            if training.ema:
                average = average_update(average, params, optimizer.step, training.ema)
            found.append(loss)
            weights.append(float(row_weight(batch.y)))
        mean = float(torch.stack(found).cpu().double() @ torch.tensor(weights).double())
        mean /= sum(weights)
        if not math.isfinite(mean):
            raise RunError(f"the loss of epoch {number} is {mean}; lower --learning-rate")
        yield Passed({**params, **average} if training.ema else params, mean, rate)


def score_text(
    params: Params,
    config: ModelConfig,
    corpus: Corpus,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
    time: int = TIME,
) -> Scores:
    """What a model says of a text that it reads from the start, the state carried along.

    `time` is what `window_of` gives.
    """
    device, state = params["head.bias"].device, None

    def logits_of(batch: Batch, fresh: Tensor) -> Tensor:
        nonlocal state
        batch = _on(batch, device)
        logits, state = forward(
            params, config, batch.x, batch.lengths, carried(state, fresh),
            resets=batch.resets, backend=backend, chunk=chunk,
        )  # fmt: skip
        return logits

    with torch.inference_mode():
        return scores_of(logits_of, corpus, time)


def window_of(config: ModelConfig, unroll: int | None) -> int:
    """Steps that a text is read by: Transformer blocks see no more of it than in training.

    Args:
        config: of the model.
        unroll: that it was trained with; None if nobody knows.
    """
    return (unroll or TIME) if config.transformer_layers else TIME


def scores_of(
    logits_of: Callable[[Batch, Tensor], Tensor], corpus: Corpus, time: int = TIME
) -> Scores:
    """Score anything that gives logits (lanes, time, vocabulary) to chunks, in their order."""
    nats, counts = [], []
    for batch, fresh in chunks(corpus, LANES, time):
        logits = logits_of(batch, fresh).cpu()
        cost = cross_entropy(logits.mT, batch.y, ignore_index=IGNORED, reduction="none")
        nats.append(cost.double().sum(1))
        counts.append(batch.lengths.double())
    sums, tokens = torch.cat(nats), torch.cat(counts)
    return Scores(sums[tokens > 0], tokens[tokens > 0], time)


def text_metrics(scores: Scores) -> Metrics:
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


def _on(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return batch._replace(x=batch.x.to(device), y=batch.y.to(device))
