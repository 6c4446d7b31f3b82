"""Learned vectors of categories: static covariates, and the last features of each step.

Source: Guo and Berkhahn 2016, section 3.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from lstm_compile.config import ModelConfig
from lstm_compile.model.scaling import Scaler
from lstm_compile.recurrence.lengths import valid_mask

MAX_EMBEDDING = 16
UNSEEN = 0.05  # the share of sequences whose categories are taken for other ones in training


def embedding_size(categories: int) -> int:
    """The size of a category's vector: half the number of categories, at most 16."""
    return min(MAX_EMBEDDING, (categories + 1) // 2)


def entering_size(config: ModelConfig) -> int:
    """Features of a step once its categories are vectors."""
    sizes = config.category_sizes
    return config.input_size - len(sizes) + sum(map(embedding_size, sizes))


def category_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The name and shape of the vectors of each column of categories."""
    return {
        f"categories.{index}.weight": (count, embedding_size(count))
        for index, count in enumerate(config.category_sizes)
    }


def with_vectors(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor | None,
    training: bool = False,
) -> Tensor:
    """`x` (batch, time, features) with a vector in place of each code, the last features.

    In training some sequences have code 0 throughout, so that other categories are learned.
    """
    if not config.category_sizes:
        return x
    count = config.input_size - len(config.category_sizes)
    codes = x[..., count:]
    if lengths is not None:  # padding may hold any number
        is_valid = valid_mask(lengths.to(x.device), x.shape[1])
        codes = torch.where(is_valid[..., None], codes, 0.0)
    whole = (with_others(codes, config) if training else codes).long()
    vectors = [
        embedding(whole[..., index], params[f"categories.{index}.weight"])
        for index in range(len(config.category_sizes))
    ]
    return torch.cat([x[..., :count], *vectors], -1)


def with_others(codes: Tensor, config: ModelConfig) -> Tensor:
    """Codes (batch, ..., columns); of a model with `other`, some rows have code 0 in a column."""
    if not config.has_other:
        return codes
    shape = codes.shape[0], *[1] * (codes.dim() - 2), codes.shape[-1]
    return codes.masked_fill(torch.rand(shape, device=codes.device) < UNSEEN, 0)


def codes_kept(scaler: Scaler, config: ModelConfig, scale: float = 1.0) -> Scaler:
    """A scaler of all features that leaves codes as they are, or has this `scale` for them."""
    count = len(config.category_sizes)
    shift, kept = (part[: len(part) - count] for part in scaler)
    return Scaler(pad(shift, (0, count)), pad(kept, (0, count), value=scale))
