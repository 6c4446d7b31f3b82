"""The simple models that a trained one must beat: fitted, stored, read and asked.

Every baseline is one affine map of one kind of features, so two tensors store it. Features are a
fixed number of columns for a sequence of any length.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.series.windows import Windows
from lstm_compile.errors import InputError
from lstm_compile.evaluation.forecast_baselines import RIDGE_ON_WINDOWS, fit_forecast_baselines
from lstm_compile.evaluation.linear import Baseline, fit_logistic, fit_ridge
from lstm_compile.evaluation.perplexity import BIGRAM, UNIGRAM, fit_text_baselines
from lstm_compile.model.header import open_archive
from lstm_compile.tasks import TASKS, find_task

PREFIX = "baseline."
FRAMES = 24
REACH = 2  # 5 steps in all
MOST_CODES = 256  # categories that linear models have columns for
BLOCK = 1 << 18  # steps whose features are made at once
MOST_ROWS = 50_000  # labels that a classifier is fitted on; there can be millions
# Of 1, 10 and 100, what 5-fold cross-validation on the training parts of the bundled data sets
# prefers for the stronger classifier, the one on 24 frames.
CLASSIFIER_PENALTY = 10.0


def no_features(sequences: Sequences) -> Tensor:
    """No columns, for baselines that read no input: float64 (labels, 0)."""
    return torch.zeros(len(sequences.y), 0, dtype=torch.float64, device="cpu")


def summary_features(sequences: Sequences) -> Tensor:
    """Mean, deviation, minimum and maximum of each feature over the valid steps.

    float64 (sequences, 4 * features), in the features' units; the deviation divides by the number
    of steps. A sequence without steps gives zeros.
    """
    x = sequences.x.double()
    index = torch.arange(len(sequences), device="cpu").repeat_interleave(sequences.lengths)

    def reduce(values: Tensor, how: str) -> Tensor:
        zeros = values.new_zeros(len(sequences), values.shape[1])
        rows = index[:, None].expand_as(values)
        return zeros.scatter_reduce(0, rows, values, how, include_self=False)

    mean = reduce(x, "mean")
    deviation = reduce((x - mean[index]).square(), "mean").sqrt()
    return torch.cat([mean, deviation, reduce(x, "amin"), reduce(x, "amax")], dim=1)


def resampled_features(sequences: Sequences, frames: int = FRAMES) -> Tensor:
    """Stretch each sequence to equidistant frames, from its first to its last step, linearly.

    float64 (sequences, frames * features), frame by frame. A single step is repeated; a sequence
    without steps gives zeros.
    """
    lengths = sequences.lengths
    last = (lengths - 1).clamp(min=0)[:, None]
    position = torch.linspace(0.0, 1.0, frames, dtype=torch.float64, device="cpu") * last
    before = position.floor().long().minimum(last)
    after = (before + 1).minimum(last)
    x = torch.cat([sequences.x, sequences.x.new_zeros(1, sequences.x.shape[1])]).double()
    starts = sequences.offsets[:-1, None]
    stretched = torch.lerp(x[starts + before], x[starts + after], (position - before)[..., None])
    return (stretched * (lengths > 0)[:, None, None]).flatten(1)


def neighbour_features(sequences: Sequences, reach: int = REACH) -> Tensor:
    """Each step with `reach` steps before and after it; the first and last step are repeated.

    float64 (total_steps, (2 * reach + 1) * features), the earliest step first.
    """
    lengths, step = sequences.lengths, torch.arange(len(sequences.x), device="cpu")
    first = sequences.offsets[:-1].repeat_interleave(lengths)
    last = first + lengths.repeat_interleave(lengths) - 1
    shifts = range(-reach, reach + 1)
    x = sequences.x.double()
    return torch.cat([x[(step + shift).clamp(first, last)] for shift in shifts], 1)


def token_shares(sequences: Sequences) -> Tensor:
    """The share of each token in a text, float64 (sequences, vocabulary); zeros without a token."""
    size = len(sequences.vocabulary or ())
    owner = torch.arange(len(sequences), device="cpu").repeat_interleave(sequences.lengths)
    counts = torch.bincount(owner * size + sequences.x, minlength=len(sequences) * size)
    shares = counts.view(len(sequences), size).double()
    return shares / sequences.lengths.clamp(min=1)[:, None]


def tokens_themselves(sequences: Sequences) -> Tensor:
    """The token of each step, int64 (total_steps,): a row of the baseline's weight."""
    return sequences.x.long()


