"""One training step as a pure function of parameters, optimizer state and batch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.devices import autocast
from lstm_compile.model.batch import Batch
from lstm_compile.model.model import Params, forward, trainable
from lstm_compile.tasks.losses import row_weight, training_loss
from lstm_compile.training.processes import ALONE, ProcessGroup
from lstm_compile.training.settings import TrainingConfig

PLATEAU_FACTOR = 0.5
PLATEAU_SHARE = 2  # of `patience`: the rate falls once before training stops


class AdamState(NamedTuple):
    """Running means of gradients and their squares, and how many steps they saw."""

    step: int
    mean: Params
    square: Params


class StepResult(NamedTuple):
    """What a step gives: new parameters, new optimizer state, the loss before the step.

    `state` is that of the recurrent stack after the last of the step's batches, without gradients.
    If loss or gradients are not finite, `is_finite` is False, and `params` are those of before.
    """

    params: Params
    optimizer: AdamState
    loss: Tensor
    state: tuple[Tensor, ...]
    is_finite: Tensor


def init_adam(params: Params, freeze: str = "none") -> AdamState:
    """The state before the first step: zeros of every trainable parameter's shape."""
    zeros = {name: torch.zeros_like(value) for name, value in trainable(params, freeze).items()}
    return AdamState(0, zeros, {name: torch.zeros_like(value) for name, value in zeros.items()})


def train_step(
    params: Params,
    optimizer: AdamState,
    batch: Batch,
    learning_rate: float,
    config: ModelConfig,
    training: TrainingConfig,
    class_weights: Tensor | None = None,
    more: Sequence[Batch] = (),
    state: tuple[Tensor, ...] | None = None,
    processes: ProcessGroup = ALONE,
    is_spare: bool = False,
) -> StepResult:
    """Forward, loss, backward, clip, update. No argument is changed.

    The gradient is that of all rows of `batch` and `more` together, all on the device of the
    parameters. Each row begins from `state`, which gets no gradient; None is zeros. The float32
    (classes,) `class_weights` are for `training_loss`. The `processes` take the step
    together, with loss and gradients of all their rows. `is_spare` says that this process has no
    rows of its own: the given ones only keep it in step, and count nothing.
    """
    learned = trainable(params, training.freeze)
    leaves = {name: value.detach().requires_grad_() for name, value in learned.items()}
    batches = (batch, *more)
    losses, gradients = [], dict[str, Tensor]()
    for each, share in zip(batches, _shares(batches, class_weights), strict=True):
        loss, after = _loss({**params, **leaves}, each, state, config, training, class_weights)
        parts = torch.autograd.grad(loss, list(leaves.values()), share)
        losses.append(loss.detach() * share)
        gradients = _added(gradients, dict(zip(leaves, parts, strict=True)))
    loss = sum(losses[1:], start=losses[0])
    if processes.size > 1:
        weight = sum(_weights(batches, class_weights)) * (not is_spare)
        gradients, loss = processes.average(
            gradients, loss, torch.as_tensor(weight, dtype=loss.dtype, device=loss.device)
        )
    norm = norm_of(gradients)
    is_finite = (loss + norm).isfinite()
    gradients = clip_by_norm(gradients, training.clip_norm, norm)
    with torch.no_grad():
        updated, optimizer = adam_update(
            leaves, gradients, optimizer, learning_rate, training, skip=~is_finite
        )
    after = tuple(part.detach() for part in after)
    return StepResult({**params, **updated}, optimizer, loss, after, is_finite)


def _shares(batches: Sequence[Batch], class_weights: Tensor | None) -> list[Tensor]:
    """The weight of each batch in the step's mean loss, as scalars on its device."""
    weights = _weights(batches, class_weights)
    x, total = batches[0].x, sum(weights)
    dtype = x.dtype if x.is_floating_point() else torch.float32
    return [torch.as_tensor(weight / total, dtype=dtype, device=x.device) for weight in weights]


def _weights(batches: Sequence[Batch], class_weights: Tensor | None) -> list[Tensor | float]:
    return [row_weight(batch.y, class_weights) for batch in batches]


