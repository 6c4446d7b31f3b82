"""Epochs of training: random numbers, early stopping, interrupts, and that it learns."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from marks import slow
from training_cases import QUICK, do, means, same, save_npz, scripted, seeded, setting, two_classes

from lstm_compile.data import gather
from lstm_compile.errors import RunError
from lstm_compile.model.model import forward
from lstm_compile.model.scaling import fit_scaler
from lstm_compile.training import epoch as epochs
from lstm_compile.training.loop import Fit, fit, predict_all
from lstm_compile.training.step import (
    learning_rate_at,
)


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


@pytest.mark.parametrize("targets", [slow(1), 2])
@pytest.mark.parametrize("kind", ["standard", slow("minmax")])
def test_it_learns_means_in_units_far_from_one(tmp_path, targets, kind):
    path = save_npz(tmp_path, means(200, targets=targets))
    test = save_npz(tmp_path, means(60, seed=5, targets=targets), "test")
    training = replace(QUICK, epochs=25, patience=25, batch_size=20)
    found = do(path, tmp_path / "run", training, test=test, pooling="mean", target_scaling=kind)
    assert found.evaluation.metrics["r2"] > 0.9
    assert found.evaluation.rows == 60
    assert found.tested_on == "test"


@pytest.mark.slow
def test_it_learns_without_target_scaling_where_targets_are_near_unit_scale(tmp_path):
    data = means(200)
    data = replace(data, y=fit_scaler(data.y, "standard").apply(data.y) * 2 + 1)
    training = replace(QUICK, epochs=25, patience=25, batch_size=20)
    changes = {"pooling": "mean", "target_scaling": "none"}
    found = do(save_npz(tmp_path, data), tmp_path / "run", training, **changes)
    assert found.evaluation.metrics["r2"] > 0.9
    assert found.model.params["target_scaler.scale"].eq(1).all()