def _fit_mean(_: Tensor, y: Tensor, known: Sequences) -> Baseline:
    """The mean of the targets, or the share of each class."""
    y = y.double() if known.targets else one_hot(y, len(known.classes)).double()
    return Baseline(torch.zeros(0, y.shape[1], device="cpu").double(), y.mean(0))


def _fit_classifier(features: Tensor, y: Tensor, known: Sequences) -> Baseline:
    return fit_logistic(features, y, len(known.classes), CLASSIFIER_PENALTY)


def _fit_frequencies(tokens: Tensor, y: Tensor, known: Sequences) -> Baseline:
    """The logarithm of how often each token has each class, one added to each count."""
    size, classes = len(known.vocabulary or ()), len(known.classes)
    counts = torch.bincount(tokens * classes + y, minlength=size * classes)
    table = counts.view(size, classes).double() + 1
    return Baseline((table / table.sum(1, True)).log(), torch.zeros(classes, device="cpu").double())


class Recipe(NamedTuple):
    """How a baseline of sequences is made."""

    # of sequences: float64 (labels, columns), or int64 (labels,), rows of the baseline's weight
    features: Callable[[Sequences], Tensor]
    fit: Callable[[Tensor, Tensor, Sequences], Baseline]  # of features, labels and what they are of
    is_costly: bool = False  # whether it is fitted on some labels, if there are many


def _fit_ridge(features: Tensor, y: Tensor, _: Sequences) -> Baseline:
    return fit_ridge(features, y)


RECIPES = {
    "majority class": Recipe(no_features, _fit_mean),
    "logistic regression on 5 steps": Recipe(neighbour_features, _fit_classifier, is_costly=True),
    "logistic regression on summaries": Recipe(summary_features, _fit_classifier, is_costly=True),
    "logistic regression on 24 frames": Recipe(resampled_features, _fit_classifier, is_costly=True),
    "logistic regression on character shares": Recipe(
        token_shares, _fit_classifier, is_costly=True
    ),
    "frequencies by character": Recipe(tokens_themselves, _fit_frequencies),
    "mean": Recipe(no_features, _fit_mean),
    "ridge on summaries": Recipe(summary_features, _fit_ridge),
    "ridge on 5 steps": Recipe(neighbour_features, _fit_ridge),
}


def recipes() -> dict[str, Recipe]:
    """The recipe of every baseline of sequences, those of single tasks last."""
    own = (find_task(task).own_baselines for task in TASKS)
    return RECIPES | {name: Recipe(*parts) for each in own for name, parts in each.items()}


def known_baselines() -> tuple[str, ...]:
    """The names that files may have, in the order of messages."""
    return (*recipes(), RIDGE_ON_WINDOWS, UNIGRAM, BIGRAM)


