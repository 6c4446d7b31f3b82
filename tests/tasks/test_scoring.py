"""Losses, metrics and class weights."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from training_cases import (
    LONG,
    QUICK,
    SMALL,
    means,
    prepared,
    save_npz,
    seeded,
    setting,
    two_classes,
)

from lstm_compile import ModelConfig
from lstm_compile.errors import InputError
from lstm_compile.evaluation.baselines import fit_baselines
from lstm_compile.evaluation.evaluate import evaluate
from lstm_compile.tasks.losses import balanced_weights, loss_name, row_weight, training_loss
from lstm_compile.tasks.metrics import metrics, score_classes
from lstm_compile.training.loop import fit, predict_all


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
        ("classify", "mse", "loss must be one of auto, cross-entropy for task classify; got 'mse'"),
        (
            "regress",
            "cross-entropy",
            "loss must be one of auto, mse, mae, huber for task regress; got 'cross-entropy'",
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


# ---- class weights


def test_balanced_weights_by_hand():
    y = torch.tensor([0, 0, 0, 1, 3, 3])
    assert balanced_weights(y, 4).tolist() == [6 / 12, 6 / 4, 0.0, 6 / 8]
    assert balanced_weights(y, 4).dtype == torch.float32
    weights = balanced_weights(y, 4)
    shares = [float(weights[y[y == code]].sum()) for code in (0, 1, 3)]
    assert shares == pytest.approx([1.5, 1.5, 1.5])


def test_the_weighted_loss_is_that_of_torch():
    data = two_classes()
    params, config = setting(data)
    logits, y = torch.randn(9, 2, generator=seeded(0)) * 3, torch.arange(9) % 2
    weights = torch.tensor([0.3, 2.5])
    found = training_loss(params, config, replace(QUICK, label_smoothing=0.0), logits, y, weights)
    torch.testing.assert_close(found, functional.cross_entropy(logits, y, weights))
    assert float(row_weight(y, weights)) == pytest.approx(5 * 0.3 + 4 * 2.5)


@pytest.mark.parametrize("ratio", [5, 19, 20, 50, 100])
def test_class_weights_leave_the_optimum_of_smoothed_labels_where_it_is(ratio):
    """Rows that can be told apart: each is answered best by its own smoothed label."""
    params, config = setting(two_classes())
    y = torch.tensor([1] + [0] * ratio)
    training = replace(QUICK, label_smoothing=0.1)
    best = torch.where(functional.one_hot(y, 2).bool(), 0.95, 0.05).log().requires_grad_()
    loss = training_loss(params, config, training, best, y, balanced_weights(y, 2))
    (gradient,) = torch.autograd.grad(loss, best)
    torch.testing.assert_close(gradient, torch.zeros_like(best), atol=1e-7, rtol=0)
    costs = functional.cross_entropy(best.detach(), y, reduction="none", label_smoothing=0.1)
    assert loss.item() == pytest.approx(float(costs[0] + costs[1:].mean()) / 2, rel=1e-5)


def test_a_rare_class_does_not_become_the_answer_to_everything():
    data = two_classes(204)
    y = (torch.arange(204) % 51 == 0).long()
    x = (2.0 * y - 1).repeat_interleave(data.lengths)[:, None].expand(-1, 2).contiguous()
    data = replace(data, x=x, y=y, classes=("common", "rare"))
    params, config = setting(data)
    training = replace(LONG, class_weight="balanced", label_smoothing=0.1)
    found = fit(params, config, training, data, data)
    assert torch.equal(predict_all(found.params, config, data).argmax(-1), y)


def test_a_class_without_weight_gives_no_nan():
    params, config = setting(two_classes())
    weights, y = torch.tensor([2.0, 0.0]), torch.tensor([1, 1])
    loss = training_loss(params, config, QUICK, torch.randn(2, 2), y, weights)
    assert loss == 0


def lopsided(count=200):
    """Three classes; one is rare and one never occurs."""
    data = two_classes(count)
    y = (torch.arange(count) % 10 == 0).long()
    x = data.x.clone()
    owner = torch.arange(count).repeat_interleave(data.lengths)
    x[:, 0] = torch.randn(len(x), generator=seeded(1)) + 0.8 * y[owner]
    return replace(data, x=x, y=y, classes=("common", "rare", "absent"))


def test_balanced_training_finds_the_rare_class_and_stays_finite():
    data, held_out = lopsided(), lopsided(100)
    params, config = setting(data)
    results = {}
    for kind in ("none", "balanced"):
        training = replace(LONG, class_weight=kind)
        found = fit(params, config, training, data, held_out)
        assert all(math.isfinite(e.validation_loss + e.train_loss) for e in found.epochs)
        guess = predict_all(found.params, config, held_out).argmax(-1)
        results[kind] = float((guess[held_out.y == 1] == 1).double().mean())
        weights = balanced_weights(data.y, 3) if kind == "balanced" else None
        logits = predict_all(found.params, config, held_out)
        loss = functional.cross_entropy(logits, held_out.y, weights)
        assert found.best.validation_loss == pytest.approx(float(loss), rel=1e-5)
    assert results["balanced"] > results["none"] + 0.3


def test_balanced_weights_are_refused_for_targets(tmp_path):
    training = replace(QUICK, class_weight="balanced")
    with pytest.raises(InputError, match="class_weight must be none for task regress, whose"):
        prepared(save_npz(tmp_path, means()), SMALL, training, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
