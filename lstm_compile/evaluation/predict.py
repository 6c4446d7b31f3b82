"""The answers of a model to a whole data set, batch by batch."""

from functools import partial

import torch
from torch import Tensor

from lstm_compile.config import Backend, ModelConfig
from lstm_compile.data.batches import ordered_batches
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.feed import feed, within_reach
from lstm_compile.data.sequences import Sequences
from lstm_compile.evaluation.backend import evaluation_backend
from lstm_compile.evaluation.perplexity import score_text, window_of
from lstm_compile.model.batch import Batch
from lstm_compile.model.model import Params, complete
from lstm_compile.recurrence.lengths import valid_mask
from lstm_compile.recurrence.operator import DEFAULT_CHUNK
from lstm_compile.tasks.metrics import TextScores


def answer_all(
    params: Params,
    config: ModelConfig,
    data: Examples | Corpus,
    unroll: object = None,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
) -> Tensor | TextScores:
    """The answers of a model to data of any kind, on the CPU; the device of `params` does the work.

    Of text it is what `score_text` gives, else what `predict_all` gives. `unroll` is that of a
    language model, see `perplexity.window_of`.
    """
    if isinstance(data, Corpus):
        return score_text(params, config, data, backend, chunk, window_of(config, unroll))
    near = within_reach(data, params["head.bias"].device)
    return predict_all(params, config, near, backend, chunk).cpu()


def predict_all(
    params: Params,
    config: ModelConfig,
    data: Examples,
    backend: Backend = "auto",
    chunk: int = DEFAULT_CHUNK,
    batch_size: int = 256,
    own: slice = slice(None),
) -> Tensor:
    """`complete` over a whole data set, (rows, ...), in the data's order.

    Where steps are answered, the rows are all steps of all sequences, one after another. Rows
    outside of `own` are not answered: their answers are zeros.
    """
    lengths = data.lengths.cpu()
    rows = torch.arange(len(data), device="cpu")[own]
    batches = [rows[indices] for indices in ordered_batches(lengths[rows], batch_size)]
    groups = [[indices] for indices in batches]
    steps = sum(int(lengths[indices].max()) for indices in batches)
    device = params["head.bias"].device
    backend = evaluation_backend(config, backend, steps, batch_size, device)
    answer = partial(_answer, params, config, backend=backend, chunk=chunk)
    with torch.inference_mode():
        parts = [answer(batch) for (batch,) in feed(data, lengths, groups, device)]
        answers, order, count = torch.cat(parts), torch.cat(batches), len(data)
        if config.traits.per_step:
            assert isinstance(data, Sequences)
            order, count = data.steps_of(order.to(data.x.device)), len(data.x)
        whole = answers.new_zeros(count, *answers.shape[1:])
        whole[order.to(device)] = answers
        return whole


def _answer(
    params: Params, config: ModelConfig, batch: Batch, backend: Backend, chunk: int
) -> Tensor:
    """The answers to a batch: one a row, or one a valid step where steps have answers."""
    found = complete(
        params, config, batch.x, batch.lengths, given=batch.given, backend=backend, chunk=chunk
    )
    if config.traits.is_pooled:
        return found
    return found[valid_mask(batch.lengths, found.shape[1])]
