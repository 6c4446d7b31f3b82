import json
import math
import random
import tomllib
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from training_cases import QUICK, SMALL, do, means, same, save_npz, seeded, setting, two_classes

from lstm_compile import ModelConfig, load_model
from lstm_compile.data import fingerprint, gather, load_dataset
from lstm_compile.devices import cpu_threads, find_device, fitting_threads
from lstm_compile.errors import InputError, RunError
from lstm_compile.evaluation.baselines import fit_baselines, from_tensors
from lstm_compile.evaluation.evaluate import evaluate
from lstm_compile.model.model import forward, trainable
from lstm_compile.model.scaling import Scaler, fit_scaler
from lstm_compile.recurrence.calibrate import fastest_threads
from lstm_compile.tasks.losses import loss_name, training_loss
from lstm_compile.tasks.metrics import metrics, score_classes
from lstm_compile.training import epoch as epochs
from lstm_compile.training import loop
from lstm_compile.training.loop import Fit, fit, predict_all, threads_of
from lstm_compile.training.prepare import prepare
from lstm_compile.training.run import run
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.step import (
    AdamState,
    adam_update,
    clip_by_norm,
    init_adam,
    learning_rate_at,
    train_step,
)

# ---- one step


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


# ---- losses and metrics


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_that_of_torch(smoothing):
    params, config = setting(two_classes())
    logits = torch.randn(7, 2, generator=seeded(0)) * 3
    y = torch.randint(2, (7,), generator=seeded(1))
    found = training_loss(params, config, replace(QUICK, label_smoothing=smoothing), logits, y)
    assert found == functional.cross_entropy(logits, y, label_smoothing=smoothing)
    likely = logits.log_softmax(-1)
    expected = -(1 - smoothing) * likely[range(7), y] - smoothing * likely.mean(-1)
    torch.testing.assert_close(found, expected.mean())


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("auto", functional.mse_loss),
        ("mse", functional.mse_loss),
        ("mae", functional.l1_loss),
        ("huber", functional.huber_loss),
    ],
)
def test_regression_losses_are_those_of_torch_in_scaled_units(name, theirs):
    params, config = setting(means(targets=2))
    scale, shift = torch.tensor([300.0, 0.5]), torch.tensor([1e4, -2.0])
    params |= {"target_scaler.scale": scale, "target_scaler.shift": shift}
    y = torch.randn(9, 2, generator=seeded(0)) * scale * 2 + shift
    prediction = torch.randn(9, 2, generator=seeded(1)) * scale * 2 + shift
    found = training_loss(params, config, replace(QUICK, loss=name), prediction, y)
    expected = theirs((prediction - shift) / scale, (y - shift) / scale)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("task", "loss", "message"),
    [
        ("classify", "mse", "loss must be auto, cross-entropy for task classify; got 'mse'"),
        (
            "regress",
            "cross-entropy",
            "loss must be auto, mse or mae or huber for task regress; got 'cross-entropy'",
        ),
    ],
)
def test_the_loss_of_another_task_is_refused(task, loss, message):
    with pytest.raises(InputError, match=message):
        loss_name(task, loss)


def test_metrics_of_classes_by_hand():
    config = ModelConfig(task="classify", input_size=2, output_size=4)
    guess = torch.tensor([0, 0, 1, 1, 2, 3])
    y = torch.tensor([0, 1, 1, 1, 0, 0])  # class 2 and 3 do not occur
    scores = functional.one_hot(guess, 4).float() * 3
    found = metrics(config, scores, y)
    # class 0: 1 hit, 3 actual, 2 guessed; class 1: 2 hits, 3 actual, 2 guessed
    f1 = (2 * 1 / 5 + 2 * 2 / 5) / 2
    total = math.log(math.e**3 + 3)
    loss = (3 * (total - 3) + 3 * total) / 6
    assert found == pytest.approx({"accuracy": 0.5, "macro_f1": f1, "loss": loss})
    assert score_classes(scores, y) == {k: found[k] for k in ("accuracy", "macro_f1")}


def test_metrics_of_targets_are_in_the_users_units():
    config = ModelConfig(task="regress", input_size=2, output_size=1)
    found = metrics(config, torch.tensor([[1000.0], [3000.0]]), torch.tensor([[2000.0], [3000.0]]))
    assert found == pytest.approx({"mae": 500.0, "rmse": 1000 / math.sqrt(2), "r2": -1.0})


