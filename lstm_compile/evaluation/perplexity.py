"""How well a model predicts a text, its state carried from chunk to chunk, beside baselines.

The baselines are counts of characters and of pairs of characters.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding

from lstm_compile.config import Backend, ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.lanes import carried, chunks, on_device
from lstm_compile.data.sequences import IGNORED
from lstm_compile.data.text_files import BLOCK
from lstm_compile.evaluation.backend import evaluation_backend
from lstm_compile.evaluation.linear import Baseline
from lstm_compile.evaluation.verdict import Evaluation, best_of, summed_interval, verdict
from lstm_compile.model.batch import Batch
from lstm_compile.model.model import Params, forward
from lstm_compile.recurrence.operator import DEFAULT_CHUNK
from lstm_compile.tasks.metrics import TextScores, text_metrics

LANES = 16  # of evaluation; each starts from zeros
TIME = 256
UNIGRAM, BIGRAM = "character frequencies", "bigram frequencies"
LARGEST = 1024  # a vocabulary whose pairs are counted
NATS_PER_BIT = 0.6931471805599453


def score_text(
    params: Params,
    config: ModelConfig,
    corpus: Corpus,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
    time: int = TIME,
) -> TextScores:
    """Score a language model on a text, carrying the state from chunk to chunk.

    `time` is what `window_of` gives.
    """
    device, state = params["head.bias"].device, None
    backend = evaluation_backend(config, backend, len(corpus) // LANES, LANES, device)

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
    """The steps of a chunk: Transformer blocks see as many of them as in training.

    `unroll` is how many those were: any value that a file may hold, None if unknown.
    """
    if config.transformer_layers and isinstance(unroll, int) and unroll > 0:
        return unroll
    return TIME


def scores_of(
    logits_of: Callable[[Batch, Tensor], Tensor], corpus: Corpus, time: int = TIME
) -> TextScores:
    """Score a text with `logits_of`, which gives (lanes, time, vocabulary) to chunks in order."""
    nats, counts = [], []
    for batch, fresh in chunks(corpus, LANES, time):
        logits = logits_of(batch, fresh).cpu()
        cost = cross_entropy(logits.mT, batch.y, ignore_index=IGNORED, reduction="none")
        nats.append(cost.double().sum(1))
        counts.append(batch.lengths.double())
    sums, tokens = torch.cat(nats), torch.cat(counts)
    return TextScores(sums[tokens > 0], tokens[tokens > 0], time)


def fit_text_baselines(train: Corpus) -> dict[str, Baseline]:
    """Frequencies of characters and of pairs of characters, with one added to each count.

    Both are stored as log p of the next token: as a bias, and as a weight for each last token.
    """
    size = len(train.vocabulary)
    singles = torch.ones(size, dtype=torch.float64, device="cpu")
    pairs = torch.ones(size * size if size <= LARGEST else 0, dtype=torch.float64, device="cpu")
    for start in range(0, len(train), BLOCK):
        block = train.tokens[start : start + BLOCK + 1].long()
        singles += torch.bincount(block[:BLOCK], minlength=size)
        if len(pairs):
            pairs += torch.bincount(block[:-1] * size + block[1:], minlength=size * size)
    if len(pairs):  # minus the pairs across two documents
        ends = train.starts[1:-1]
        across = train.tokens[ends - 1].long() * size + train.tokens[ends]
        pairs -= torch.bincount(across, minlength=size * size)
    fitted = {
        UNIGRAM: Baseline(
            torch.zeros(0, size, device="cpu").double(), (singles / singles.sum()).log()
        )
    }
    if len(pairs):
        table = pairs.view(size, size)
        fitted[BIGRAM] = Baseline(
            (table / table.sum(1, True)).log(), torch.zeros(size, device="cpu").double()
        )
    return fitted


def evaluate_text(
    scores: TextScores, task: str, corpus: Corpus, baselines: Mapping[str, Baseline]
) -> Evaluation:
    """Compare a model's scores of a text with those of the baselines.

    `corpus` is the text that was scored; `baselines` are those of `fit_text_baselines`, or none.
    """
    own, rows = text_metrics(scores), int(scores.tokens.sum())
    found = {name: _scores(each, corpus, scores.time) for name, each in baselines.items()}
    others = {name: text_metrics(each) for name, each in found.items()}
    interval = None
    if others:  # of the bits per character that the model saves
        gain = (found[best_of(task, others)].nats - scores.nats) / NATS_PER_BIT
        interval = summed_interval(gain, scores.tokens)
    return Evaluation(task, rows, own, others, verdict(task, own, others, interval), interval)


def _scores(baseline: Baseline, corpus: Corpus, time: int) -> TextScores:
    def logits_of(batch: Batch, fresh: Tensor) -> Tensor:  # noqa: ARG001 (there is no state)
        if len(baseline.weight):
            return embedding(batch.x, baseline.weight)
        return baseline.bias.expand(*batch.x.shape, -1)

    return scores_of(logits_of, corpus, time)
