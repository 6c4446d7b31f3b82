"""The encoder of a sequence: recurrent layers, and Transformer blocks after them if there are any.

A block is self-attention and a feed-forward network, pre-norm. With x (batch, time, width) and a
layer norm in front of each branch, it is

    x = x + W_o attention(norm_1(x)) + b_o
    x = x + W_2 gelu(W_1 norm_2(x) + b_1) + b_2

Positions are rotary: queries and keys are turned by angles that grow with the step, so that a score
depends only on how far two steps are apart. The parameters of a block have the keys of
nn.TransformerEncoderLayer.

Source: Vaswani et al. 2017, section 3; Xiong et al. 2020, figure 1b (pre-norm); Su et al. 2021,
equation 34 (rotary positions).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import dropout, gelu, layer_norm, linear, scaled_dot_product_attention

from lstm_compile.config import REGULARISERS, Backend, ModelConfig
from lstm_compile.recurrence.cell_file import cell_of
from lstm_compile.recurrence.cell_trial import fill, shapes_of
from lstm_compile.recurrence.function import lstm
from lstm_compile.recurrence.lengths import valid_mask, zero_padding
from lstm_compile.recurrence.operator import DEFAULT_CHUNK
from lstm_compile.recurrence.recurrent import recurrent
from lstm_compile.recurrence.regularise import NONE, Regularisers
from lstm_compile.recurrence.regularised_lstm import regularised_lstm
from lstm_compile.recurrence.stack import under, weight_shapes

EXPANSION = 4  # width of the feed-forward network, divided by that of the block
LONGEST_WAVE = 10_000.0  # of the rotation, in steps over 2 pi
ADDED = ("self_attn.out_proj.weight", "linear2.weight")  # the last of each branch

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (time, half the width of a head)


class Mode(NamedTuple):
    """How a model is run; backend and chunk are those of `lstm_compile.lstm`."""

    training: bool = False  # whether dropout acts
    backend: Backend = "auto"
    chunk: int = DEFAULT_CHUNK


def encoder_shapes(config: ModelConfig, entering: int) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of stack and blocks; `entering` is their input size."""
    shapes = _stack_shapes(config, entering)
    for index in range(config.transformer_layers):
        block = block_shapes(config.width).items()
        shapes |= {f"transformer.{index}.{name}": shape for name, shape in block}
    return shapes


def _stack_shapes(config: ModelConfig, entering: int) -> dict[str, tuple[int, ...]]:
    """Those of `lstm` are called `lstm.NAME`, those of other cells `cell.NAME`."""
    if config.cell == "lstm":
        sizes = entering, config.hidden_size, config.num_layers
        stack = weight_shapes(*sizes, bidirectional=config.bidirectional, bias=config.bias)
        return {f"lstm.{name}": shape for name, shape in stack.items()}
    cell, suffixes = cell_of(config), ("", "_reverse")[: config.num_directions]
    return {
        f"cell.{name}_l{layer}{suffix}": shape
        for layer in range(config.num_layers)
        for suffix in suffixes
        for name, shape in shapes_of(
            cell, config.width if layer else entering, config.hidden_size
        ).items()
    }


def initial(
    name: str, shape: tuple[int, ...], config: ModelConfig, generator: torch.Generator
) -> Tensor:
    """A fresh tensor with a name of `encoder_shapes`; see `init_params`."""
    if name.startswith("transformer."):
        return initial_of_block(name, shape, generator)
    tensor = torch.zeros(shape, dtype=torch.float32, device="cpu")
    if name.startswith("cell."):
        own = name.removeprefix("cell.").removesuffix("_reverse").rpartition("_l")[0]
        fill(cell_of(config), own, tensor, generator)
        return tensor
    if ".bias_ih_" in name:
        tensor.chunk(4)[1].fill_(1.0)
    for gate in tensor.chunk(4) if tensor.dim() == 2 else ():
        if ".weight_hh_" in name:
            torch.nn.init.orthogonal_(gate, generator=generator)
        else:
            torch.nn.init.xavier_uniform_(gate, generator=generator)
    return tensor


