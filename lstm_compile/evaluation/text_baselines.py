"""How well a text is told, beside counts of characters and of pairs of them."""

import torch
from torch import Tensor
from torch.nn.functional import embedding

from lstm_compile.config import LM
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.text_files import BLOCK
from lstm_compile.evaluation.baselines import BIGRAM, UNIGRAM, Baseline
from lstm_compile.evaluation.bootstrap import Interval, summed_interval
from lstm_compile.evaluation.evaluate import Evaluation, best_of, verdict
from lstm_compile.evaluation.perplexity import TextScores, scores_of, text_metrics
from lstm_compile.model.batch import Batch

LARGEST = 1024  # a vocabulary whose pairs are counted
NATS_PER_BIT = 0.6931471805599453


def fit_text_baselines(train: Corpus) -> dict[str, Baseline]:
    """Frequencies with one added to each count: of characters, and of each after each other.

    Both are stored as scores (log p) of the next token: the bias, and the weight of the last.
    """
    size = len(train.vocabulary)
    singles = torch.ones(size, dtype=torch.float64)
    pairs = torch.ones(size * size if size <= LARGEST else 0, dtype=torch.float64)
    for start in range(0, len(train), BLOCK):
        block = train.tokens[start : start + BLOCK + 1].long()
        singles += torch.bincount(block[:BLOCK], minlength=size)
        if len(pairs):
            pairs += torch.bincount(block[:-1] * size + block[1:], minlength=size * size)
    if len(pairs):  # less those of two documents
        ends = train.starts[1:-1]
        across = train.tokens[ends - 1].long() * size + train.tokens[ends]
        pairs -= torch.bincount(across, minlength=size * size)
    fitted = {UNIGRAM: Baseline(torch.zeros(0, size).double(), (singles / singles.sum()).log())}
    if len(pairs):
        table = pairs.view(size, size)
        fitted[BIGRAM] = Baseline((table / table.sum(1, True)).log(), torch.zeros(size).double())
    return fitted


def evaluate_text(scores: TextScores, corpus: Corpus, baselines: dict[str, Baseline]) -> Evaluation:
    """Compare a model's scores of a text with those of the baselines.

    Args:
        scores: of the model, of `corpus`.
        corpus: what was scored.
        baselines: what `fit_text_baselines` gave; may be empty.
    """
    own, rows = text_metrics(scores), int(scores.tokens.sum())
    found = {name: _scores(each, corpus, scores.time) for name, each in baselines.items()}
    others = {name: text_metrics(each) for name, each in found.items()}
    interval = None
    if others:
        interval = _interval(scores, found[best_of(LM, others)])
    return Evaluation(LM, rows, own, others, verdict(LM, own, others, interval), interval)


def _scores(baseline: Baseline, corpus: Corpus, time: int) -> TextScores:
    def logits_of(batch: Batch, fresh: Tensor) -> Tensor:  # noqa: ARG001 (there is no state)
        if len(baseline.weight):
            return embedding(batch.x, baseline.weight)
        return baseline.bias.expand(*batch.x.shape, -1)

    return scores_of(logits_of, corpus, time)


def _interval(own: TextScores, other: TextScores) -> Interval | None:
    """Bounds of how many bits a character the model saves; blocks of text are drawn."""
    gain = (other.nats - own.nats) / NATS_PER_BIT
    return summed_interval(gain, own.tokens)
