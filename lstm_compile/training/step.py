"""One training step as a pure function of parameters, optimizer state and batch."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.sequences import Batch
from lstm_compile.model import Params, forward, trainable
from lstm_compile.tasks import training_loss
from lstm_compile.training.config import TrainingConfig


class AdamState(NamedTuple):
    """Running means of gradients and their squares, and how many steps they saw."""

    step: int
    mean: Params
    square: Params


class StepResult(NamedTuple):
    """What a step gives: new parameters, new optimizer state, the loss before the step."""

    params: Params
    optimizer: AdamState
    loss: Tensor


def init_adam(params: Params) -> AdamState:
    """The state before the first step: zeros of every trainable parameter's shape."""
    zeros = {name: torch.zeros_like(value) for name, value in trainable(params).items()}
    return AdamState(0, zeros, {name: torch.zeros_like(value) for name, value in zeros.items()})


def train_step(
    params: Params,
    optimizer: AdamState,
    batch: Batch,
    learning_rate: float,
    config: ModelConfig,
    training: TrainingConfig,
) -> StepResult:
    """Forward, loss, backward, clip, update. Nothing that comes in is changed."""
    leaves = {name: value.detach().requires_grad_() for name, value in trainable(params).items()}
    prediction, _ = forward(
        {**params, **leaves}, config, batch.x, batch.lengths,
        training=True, backend=training.backend, chunk=training.chunk,
    )  # fmt: skip
    loss = training_loss(params, config, training, prediction, batch.y)
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    gradients = clip_by_norm(gradients, training.clip_norm)
    with torch.no_grad():
        updated, optimizer = adam_update(leaves, gradients, optimizer, learning_rate, training)
    return StepResult({**params, **updated}, optimizer, loss.detach())


def clip_by_norm(gradients: Params, limit: float) -> Params:
    """Scale all gradients so that their common norm is at most `limit`; 0 leaves them alone.

    Source: Pascanu, Mikolov and Bengio 2013, algorithm 1.
    """
    if not limit:
        return gradients
    values = list(gradients.values())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values)))
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    return dict(zip(gradients, torch._foreach_mul(values, scale), strict=True))


def adam_update(
    params: Params,
    gradients: Params,
    state: AdamState,
    learning_rate: float,
    training: TrainingConfig,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> tuple[Params, AdamState]:
    """One step of Adam, or of AdamW with decoupled weight decay; biases do not decay.

    Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2. The results
    are those of torch.optim.Adam and torch.optim.AdamW.
    """
    step = state.step + 1
    corrections = [1 - beta**step for beta in betas]
    new_params, means, squares = {}, {}, {}
    for name, value in params.items():
        decay = training.weight_decay if value.dim() > 1 else 0.0
        gradient = gradients[name]
        if training.optimizer == "adam":
            gradient = gradient + decay * value
        else:
            value = value * (1 - learning_rate * decay)
        means[name] = torch.lerp(state.mean[name], gradient, 1 - betas[0])
        squares[name] = state.square[name] * betas[1] + gradient.square() * (1 - betas[1])
        deviation = (squares[name] / corrections[1]).sqrt() + epsilon
        new_params[name] = value - learning_rate / corrections[0] * means[name] / deviation
    return new_params, AdamState(step, means, squares)


def learning_rate_at(step: int, total: int, training: TrainingConfig) -> float:
    """The rate of step 0 <= step < total: a linear rise, then constant or a cosine to zero.

    Source: Loshchilov and Hutter 2017, equation 5, without restarts.
    """
    warmup = round(training.warmup * total)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.schedule == "constant":
        return training.learning_rate
    progress = (step - warmup) / max(1, total - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