def encode(
    params: Mapping[str, Tensor],
    config: ModelConfig,
    x: Tensor,
    lengths: Tensor | None = None,
    state: tuple[Tensor, ...] | None = None,
    resets: Tensor | None = None,
    mode: Mode = Mode(),  # noqa: B008 (it cannot change)
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run the recurrent stack and the Transformer blocks over padded sequences.

    `x` is (batch, time, width of the first layer), with any number in the padding; the others are
    as in `lstm_compile.forward`. Blocks see the steps of `x` alone, and none from before a reset;
    earlier steps reach them through `state` only.

    Returns:
        (batch, time, config.width), exactly 0 at t >= length; and the final state of the stack.
    """
    zeros = None if state is None else tuple(map(torch.zeros_like, state))
    given: dict[str, Any] = {"resets": resets, "reset_state": zeros, "state": state}
    given |= {"dropout": config.dropout, **mode._asdict()}
    regularise = Regularisers(*[getattr(config, name) for name in REGULARISERS])
    regularise = regularise.in_effect(training=mode.training)
    if regularise != NONE:
        given["regularise"] = regularise
    if config.cell == "lstm":
        run = lstm if regularise == NONE else regularised_lstm
        steps, state = run(under(params, "lstm."), x, lengths, **given)
    else:
        steps, state = recurrent(config.cell, under(params, "cell."), x, lengths, **given)
    if config.transformer_layers:
        lengths, resets = (None if t is None else t.to(steps.device) for t in (lengths, resets))
        steps = transform(
            under(params, "transformer."), steps, lengths, resets,
            heads=config.heads, causal=not config.bidirectional,
            drop=config.dropout if mode.training else 0.0,
        )  # fmt: skip
    return steps, state


def block_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of one block, in the order of computation."""
    inner = EXPANSION * width
    weights = {
        "norm1.": (width,),
        "self_attn.in_proj_": (3 * width, width),
        "self_attn.out_proj.": (width, width),
        "norm2.": (width,),
        "linear1.": (inner, width),
        "linear2.": (width, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in weights.items():
        shapes |= {f"{name}weight": shape, f"{name}bias": shape[:1]}
    return shapes


def initial_of_block(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A fresh float32 parameter of a block.

    Weights are Glorot-uniform; those of queries, keys and values count as three. The last weights
    of each branch are 0, so that a fresh block changes nothing (Goyal et al. 2017, section 5.1;
    Zhang et al. 2019, section 3.3). Biases are 0, norms the identity.
    """
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    tensor = torch.zeros(shape, dtype=torch.float32, device="cpu")
    if name.endswith("weight") and not name.endswith(ADDED):
        for part in tensor.chunk(3 if "in_proj" in name else 1):
            torch.nn.init.xavier_uniform_(part, generator=generator)
    return tensor


def transform(
    params: Mapping[str, Tensor],
    x: Tensor,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    *,
    heads: int,
    causal: bool,
    drop: float = 0.0,
) -> Tensor:
    """Run blocks over padded sequences.

    `params` are those of `block_shapes`, with the prefixes `0.`, `1.` and so on; `x` is (batch,
    time, width), finite in the padding too; `heads` divide the width. No step sees across the start
    of `resets` (batch, time). If `causal`, a step sees itself and those before it, else all valid
    steps. `drop` is the probability of dropping a value that a block adds to x.

    Returns:
        (batch, time, width), exactly 0 at t >= length.
    """
    mask = visible(lengths, x.shape[1], causal, x.device)
    if resets is not None:
        mask = within_segments(resets) if mask is None else mask & within_segments(resets)
    rotation = rotations(x.shape[1], x.shape[2] // heads, params["0.norm1.weight"])
    for index in range(1 + max(int(name.partition(".")[0]) for name in params)):
        weights = under(params, f"{index}.")
        x = x + dropout(_attend(weights, x, mask, rotation, heads), drop, drop > 0)
        x = x + dropout(_feed_forward(weights, x), drop, drop > 0)
    return zero_padding(x, lengths)


def visible(lengths: Tensor | None, time: int, causal: bool, device: torch.device) -> Tensor | None:
    """The steps (last dimension) that each step sees, for (batch, heads, time, time); None: all.

    Each step sees at least one, in the padding too: a softmax over nothing is NaN.
    """
    step = torch.arange(time, device=device)
    if causal:  # no valid step has padding before it
        # + 0.5: tract 0.23 cuts sequences up if whole steps are compared
        return step < step.unsqueeze(1) + 0.5
    if lengths is None:
        return None
    return (valid_mask(lengths, time) | (step == 0))[:, None, None]


def within_segments(resets: Tensor) -> Tensor:
    """Which pairs of steps have no reset between them: (batch, 1, time, time)."""
    segment = resets.cumsum(1)
    return (segment.unsqueeze(1) == segment.unsqueeze(2)).unsqueeze(1)


def rotations(time: int, size: int, like: Tensor) -> Rotation:
    """Cosines and sines of the angle by which each step turns each pair of a head's numbers."""
    dtype = torch.promote_types(like.dtype, torch.float32)  # bfloat16 cannot count beyond 256
    step = torch.arange(time, device=like.device).to(dtype)
    pair = torch.arange(size // 2, device=like.device).to(dtype)
    angles = step.unsqueeze(1) * LONGEST_WAVE ** (-2 * pair / size)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _attend(
    params: Mapping[str, Tensor], x: Tensor, mask: Tensor | None, rotation: Rotation, heads: int
) -> Tensor:
    x = _norm(params, "norm1", x)
    x = linear(x, params["self_attn.in_proj_weight"], params["self_attn.in_proj_bias"])
    x = x.unflatten(-1, (3 * heads, -1)).transpose(1, 2)  # (batch, 3 * heads, time, size)
    turned = _turned(x.narrow(1, 0, 2 * heads), rotation)
    q, k = turned.narrow(1, 0, heads), turned.narrow(1, heads, heads)
    y = scaled_dot_product_attention(q, k, x.narrow(1, 2 * heads, heads), mask)
    return _linear(params, "self_attn.out_proj", y.transpose(1, 2).flatten(2))


def _turned(x: Tensor, rotation: Rotation) -> Tensor:
    """`x` (..., time, size), its pairs (i, i + size // 2) turned; an odd number stays as it is."""
    cos, sin = rotation
    half = cos.shape[-1]
    first, second, odd = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin, odd)
    return torch.cat([part for part in turned if part.shape[-1]], -1)


def _feed_forward(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return _linear(params, "linear2", gelu(_linear(params, "linear1", _norm(params, "norm2", x))))


def _norm(params: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], params[f"{name}.weight"], params[f"{name}.bias"])


def _linear(params: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return linear(x, params[f"{name}.weight"], params[f"{name}.bias"])