def test_an_evaluation_compares_on_the_same_rows():
    data = two_classes()
    _, config = setting(data)
    scores = functional.one_hot(data.y, 2).float()
    found = evaluate(scores, config, data, fit_baselines(data)).to_dict()
    assert list(found) == ["task", "rows", "metrics", "baselines", "verdict", "interval"]
    assert (found["task"], found["rows"], found["metrics"]["accuracy"]) == ("classify", 80, 1.0)
    assert next(iter(found["baselines"])) == "majority class"
    assert json.loads(json.dumps(found)) == {**found, "interval": list(found["interval"])}


# ---- scaling


def test_scalers_by_hand():
    values = torch.tensor([[1.0, 7.0, 1e6], [3.0, 7.0, 1e6 + 1], [5.0, 7.0, 1e6 + 2]])
    standard = fit_scaler(values, "standard")
    assert standard.shift.tolist() == [3.0, 7.0, 1e6 + 1]
    torch.testing.assert_close(standard.scale, torch.tensor([8 / 3, 1, 2 / 3]).sqrt())
    minmax = fit_scaler(values, "minmax")
    assert (minmax.shift.tolist(), minmax.scale.tolist()) == ([1.0, 7.0, 1e6], [4.0, 1.0, 2.0])
    none = fit_scaler(values, "none")
    assert (none.shift.tolist(), none.scale.tolist()) == ([0, 0, 0], [1, 1, 1])
    assert minmax.apply(values)[:, 0].tolist() == [0.0, 0.5, 1.0]
    torch.testing.assert_close(standard.invert(standard.apply(values)), values)


@pytest.mark.parametrize("kind", ["none", "standard", "minmax"])
def test_a_scaler_of_no_rows_is_the_identity(kind):
    scaler = fit_scaler(torch.zeros(0, 2), kind)
    assert isinstance(scaler, Scaler)
    assert (scaler.shift.tolist(), scaler.scale.tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize("kind", ["standard", "minmax"])
@pytest.mark.parametrize("constant", [0.1, 1e30, -3e38, 1e-30])
def test_a_constant_feature_is_only_shifted(kind, constant):
    scaler = fit_scaler(torch.full((7, 1), constant), kind)
    assert scaler.scale.tolist() == [1.0]
    assert scaler.apply(torch.full((7, 1), constant)).eq(0).all()


# ---- the loop


def test_the_same_seed_gives_the_same_weights_bit_for_bit():
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train, dropout=0.3, num_layers=2, head_dropout=0.3)
    first, second = (fit(params, config, QUICK, train, held_out) for _ in range(2))
    other = fit(params, config, replace(QUICK, seed=1), train, held_out)
    assert same(first.params, second.params)
    assert [e.train_loss for e in first.epochs] == [e.train_loss for e in second.epochs]
    assert not same(first.params, other.params)


def test_training_neither_reads_nor_changes_the_callers_random_state():
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train, dropout=0.3, num_layers=2)
    results = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        results.append(fit(params, config, QUICK, train, held_out).params)
        assert torch.get_rng_state().equal(before[0])
        assert random.getstate() == before[1]
        assert np.array_equal(np.random.get_state()[1], before[2])
    assert same(*results)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_training_leaves_the_random_state_of_cuda_alone(where):
    train = two_classes().to(where)
    params, config = setting(train, head_dropout=0.5)
    torch.cuda.manual_seed_all(11)
    before = torch.cuda.get_rng_state_all()
    fit({k: v.to(where) for k, v in params.items()}, config, QUICK, train, train)
    for found, expected in zip(torch.cuda.get_rng_state_all(), before, strict=True):
        assert found.equal(expected)


def test_the_callers_random_state_survives_an_error():
    train = two_classes()
    params, config = setting(train)
    before = torch.get_rng_state()

    def fail(epoch, params):
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fit(params, config, QUICK, train, train, fail)
    assert torch.get_rng_state().equal(before)


def scripted(monkeypatch, losses):
    """Validation losses as given, epoch by epoch."""
    script = iter(losses)
    monkeypatch.setattr(loop, "_validate", lambda *_: (next(script), {"accuracy": 0.0}))


