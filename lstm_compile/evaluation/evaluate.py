"""Evaluate a model on data, beside simpler models on the same rows."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.series.windows import Windows
from lstm_compile.errors import InputError
from lstm_compile.evaluation.backtest import backtest, headline_of
from lstm_compile.evaluation.baselines import baseline_predictions
from lstm_compile.evaluation.linear import Baseline
from lstm_compile.evaluation.perplexity import evaluate_text
from lstm_compile.evaluation.verdict import Evaluation as Evaluation
from lstm_compile.evaluation.verdict import best_of, difference_interval, verdict
from lstm_compile.tasks.metrics import metrics
from lstm_compile.tasks.series_scaler import target_deviation


def evaluate_model(
    answer: Callable[[Any], Any],
    config: ModelConfig,
    data: Sequences | Windows | Corpus,
    baselines: Mapping[str, Baseline],
    training: Mapping[str, Any],
) -> Evaluation:
    """Compare the answers of a model with the truth and with the baselines.

    `answer` gives what `predict.answer_all` gives, of data of this kind. Of `training`, from the
    model's file, forecasts take `loss` and `target_deviation`; the latter is measured on `data` if
    it is missing.
    """
    if isinstance(data, Corpus):
        return evaluate_text(answer(data), config.task, data, baselines)
    if isinstance(data, Windows):
        deviation = training.get("target_deviation") or target_deviation(data).tolist()
        units = torch.tensor(deviation, dtype=torch.float64, device="cpu")
        headline = headline_of(str(training.get("loss", "mse")), config.quantiles)
        return backtest(answer, config, data, baselines, units, headline)
    return evaluate(answer(data), config, data, baselines)


def evaluate(
    prediction: Tensor, config: ModelConfig, data: Sequences, baselines: Mapping[str, Baseline]
) -> Evaluation:
    """Compare predictions with the truth and with the baselines.

    `prediction` is (rows, output_size), logits or values in the user's units, in the order of the
    data; where steps have answers a row is a step.

    Raises:
        InputError: a prediction is not finite.
    """
    for row in (~prediction.isfinite().all(-1)).nonzero()[:1, 0].tolist():
        raise InputError(
            f"{'step' if data.per_step else 'sequence'} {row}: the model's answer is no finite "
            "number, as its values lie too far from those of the training data; check its units"
        )
    own = metrics(config, prediction, data.y)
    predictions = baseline_predictions(baselines, data)
    others = {name: config.traits.score(other, data.y) for name, other in predictions.items()}
    interval = None
    if others:
        best = predictions[best_of(config.task, others)]
        owner = (
            torch.arange(len(data), device="cpu").repeat_interleave(data.lengths)
            if data.per_step
            else None
        )
        interval = difference_interval(config.task, prediction, best, data.y, owner)
    sentence = verdict(config.task, own, others, interval)
    return Evaluation(config.task, len(data), own, others, sentence, interval)
