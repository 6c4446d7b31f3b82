"""The input of baselines: a fixed number of columns for a sequence of any length."""

from collections.abc import Callable

import torch
from torch import Tensor

from lstm_compile.data.sequences import Sequences

FRAMES = 24
REACH = 2  # 5 steps in all
BLOCK = 1 << 18  # steps


def no_features(sequences: Sequences) -> Tensor:
    """No columns, for baselines that read no input: float64 (labels, 0)."""
    return torch.zeros(len(sequences.y), 0, dtype=torch.float64)


def summary_features(sequences: Sequences) -> Tensor:
    """Mean, deviation, minimum and maximum of each feature over the valid steps.

    Args:
        sequences: on the CPU.

    Returns:
        float64 (sequences, 4 * features), in the features' units; the deviation divides by the
        number of steps. A sequence without steps gives zeros.
    """
    x = sequences.x.double()
    index = torch.arange(len(sequences)).repeat_interleave(sequences.lengths)

    def reduce(values: Tensor, how: str) -> Tensor:
        zeros = values.new_zeros(len(sequences), values.shape[1])
        rows = index[:, None].expand_as(values)
        return zeros.scatter_reduce(0, rows, values, how, include_self=False)

    mean = reduce(x, "mean")
    deviation = reduce((x - mean[index]).square(), "mean").sqrt()
    return torch.cat([mean, deviation, reduce(x, "amin"), reduce(x, "amax")], dim=1)


def resampled_features(sequences: Sequences, frames: int = FRAMES) -> Tensor:
    """Stretch each sequence to `frames` equidistant frames by linear interpolation.

    Args:
        sequences: on the CPU.
        frames: the first is the first step, the last the last step.

    Returns:
        float64 (sequences, frames * features), frame by frame. A single step is repeated; a
        sequence without steps gives zeros.
    """
    lengths = sequences.lengths
    columns = frames * sequences.x.shape[1]
    last = (lengths - 1).clamp(min=0)[:, None]
    position = torch.linspace(0.0, 1.0, frames, dtype=torch.float64) * last
    before = position.floor().long().minimum(last)
    after = (before + 1).minimum(last)
    x = torch.cat([sequences.x, sequences.x.new_zeros(1, sequences.x.shape[1])]).double()
    starts = sequences.offsets[:-1, None]
    stretched = torch.lerp(x[starts + before], x[starts + after], (position - before)[..., None])
    return (stretched * (lengths > 0)[:, None, None]).reshape(len(sequences), columns)


def neighbour_features(sequences: Sequences, reach: int = REACH) -> Tensor:
    """Each step with `reach` steps before and after it; the first and last step are repeated.

    Returns:
        float64 (total_steps, (2 * reach + 1) * features), the earliest step first.
    """
    lengths, step = sequences.lengths, torch.arange(len(sequences.x))
    first = sequences.offsets[:-1].repeat_interleave(lengths)
    last = first + lengths.repeat_interleave(lengths) - 1
    shifts = range(-reach, reach + 1)
    x = sequences.x.double()
    return torch.cat([x[(step + shift).clamp(first, last)] for shift in shifts], 1)


def token_shares(sequences: Sequences) -> Tensor:
    """The share of each token in a text, float64 (sequences, vocabulary); zeros without a token."""
    size = len(sequences.vocabulary or ())
    owner = torch.arange(len(sequences)).repeat_interleave(sequences.lengths)
    counts = torch.bincount(owner * size + sequences.x, minlength=len(sequences) * size)
    shares = counts.view(len(sequences), size).double()
    return shares / sequences.lengths.clamp(min=1)[:, None]


def tokens_themselves(sequences: Sequences) -> Tensor:
    """The token of each step, int64 (total_steps,): a row of the baseline's weight."""
    return sequences.x.long()


# by baseline
FEATURES: dict[str, Callable[[Sequences], Tensor]] = {
    "majority class": no_features,
    "logistic regression on 5 steps": neighbour_features,
    "logistic regression on summaries": summary_features,
    "logistic regression on 24 frames": resampled_features,
    "logistic regression on character shares": token_shares,
    "frequencies by character": tokens_themselves,
    "mean": no_features,
    "ridge on summaries": summary_features,
}


def features_of(name: str, sequences: Sequences) -> Tensor:
    """The input of the baseline `name`, made in blocks: making it takes a lot of memory.

    Args:
        name: of `FEATURES`.
        sequences: on the CPU.
    """
    block = (sequences.offsets[:-1] // BLOCK).bincount()
    rows = torch.arange(len(sequences)).split(block[block > 0].tolist() or 1)
    return torch.cat([FEATURES[name](sequences.select(part)) for part in rows])