@pytest.mark.parametrize(
    ("losses", "patience", "epochs", "best", "stopped"),
    [
        ([3, 2, 2, 2.5, 2.1, 1], 3, 5, 2, "patience"),
        ([1, 2], 1, 2, 1, "patience"),
        ([3, 4, 2, 4, 1, 4, 4], 2, 7, 5, "patience"),
        ([3, 2, 1], 1, 3, 3, "epochs"),
        ([3, 4, 4], 5, 3, 1, "epochs"),
        ([3, math.nan, 2, math.inf], 2, 4, 3, "epochs"),
        ([math.nan, math.nan, 1], 2, 2, None, "patience"),
    ],
)
def test_early_stopping_keeps_the_best_weights(
    monkeypatch, losses, patience, epochs, best, stopped
):
    scripted(monkeypatch, losses)
    train, seen = two_classes(), []
    params, config = setting(train)
    training = replace(QUICK, epochs=len(losses), patience=patience)
    result = fit(params, config, training, train, train, lambda *pair: seen.append(pair))
    assert isinstance(result, Fit)
    assert (len(result.epochs), result.stopped) == (epochs, stopped)
    assert [epoch for epoch, _ in seen] == result.epochs
    assert [epoch.epoch for epoch in result.epochs] == list(range(1, epochs + 1))
    if best is None:
        assert result.best is None
        assert same(result.params, params)
        return
    assert result.best is not None
    assert result.best.epoch == best
    assert same(result.params, seen[best - 1][1])
    assert best == epochs or not same(result.params, seen[-1][1])


def test_an_epoch_reports_what_happened():
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train)
    training = replace(QUICK, label_smoothing=0.2)
    result = fit(params, config, training, train, held_out)
    last = result.epochs[-1]
    scores = predict_all(params, config, held_out)
    assert not scores.requires_grad
    assert set(last.validation) == {"accuracy", "macro_f1", "loss"}
    assert last.validation_loss == pytest.approx(last.validation["loss"])  # without smoothing
    assert last.learning_rate == learning_rate_at(14, 15, training)
    assert last.seconds > 0
    assert result.epochs[0].train_loss > last.train_loss


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupt_ends_training_with_the_best_weights_so_far(epoch):
    train, seen = two_classes(), []
    params, config = setting(train)

    def stop(current, reached):
        seen.append(reached)
        if current.epoch == epoch:
            raise KeyboardInterrupt

    result = fit(params, config, replace(QUICK, epochs=9), train, train, stop)
    assert (result.stopped, len(result.epochs)) == ("interrupt", epoch)
    assert same(result.params, seen[result.best.epoch - 1])


def test_a_loss_that_is_not_finite_names_epoch_batch_and_sequences(monkeypatch):
    train = two_classes(20)
    train.x[train.offsets[7]] = math.inf
    params, config = setting(train)
    training = replace(QUICK, batch_size=8, optimizer="adam", clip_norm=0.0, skip_nonfinite=0)
    with pytest.raises(RunError, match=r"look at their values, or lower --learning-rate") as info:
        fit(params, config, training, train, two_classes(9))
    text = str(info.value)
    assert "\n" not in text
    place, rows = text.split(" (sequences ")
    assert place in {f"the loss of epoch 1, batch {k} of 3 is nan" for k in (1, 2, 3)}
    assert "7" in rows.split(" of the training data")[0].split(", ")


def test_batches_are_bucketed_and_new_in_every_epoch(monkeypatch):
    train = two_classes(96)
    params, config = setting(train)
    seen, original = [], epochs.train_step

    def spy(params, optimizer, batch, *rest):
        seen.append(batch)
        return original(params, optimizer, batch, *rest)

    monkeypatch.setattr(epochs, "train_step", spy)
    fit(params, config, replace(QUICK, epochs=2), train, train)
    assert [len(batch.y) for batch in seen] == 12 * [16]
    padded = sum(batch.x.shape[0] * batch.x.shape[1] for batch in seen)
    assert 2 * len(train.x) / padded > 0.75  # random batches: about 0.56
    first, second = (sorted(b.lengths.tolist() for b in part) for part in (seen[:6], seen[6:]))
    everything = [length for lengths in first for length in lengths]
    assert sorted(everything) == sorted(train.lengths.tolist())
    assert first != second