def _loss(
    params: Params,
    batch: Batch,
    state: tuple[Tensor, ...] | None,
    config: ModelConfig,
    training: TrainingConfig,
    class_weights: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The training loss of one batch and the state after it.

    Only the forward pass has the precision of `training`, the rest that of the weights.
    """
    # only on the CPU: a device would have to be waited for
    is_full = batch.lengths.is_cpu and bool((batch.lengths == batch.x.shape[1]).all())
    lengths = None if is_full else batch.lengths
    with autocast(batch.x.device, training.precision):
        prediction, state = forward(
            params, config, batch.x, lengths, state=state, resets=batch.resets, given=batch.given,
            training=True, backend=training.backend, chunk=training.chunk,
        )  # fmt: skip
    prediction, unit = prediction.to(params["head.bias"].dtype), batch.unit
    loss = training_loss(params, config, training, prediction, batch.y, class_weights, unit)
    return loss, state


def _added(first: Params, second: Params) -> Params:
    return {name: first[name] + value if first else value for name, value in second.items()}


def norm_of(gradients: Params) -> Tensor:
    """The 2-norm of all gradients together, a scalar."""
    norms = torch._foreach_norm(list(gradients.values()))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm


def clip_by_norm(gradients: Params, limit: float, norm: Tensor | None = None) -> Params:
    """Scale all gradients so that their common norm is at most `limit`; 0 leaves them alone.

    `norm` is what `norm_of` gives, if it is known. Source: Pascanu, Mikolov and Bengio 2013,
    algorithm 1.
    """
    if not limit:
        return gradients
    norm = norm_of(gradients) if norm is None else norm
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    return dict(zip(gradients, torch._foreach_mul(list(gradients.values()), scale), strict=True))


def adam_update(
    params: Params,
    gradients: Params,
    state: AdamState,
    learning_rate: float,
    training: TrainingConfig,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    skip: Tensor | None = None,
) -> tuple[Params, AdamState]:
    """One step of Adam, or of AdamW with decoupled weight decay; biases do not decay.

    If `skip`, a bool scalar, is True, the step is counted and nothing else changes.

    Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2. The results
    are those of torch.optim.Adam and torch.optim.AdamW.
    """
    count = state.step + 1
    device = next(iter(params.values())).device
    updated, means, squares = (_copies(part, params) for part in (params, state.mean, state.square))
    update = torch._fused_adam_ if training.optimizer == "adam" else torch._fused_adamw_
    for names, decay in _by_decay(params, training.weight_decay):
        update(
            [updated[name] for name in names],
            [gradients[name].contiguous() for name in names],
            [means[name] for name in names],
            [squares[name] for name in names],
            [],
            [torch.full((), float(count), device=device)] * len(names),
            lr=learning_rate, beta1=betas[0], beta2=betas[1], weight_decay=decay, eps=epsilon,
            amsgrad=False, maximize=False, found_inf=None if skip is None else skip.float(),
        )  # fmt: skip
    return updated, AdamState(count, means, squares)


def _copies(values: Params, names: Iterable[str]) -> Params:
    # the fused kernels write in place, and expect contiguous tensors
    contiguous = {name: values[name].contiguous() for name in names}
    return dict(zip(contiguous, torch._foreach_mul(list(contiguous.values()), 1.0), strict=True))


def _by_decay(params: Params, decay: float) -> list[tuple[list[str], float]]:
    """Groups of names with the same decay; no empty group."""
    if not decay:
        return [(list(params), 0.0)]
    matrices = [name for name, value in params.items() if value.dim() > 1]
    vectors = [name for name, value in params.items() if value.dim() <= 1]
    return [group for group in ((matrices, decay), (vectors, 0.0)) if group[0]]


def average_update(
    average: Params, params: Mapping[str, Tensor], step: int, decay: float
) -> Params:
    """The exponential moving average of weights after one more step, with bias correction.

    average_t = sum over s <= t of decay^(t - s) * params_s, divided by the sum of those powers: the
    bias correction of Kingma and Ba 2015, section 3, as the recursion

        average_t = average_(t-1) + (1 - decay) / (1 - decay^t) * (params_t - average_(t-1)),

    so that the first average is the first weights. `average` has the names of the parameters that
    are averaged; `params` may have more. t is `step`, from 1, and 0 <= `decay` < 1.
    """
    share = (1 - decay) / (1 - decay**step)
    values = torch._foreach_lerp(list(average.values()), [params[name] for name in average], share)
    return dict(zip(average, values, strict=True))


def learning_rate_at(step: int, total: int, training: TrainingConfig) -> float:
    """The rate of step 0 <= step < total: a linear rise, then constant or a cosine to zero.

    It is to be multiplied by `plateau_factor`. Source: Loshchilov and Hutter 2017, equation 5,
    without restarts.
    """
    warmup = round(training.warmup * total)
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    if training.schedule != "cosine":
        return training.learning_rate
    progress = (step - warmup) / max(1, total - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def plateau_factor(losses: Sequence[float], training: TrainingConfig) -> float:
    """The factor on the learning rate of the next epoch for the schedule `plateau`; else 1.

    It is halved after every half `patience` (rounded down, at least 1) epochs in a row without a
    lower validation loss. So does torch.optim.lr_scheduler.ReduceLROnPlateau with factor 0.5,
    threshold 0 and a patience of one epoch less, as it waits for one epoch more. A loss that is NaN
    is not lower.
    """
    factor, lowest, waited = 1.0, float("inf"), 0
    if training.schedule != "plateau":
        return factor
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = loss if loss < lowest else lowest
        if waited == max(1, training.patience // PLATEAU_SHARE):
            factor, waited = factor * PLATEAU_FACTOR, 0
    return factor