def features_of(name: str, sequences: Sequences) -> Tensor:
    """The input of the baseline `name`, made in blocks: making it takes a lot of memory."""
    make, block = recipes()[name].features, (sequences.offsets[:-1] // BLOCK).bincount()
    rows = torch.arange(len(sequences), device="cpu").split(block[block > 0].tolist() or 1)
    return torch.cat([make(_one_hot_codes(sequences.select(part))) for part in rows])


def _one_hot_codes(sequences: Sequences) -> Sequences:
    """The sequences with a column of 0 and 1 for each category; with none where there are many."""
    sizes = sequences.schema.category_sizes
    if not sizes:
        return sequences
    count = sequences.x.shape[1] - len(sizes)
    columns = zip(sequences.x[:, count:].long().T, sizes, strict=True)
    parts = [one_hot(codes, size).float() for codes, size in columns if sum(sizes) <= MOST_CODES]
    return replace(sequences, x=torch.cat([sequences.x[:, :count], *parts], 1))


def fit_baselines(
    known: Sequences | Windows | Corpus,
    task: str = "",
    train: object = None,
    validation: object = None,
) -> dict[str, Baseline]:
    """Fit every baseline of a task, by name.

    `known` are all data that may be learned from, on the CPU. Without a task, the first counts that
    fits the labels; its record names the baselines of sequences. `train` and `validation` are for
    windows, see `fit_forecast_baselines`.
    """
    if isinstance(known, Corpus):
        return fit_text_baselines(known)
    if isinstance(known, Windows):
        assert isinstance(train, Windows)
        assert validation is None or isinstance(validation, Windows)
        return fit_forecast_baselines(known, train, validation)
    found, recipe_of = find_task(task or known.task), recipes()
    names = found.token_baselines if known.vocabulary else found.baselines
    return {name: _fit(name, recipe_of[name], known) for name in names}


def _fit(name: str, recipe: Recipe, known: Sequences) -> Baseline:
    rows: Tensor | slice = slice(None)
    if recipe.is_costly and len(known.y) > MOST_ROWS:  # spread over the data
        rows = torch.linspace(
            0, len(known.y) - 1, MOST_ROWS, dtype=torch.float64, device="cpu"
        ).long()
        if not known.per_step:
            known, rows = known.select(rows), slice(None)  # no features of the others
    return recipe.fit(features_of(name, known)[rows], known.y[rows], known)


def baseline_predictions(baselines: Mapping[str, Baseline], data: Sequences) -> dict[str, Tensor]:
    """Apply fitted baselines to data with the same schema, on the CPU.

    Returns:
        For each baseline float64 (rows, outputs): one score a class, or the targets.

    Raises:
        InputError: the baselines were fitted for other features, classes or targets.
    """
    return {name: _predict(name, baseline, data) for name, baseline in baselines.items()}


def to_tensors(baselines: Mapping[str, Baseline]) -> dict[str, Tensor]:
    """Name each tensor `baseline.<name>.weight` or `.bias`, to store them beside a model's."""
    return {
        f"{PREFIX}{name}.{part}": tensor
        for name, baseline in baselines.items()
        for part, tensor in baseline._asdict().items()
    }


def read_baselines(path: str | Path) -> dict[str, Baseline]:
    """Read the file that a training run keeps its fitted baselines in.

    Raises:
        InputError: not a safetensors file, or what `from_tensors` refuses.
    """
    with open_archive(Path(path), "pt") as archive:
        return from_tensors({name: archive.get_tensor(name) for name in archive.keys()})  # noqa: SIM118


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Baseline]:
    """Rebuild what `to_tensors` named; keys of other kinds are left alone.

    Raises:
        InputError: an unknown baseline, or one without a float64 weight and bias that fit.
    """
    keys = [key.removeprefix(PREFIX) for key in tensors if key.startswith(PREFIX)]
    found = {key.rpartition(".")[0] for key in keys}
    known = known_baselines()
    names = [name for name in known if name in found] + sorted(found - set(known))
    return {name: _rebuild(name, tensors) for name in names}


def _rebuild(name: str, tensors: Mapping[str, Tensor]) -> Baseline:
    if name not in known_baselines():
        raise InputError(f"unknown baseline {name!r}; known are {', '.join(known_baselines())}")
    parts = [tensors.get(f"{PREFIX}{name}.{part}") for part in Baseline._fields]
    found = [None if part is None else (part.dtype, part.ndim) for part in parts]
    if found == [(torch.float64, 2), (torch.float64, 1)]:
        weight, bias = (part for part in parts if part is not None)
        if weight.shape[1] == len(bias):
            return Baseline(weight, bias)
    raise InputError(
        f"baseline {name!r} needs float64 tensors weight (columns, outputs) and bias (outputs,); "
        f"train the model again"
    )


def _predict(name: str, baseline: Baseline, data: Sequences) -> Tensor:
    features = features_of(name, data)
    columns = features.shape[1] if features.is_floating_point() else len(data.vocabulary or ())
    found = (columns, len(data.classes) or len(data.targets))
    if found != tuple(baseline.weight.shape):
        raise InputError(
            f"baseline {name!r} maps {baseline.weight.shape[0]} columns to "
            f"{baseline.weight.shape[1]} outputs, but the data has {found[0]} and {found[1]}"
        )
    if not features.is_floating_point():  # tokens, each a column of ones and zeros
        return baseline.weight[features] + baseline.bias
    return features @ baseline.weight + baseline.bias