def test_predictions_do_not_depend_on_the_batch_they_were_made_in():
    data = two_classes(40)
    params, config = setting(data, num_layers=2)
    params["head.bias"] = torch.tensor([0.3, -0.2])
    expected = predict_all(params, config, data, batch_size=1)
    for batch_size in (3, 7, 256):
        found = predict_all(params, config, data, batch_size=batch_size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    order = torch.randperm(40, generator=seeded(0))
    found = predict_all(params, config, data.select(order), batch_size=7)
    torch.testing.assert_close(found, expected[order], rtol=0, atol=1e-6)
    for index in range(4):
        alone = gather(data, torch.tensor([index]))
        row, _ = forward(params, config, alone.x)
        torch.testing.assert_close(row[0], expected[index], rtol=0, atol=1e-6)


# ---- it learns


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_it_learns_to_tell_two_classes_apart(pooling):
    train, held_out = two_classes(120), two_classes(60, seed=5)
    params, config = setting(train, pooling=pooling)
    result = fit(params, config, replace(QUICK, epochs=8), train, held_out)
    assert result.best is not None
    assert result.best.validation["accuracy"] > 0.95


@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_it_learns_means_in_units_far_from_one(tmp_path, targets, kind):
    path = save_npz(tmp_path, means(200, targets=targets))
    test = save_npz(tmp_path, means(60, seed=5, targets=targets), "test")
    training = replace(QUICK, epochs=25, patience=25, batch_size=20)
    found = do(path, tmp_path / "run", training, test=test, pooling="mean", target_scaling=kind)
    assert found.evaluation.metrics["r2"] > 0.9
    assert found.evaluation.rows == 60
    assert found.tested_on == "test"


def test_it_learns_without_target_scaling_where_targets_are_near_unit_scale(tmp_path):
    data = means(200)
    data = replace(data, y=fit_scaler(data.y, "standard").apply(data.y) * 2 + 1)
    training = replace(QUICK, epochs=25, patience=25, batch_size=20)
    changes = {"pooling": "mean", "target_scaling": "none"}
    found = do(save_npz(tmp_path, data), tmp_path / "run", training, **changes)
    assert found.evaluation.metrics["r2"] > 0.9
    assert found.model.params["target_scaler.scale"].eq(1).all()


# ---- what a run may see


@pytest.mark.parametrize("task", ["classify", "regress"])
@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_scalers_know_nothing_of_the_validation_part(tmp_path, task, kind):
    data = two_classes() if task == "classify" else means(targets=2)
    training = replace(QUICK, epochs=1, validation=0.2)
    kinds = {"scaling": kind, "target_scaling": kind}
    job = prepare(save_npz(tmp_path, data), {**SMALL, **kinds}, training, output=tmp_path / "a")
    found = run(job).model.params

    expected = {"scaler": fit_scaler(job.parts.train.x, kind)}
    if task == "regress":
        expected["target_scaler"] = fit_scaler(job.parts.train.y, kind)
    for name, scaler in expected.items():
        assert found[f"{name}.shift"].equal(scaler.shift)
        assert found[f"{name}.scale"].equal(scaler.scale)

    held_out = {tuple(row) for row in job.parts.validation.x.tolist()}
    is_held_out = torch.tensor([tuple(row) in held_out for row in data.x.tolist()])
    assert is_held_out.sum() == len(job.parts.validation.x)
    extreme = replace(data, x=torch.where(is_held_out[:, None], 1e20, data.x))
    if task == "regress":
        targets = {tuple(row) for row in job.parts.validation.y.tolist()}
        rows = torch.tensor([tuple(row) in targets for row in data.y.tolist()])
        extreme = replace(extreme, y=torch.where(rows[:, None], 1e6 * data.y, data.y))
    again = do(save_npz(tmp_path, extreme), tmp_path / "b", training, **kinds).model.params
    for name in expected:
        assert again[f"{name}.shift"].equal(found[f"{name}.shift"])
        assert again[f"{name}.scale"].equal(found[f"{name}.scale"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e39])
def test_values_that_are_no_numbers_never_enter(tmp_path, bad):
    data = two_classes()
    x = data.x.double().numpy()
    x[5, 1] = bad
    path = tmp_path / "data.npz"
    np.savez(path, x=x, lengths=data.lengths.numpy(), y=data.y.numpy())
    with pytest.raises(InputError, match="feature 'feature_1': expected a finite float32 number"):
        prepare(str(path), SMALL, QUICK, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_parts_of_a_run_do_not_overlap(tmp_path):
    training = replace(QUICK, validation=0.25)
    job = prepare(save_npz(tmp_path, two_classes()), SMALL, training, output=tmp_path / "a")
    parts = job.parts
    train, held_out = ({tuple(row) for row in part.x.tolist()} for part in parts[:2])
    assert not train & held_out
    assert (len(parts.train), len(parts.validation)) == (60, 20)
    assert parts.tested_on == "validation"
    assert parts.test is parts.validation
    assert parts.known is parts.train  # the baselines see no more than the model
    bundled = prepare("japanese-vowels", SMALL, training, output=tmp_path / "b").parts
    assert (bundled.tested_on, len(bundled.known), len(bundled.test)) == ("test", 270, 370)
    assert len(bundled.train) + len(bundled.validation) == 270


# ---- the run folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    path = save_npz(folder, two_classes())
    return path, folder / "run", do(path, folder / "run", pooling="mean")


def test_a_run_folder_holds_six_files(finished):
    _, folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "last.safetensors",
        "config.toml",
        "metrics.jsonl",
        "baselines.safetensors",
        "report.html",
    }


def test_the_config_file_resolves_every_field(finished):
    path, folder, outcome = finished
    document = tomllib.loads((folder / "config.toml").read_text())
    derived = {"task", "input_size", "output_size"}
    config, threads = outcome.model.config.to_dict(), threads_of(outcome.model.config, QUICK)
    assert document == {
        "data": path,
        "model": {name: value for name, value in config.items() if name not in derived},
        # settled: a short run compiles nothing
        "training": {**asdict(QUICK), "backend": "vendor", "threads": threads},
    }
    assert set(document["training"]) == {field.name for field in fields(TrainingConfig)}


@pytest.mark.parametrize("name", ["plain", 'a "quoted" \\ name', "ünï 🙂", "tab\tand\x7fdel"])
def test_the_config_file_takes_any_name_of_a_data_file(tmp_path, name):
    path = save_npz(tmp_path, two_classes(20), name)
    do(path, tmp_path / "run", replace(QUICK, epochs=1))
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text("utf-8"))["data"] == path


