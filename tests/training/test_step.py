"""One step of training: its gradients, Adam, clipping, rates, averages and accumulation."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from training_cases import LONG, QUICK, means, same, seeded, setting, two_classes

from lstm_compile.data import gather
from lstm_compile.model.model import trainable
from lstm_compile.model.scaling import fit_scaler
from lstm_compile.training import epoch as epochs
from lstm_compile.training import loop
from lstm_compile.training.loop import fit, predict_all
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.step import (
    AdamState,
    adam_update,
    average_update,
    clip_by_norm,
    init_adam,
    learning_rate_at,
    plateau_factor,
    train_step,
)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.5, "head_dropout": 0.5, "num_layers": 2}])
def test_a_step_is_pure(changes):
    data = two_classes()
    params, config = setting(data, **changes)
    batch, state = gather(data, torch.arange(8)), init_adam(params)
    for _ in range(2):  # from the second step on the state is no longer zero
        inputs = [*params.values(), *state.mean.values(), *state.square.values(), *batch[:3]]
        copies = [value.clone() for value in inputs]
        torch.manual_seed(3)
        first = train_step(params, state, batch, 0.1, config, QUICK)
        torch.manual_seed(3)
        second = train_step(params, state, batch, 0.1, config, QUICK)
        assert all(value.equal(copy) for value, copy in zip(inputs, copies, strict=True))
        assert same(first.params, second.params)
        assert same(first.optimizer.mean, second.optimizer.mean)
        assert same(first.optimizer.square, second.optimizer.square)
        assert first.loss.equal(second.loss)
        assert not any(value.requires_grad for value in first.params.values())
        assert not first.loss.requires_grad
        params, state = first.params, first.optimizer
    assert state.step == 2


def test_a_step_moves_every_weight_and_no_statistic():
    data = two_classes()
    params, config = setting(data, num_layers=2)
    result = train_step(
        params, init_adam(params), gather(data, torch.arange(8)), 0.1, config, QUICK
    )
    for name, value in params.items():
        assert result.params[name].equal(value) == name.startswith("scaler.")


def test_a_step_on_sequences_without_any_step_is_finite():
    data = two_classes()
    params, config = setting(data)
    batch = gather(data, torch.arange(4))
    batch = batch._replace(lengths=torch.zeros(4, dtype=torch.int64))
    result = train_step(params, init_adam(params), batch, 0.1, config, QUICK)
    assert all(value.isfinite().all() for value in result.params.values())
    assert result.loss.isfinite()


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adam_is_that_of_torch(optimizer, decay):
    shapes = {"weight": (4, 3), "bias": (4,), "pooling": (3,)}
    params = {
        k: torch.randn(shape, generator=seeded(i)) for i, (k, shape) in enumerate(shapes.items())
    }
    theirs = {name: value.clone().requires_grad_() for name, value in params.items()}
    groups = [
        {"params": [theirs["weight"]], "weight_decay": decay},
        {"params": [theirs["bias"], theirs["pooling"]], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    torch_optimizer = kind(groups)
    training = TrainingConfig(optimizer=optimizer, weight_decay=decay)
    state, generator = init_adam(params), seeded(9)
    for step in range(20):
        rate = 0.1 / (step + 1)
        gradients = {k: torch.randn(v.shape, generator=generator) for k, v in params.items()}
        params, state = adam_update(params, gradients, state, rate, training)
        for group in torch_optimizer.param_groups:
            group["lr"] = rate
        for name, value in theirs.items():
            value.grad = gradients[name]
        torch_optimizer.step()
        for name, value in params.items():
            torch.testing.assert_close(value, theirs[name].detach(), rtol=1e-5, atol=1e-6)
    assert state.step == 20


def test_adam_starts_at_zero_for_what_is_trained():
    params, _ = setting(means())
    state = init_adam(params)
    assert (state.step, set(state.mean)) == (0, set(trainable(params)))
    assert not any("scaler" in name for name in state.mean)
    assert all(value.eq(0).all() for part in state[1:] for value in part.values())
    assert isinstance(state, AdamState)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_clipping_is_that_of_torch(limit, scale):
    gradients = {
        name: torch.randn(shape, generator=seeded(i)) * scale
        for i, (name, shape) in enumerate({"a": (3, 4), "b": (5,), "c": (1,)}.items())
    }
    theirs = [torch.zeros_like(value, requires_grad=True) for value in gradients.values()]
    for value, gradient in zip(theirs, gradients.values(), strict=True):
        value.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(theirs, limit)
    clipped = clip_by_norm(gradients, limit)
    for ours, value in zip(clipped.values(), theirs, strict=True):
        torch.testing.assert_close(ours, value.grad, rtol=1e-6, atol=0)


def test_a_limit_of_zero_clips_nothing():
    gradients = {"a": torch.full((2,), 1e20)}
    assert clip_by_norm(gradients, 0.0) is gradients


def test_learning_rates():
    cosine = TrainingConfig(learning_rate=2.0, warmup=0.2, schedule="cosine")
    rates = [learning_rate_at(step, 10, cosine) for step in range(10)]
    expected = [1.0, 2.0, *(1 + math.cos(math.pi * k / 8) for k in range(8))]
    assert rates == pytest.approx(expected)
    assert rates[2] == 2.0
    assert 0 < rates[-1] < 0.1
    constant = replace(cosine, schedule="constant")
    assert [learning_rate_at(step, 10, constant) for step in range(10)] == [1.0] + 9 * [2.0]


def test_learning_rates_without_warmup_and_with_nothing_else():
    training = TrainingConfig(learning_rate=2.0, warmup=0.0)
    assert learning_rate_at(0, 1, training) == 2.0
    assert learning_rate_at(0, 10, training) == 2.0
    only = replace(training, warmup=1.0)
    assert [learning_rate_at(step, 4, only) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]


# ---- plateau


@pytest.mark.parametrize("patience", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_plateaus_are_those_of_torch(patience, seed):
    losses = torch.rand(60, generator=seeded(seed)).add(1).cumprod(0).pow(-0.1).tolist()
    noise = torch.rand(60, generator=seeded(seed + 9)).tolist()
    losses = [loss + 0.3 * more for loss, more in zip(losses, noise, strict=True)]
    losses[3], losses[20], losses[21] = losses[2], math.nan, math.inf
    training = TrainingConfig(schedule="plateau", patience=patience)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=max(1, patience // 2) - 1, threshold=0.0, eps=0.0
    )
    factors = []
    for count, loss in enumerate(losses, 1):
        theirs.step(loss)
        factors.append(plateau_factor(losses[:count], training))
        assert factors[-1] == optimizer.param_groups[0]["lr"]
    assert plateau_factor([], training) == 1.0
    assert len(set(factors)) > 3


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_other_schedules_know_no_plateau(schedule):
    assert plateau_factor([1.0, 2.0, 3.0, 4.0], TrainingConfig(schedule=schedule)) == 1.0


def test_a_plateau_lowers_the_rate_of_the_next_epoch(monkeypatch):
    script = iter([3.0, 2.0, 2.5, 2.5, 1.0, 2.0])
    monkeypatch.setattr(loop, "_validate", lambda *_: (next(script), {"accuracy": 0.0}))
    data = two_classes()
    params, config = setting(data)
    training = replace(LONG, schedule="plateau", patience=4, warmup=0.0)
    rates = [e.learning_rate for e in fit(params, config, training, data, data).epochs]
    assert rates == [0.02, 0.02, 0.02, 0.02, 0.01, 0.01]
    assert learning_rate_at(5, 10, training) == 0.02


# ---- moving average


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.999])
def test_the_average_is_the_weighted_sum_of_all_steps(decay):
    steps = [{"a": torch.randn(3, 2, generator=seeded(i)).double()} for i in range(12)]
    average = {"a": torch.full((3, 2), 1e6, dtype=torch.float64)}  # the start leaves no trace
    for step, params in enumerate(steps, 1):
        before = average["a"].clone()
        new = average_update(average, params, step, decay)
        assert average["a"].equal(before)
        average = new
        powers = decay ** torch.arange(step - 1, -1, -1).double()
        values = torch.stack([p["a"] for p in steps[:step]])
        expected = (powers[:, None, None] * values).sum(0) / powers.sum()
        torch.testing.assert_close(average["a"], expected, rtol=1e-9, atol=1e-9)
        assert step > 1 or average["a"].equal(params["a"])


def test_averages_are_validated_and_kept_while_training_goes_on_with_raw_weights():
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train, head_dropout=0.3)
    seen = []
    raw = fit(params, config, LONG, train, held_out)
    training = replace(LONG, ema=0.9)
    found = fit(params, config, training, train, held_out, lambda *pair: seen.append(pair))
    assert [e.train_loss for e in found.epochs] == [e.train_loss for e in raw.epochs]
    for epoch, reached in seen:
        loss = functional.cross_entropy(predict_all(reached, config, held_out), held_out.y)
        assert epoch.validation_loss == pytest.approx(float(loss))
    assert [e.validation_loss for e in found.epochs] != [e.validation_loss for e in raw.epochs]
    assert same(found.params, seen[found.best.epoch - 1][1])
    assert found.params.keys() == params.keys()


def test_the_average_is_over_the_steps_that_were_made(monkeypatch):
    data, steps = two_classes(), []
    params, config = setting(data)
    original = epochs.train_step

    def spy(*args):
        result = original(*args)
        steps.append(result.params)
        return result

    monkeypatch.setattr(epochs, "train_step", spy)
    training = replace(QUICK, epochs=1, ema=0.8)
    found = fit(params, config, training, data, data).params
    powers = [0.8 ** (len(steps) - 1 - index) for index in range(len(steps))]
    for name in trainable(params):
        expected = sum(p * step[name] for p, step in zip(powers, steps, strict=True)) / sum(powers)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


# ---- accumulation


@pytest.mark.parametrize("task", ["classify", "weighted", "regress"])
@pytest.mark.parametrize("sizes", [(16, 16), (16, 5), (9, 2, 21)])
def test_accumulated_batches_make_the_step_of_one_batch_of_their_rows(task, sizes):
    data = means(targets=2) if task == "regress" else two_classes()
    params, config = setting(data)
    scalers = {"scaler": data.x, "target_scaler": data.y} if task == "regress" else {}
    for name, values in scalers.items():
        scaler = fit_scaler(values, "standard")
        params |= {f"{name}.shift": scaler.shift, f"{name}.scale": scaler.scale}
    weights = torch.tensor([0.2, 1.9]) if task == "weighted" else None
    training = replace(QUICK, label_smoothing=0.2, clip_norm=0.5)
    pieces = torch.arange(sum(sizes)).split(list(sizes))
    first, *more = (gather(data, rows) for rows in pieces)
    whole = gather(data, torch.arange(sum(sizes)))
    args = (0.1, config, training, weights)
    found = train_step(params, init_adam(params), first, *args, more)
    expected = train_step(params, init_adam(params), whole, *args)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-6)
    for name, value in expected.optimizer.mean.items():  # a tenth of the clipped gradient
        torch.testing.assert_close(found.optimizer.mean[name], value, rtol=0, atol=1e-6)
    assert found.optimizer.step == 1


def test_accumulation_makes_fewer_steps_of_the_same_rows(monkeypatch):
    data, steps = two_classes(), []
    params, config = setting(data)
    original = epochs.train_step

    def spy(params, optimizer, batch, rate, config, training, weights, more, *rest):
        steps.append([len(part.y) for part in (batch, *more)])
        return original(params, optimizer, batch, rate, config, training, weights, more, *rest)

    monkeypatch.setattr(epochs, "train_step", spy)
    training = replace(QUICK, epochs=2, accumulate=2)
    found = fit(params, config, training, data, data)
    assert steps == 2 * [[16, 16], [16, 16], [16]]
    assert found.epochs[-1].learning_rate == learning_rate_at(5, 6, training)