def test_the_metrics_file_has_a_line_an_epoch(finished):
    _, folder, outcome = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [epoch._asdict() for epoch in outcome.fit.epochs]
    assert set(lines[0]) == {
        "epoch",
        "train_loss",
        "validation_loss",
        "validation",
        "learning_rate",
        "seconds",
        "best",
    }


def test_the_model_file_holds_the_best_weights_and_where_they_came_from(finished):
    path, folder, outcome = finished
    model = load_model(folder)
    assert same(model.params, outcome.fit.params)
    assert model.schema == load_dataset(path, "train").schema
    training = model.training
    assert set(training) == {
        "data",
        "data_fingerprint",
        "seed",
        "versions",
        "epochs",
        "stopped",
        "backend",
        "validation",
        "baselines",
        "seconds",
        "compile_seconds",
    }
    assert (training["data"], training["seed"], training["stopped"]) == (path, 0, "epochs")
    assert training["epochs"] == outcome.fit.best.epoch
    assert training["versions"]["torch"] == torch.__version__
    assert training["validation"] == outcome.evaluation.metrics
    assert training["baselines"] == outcome.evaluation.baselines
    assert len(training["data_fingerprint"]) == 64


def test_the_baselines_file_holds_what_the_figures_are_of(finished):
    _, folder, outcome = finished
    stored = from_tensors(load_file(folder / "baselines.safetensors"))
    assert set(stored) == set(outcome.evaluation.baselines)


def test_the_fingerprint_and_the_test_figures_of_a_run_with_a_test_file(tmp_path):
    train, test = two_classes(), two_classes(30, seed=5)
    path = save_npz(tmp_path, train)
    found = do(path, tmp_path / "run", test=save_npz(tmp_path, test, "test"), pooling="mean")
    document = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (document["data"], document["test"]) == (path, str(tmp_path / "test.npz"))
    training = load_model(tmp_path / "run").training
    assert training["test"] == found.evaluation.metrics
    assert training["data_fingerprint"] == fingerprint(load_dataset(path, "train"))


def test_a_run_is_the_same_model_again_bit_for_bit(tmp_path, finished):
    path, _, outcome = finished
    again = do(path, tmp_path / "run", pooling="mean")
    assert same(again.model.params, outcome.model.params)
    other = do(path, tmp_path / "other", replace(QUICK, seed=1), pooling="mean")
    assert not same(other.model.params, outcome.model.params)


def test_a_diverging_run_keeps_the_best_weights_so_far(tmp_path, monkeypatch):
    path, kept = save_npz(tmp_path, two_classes()), {}
    original = epochs.train_step

    def poisoned(params, optimizer, batch, *rest):
        result = original(params, optimizer, batch, *rest)
        return result._replace(is_finite=torch.tensor(not kept), loss=result.loss * math.nan)

    monkeypatch.setattr(epochs, "train_step", poisoned)
    training = replace(QUICK, skip_nonfinite=0)
    with pytest.raises(RunError, match="the loss of epoch 2, batch 1 of 5 is nan"):
        do(path, tmp_path / "run", training, lambda epoch: kept.update(epoch._asdict()))
    model = load_model(tmp_path / "run")
    assert model.training["epochs"] == 1
    assert model.training["validation"] == kept["validation"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_whose_validation_never_is_finite_fails(tmp_path, monkeypatch):
    scripted(monkeypatch, [math.nan] * 3)
    with pytest.raises(RunError, match="no epoch gave a finite validation loss; lower --learning"):
        do(save_npz(tmp_path, two_classes()), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_interrupted_run_is_finished_with_what_it_has(tmp_path):
    def stop(epoch):
        raise KeyboardInterrupt

    found = do(save_npz(tmp_path, two_classes()), tmp_path / "run", on_epoch=stop)
    assert (found.fit.stopped, len(found.fit.epochs)) == ("interrupt", 1)
    model = load_model(tmp_path / "run")
    assert same(model.params, found.fit.params)
    assert model.training["stopped"] == "interrupt"
    assert (tmp_path / "run" / "baselines.safetensors").exists()


def test_an_interrupt_before_the_first_epoch_is_passed_on(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(epochs, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        do(save_npz(tmp_path, two_classes()), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


# ---- what is refused before anything is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0.0, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be at most"),
        ({"learning_rate": "fast"}, "learning_rate must be of type float, got 'fast'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adam; got 'sgd'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 1 << 70}, "seed must be at most"),
        (
            {"test_share": 1.5},
            "test_share must be a share up to 1 or a whole number of steps, got 1",
        ),
        ({"validation": 0.95}, "validation must be at most 0.9, got 0.95"),
        ({"validation": 0.0, "refit": True}, "refit goes by a validation part; take validation ab"),
        ({"validation": 0.0, "schedule": "plateau"}, "schedule plateau goes by a validation part;"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig(**changes)


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "meta", "", "cpu:zero"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match="device must be cpu, cuda, cuda:N or auto; got"):
        find_device(name)


def test_an_absent_device_is_refused():
    message = r"device cuda:99 is not here: torch sees \d+ CUDA devices; use --device cpu"
    with pytest.raises(InputError, match=message):
        find_device("cuda:99")


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path, name):
    path = save_npz(tmp_path, two_classes())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("kept")
    with pytest.raises(InputError, match="holds a run already; name another --output or remove it"):
        prepare(path, SMALL, QUICK, output=folder)
    assert (folder / name).read_text() == "kept"
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"cannot be made \(File exists\); name another --output"):
        prepare(path, SMALL, QUICK, output=tmp_path / "file")


def test_small_models_take_one_thread_and_large_ones_all():
    assert fitting_threads(32, 64) == 1
    assert fitting_threads(64, 256) == torch.get_num_threads()


def test_small_models_take_all_threads_where_that_was_measured_to_help(monkeypatch):
    config, small = ModelConfig(task="regress", input_size=2, output_size=1), QUICK
    monkeypatch.setattr("lstm_compile.training.loop.fastest_threads", lambda *sizes: sizes[-1] + 4)
    with cpu_threads(3):
        assert threads_of(config, small) == 7
        assert threads_of(config, replace(small, threads=2)) == 2
        assert threads_of(replace(config, hidden_size=512), small) == 3


def test_the_faster_number_of_threads_is_measured_once():
    with cpu_threads(2):
        found = fastest_threads(8, 2, 4, 2)
    assert found in (1, 2)
    assert fastest_threads(8, 2, 4, 2) == found
    assert fastest_threads(8, 2, 4, 1) == 1


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
