import math

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch.nn.functional import cross_entropy
from training_cases import baseline_metrics, two_classes

from lstm_compile.data import Sequences, load_dataset
from lstm_compile.errors import InputError
from lstm_compile.evaluation import baselines
from lstm_compile.evaluation.baselines import (
    fit_baselines,
    from_tensors,
    resampled_features,
    summary_features,
    to_tensors,
)
from lstm_compile.evaluation.linear import Baseline, fit_logistic, fit_ridge
from lstm_compile.tasks.metrics import score_targets

LENGTHS = [5, 0, 1, 40, 2]


def make(targets=0):
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    x = torch.randn(int(offsets[-1]), 3, generator=generator) * 4 - 7
    names = ("u", "v", "w")
    if targets:
        y = torch.randn(len(LENGTHS), targets, generator=generator)
        return Sequences(x, offsets, y, names, (), ("s", "t")[:targets])
    return Sequences(x, offsets, torch.tensor([0, 1, 1, 0, 1]), names, ("a", "b"), ())


def pieces(data):
    return np.split(data.x.double().numpy(), data.offsets[1:-1].numpy())


def random_features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    features = features * torch.tensor([1.0, 100.0, 0.01, 1.0, 1.0]) + 30
    features[:, 3] = 0.1  # a constant column
    return features


def test_summary_features_follow_their_definition():
    data = make()
    found = summary_features(data)
    assert found.dtype == torch.float64
    for row, steps in zip(found.numpy(), pieces(data), strict=True):
        parts = [f(steps, axis=0) for f in (np.mean, np.std, np.min, np.max) if len(steps)]
        expected = np.concatenate(parts) if parts else np.zeros(12)
        np.testing.assert_allclose(row, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 7, 24])
def test_resampled_features_follow_numpy_interp(frames):
    data = make()
    found = resampled_features(data, frames).reshape(len(data), frames, 3).numpy()
    for rows, steps in zip(found, pieces(data), strict=True):
        expected = np.zeros((frames, 3))
        if len(steps):
            at = np.linspace(0, len(steps) - 1, frames)
            columns = [np.interp(at, np.arange(len(steps)), column) for column in steps.T]
            expected = np.stack(columns, axis=1)
        np.testing.assert_allclose(rows, expected, rtol=1e-12, atol=1e-12)


def test_features_of_sequences_without_any_step_are_zeros():
    empty = make().select(torch.tensor([1, 1]))
    assert summary_features(empty).equal(torch.zeros(2, 12).double())
    assert resampled_features(empty).equal(torch.zeros(2, 72).double())


@pytest.mark.parametrize("l2", [0.1, 1.0, 10.0])
def test_logistic_regression_is_the_optimum_of_its_objective(l2):
    features = random_features()
    y = (features[:, 0] > 30).long() + (features[:, 1] > 60).long()
    deviation = features.std(0, correction=0)
    deviation[3] = 1.0
    fitted = fit_logistic(features, y, 3, l2)
    weight = (fitted.weight * deviation[:, None]).requires_grad_()
    bias = (fitted.bias + features.mean(0) @ fitted.weight).requires_grad_()
    scores = (features - features.mean(0)) / deviation @ weight + bias
    loss = cross_entropy(scores, y, reduction="sum") + l2 / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-4  # the objective is strictly convex in the weight


def test_ridge_solves_its_normal_equations():
    features, y = random_features(), random_features(seed=1)[:, :2].float()
    fitted = fit_ridge(features, y, l2=3.0)
    residual = features @ fitted.weight + fitted.bias - y
    deviation = features.std(0, correction=0)
    standardised = (features - features.mean(0)) / deviation
    normal = standardised.T @ residual + 3.0 * fitted.weight * deviation[:, None]
    normal[3] = fitted.weight[3]  # constant: no weight
    torch.testing.assert_close(normal, torch.zeros_like(normal), atol=1e-8, rtol=0)
    torch.testing.assert_close(residual.mean(0), torch.zeros(2).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("name", "majority", "summaries", "frames"),
    # scikit-learn 1.9.1, StandardScaler and LogisticRegression(C=0.1, tol=1e-9, solver="newton-cg")
    # on the same features
    [("spoken-digits", 30, 288, 293), ("japanese-vowels", 31, 356, 367)],
)
def test_accuracy_on_the_bundled_data(name, majority, summaries, frames):
    test = load_dataset(name, "test")
    metrics = baseline_metrics(fit_baselines(load_dataset(name, "train")), test)
    correct = {key: value["accuracy"] * len(test) for key, value in metrics.items()}
    assert correct["majority class"] == pytest.approx(majority)
    assert correct["logistic regression on summaries"] == pytest.approx(summaries, abs=1.01)
    assert correct["logistic regression on 24 frames"] == pytest.approx(frames, abs=1.01)


def test_majority_and_mean():
    metrics = baseline_metrics(fit_baselines(make()), make())
    assert metrics["majority class"]["accuracy"] == 0.6
    data = make(targets=2)
    metrics = baseline_metrics(fit_baselines(data), data)
    y = data.y.double()
    assert metrics["mean"]["mae"] == pytest.approx((y - y.mean(0)).abs().mean().item())
    assert metrics["mean"]["r2"] == pytest.approx(0.0, abs=1e-12)
    assert metrics["ridge on summaries"]["rmse"] < metrics["mean"]["rmse"]


def test_score_targets_by_hand():
    y = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    scores = score_targets(torch.tensor([[1.0, 5.0], [2.0, 9.0]]), y)
    assert scores == pytest.approx({"mae": 1.25, "rmse": math.sqrt(17 / 4), "r2": 0.25})


@pytest.mark.parametrize("targets", [0, 2])
def test_baselines_survive_a_safetensors_file(targets):
    data = make(targets)
    fitted = fit_baselines(data)
    stored = load(save({**to_tensors(fitted), "head.weight": torch.ones(2)}))
    restored = from_tensors(stored)
    assert set(restored) == set(fitted)
    assert baseline_metrics(restored, data) == baseline_metrics(fitted, data)


FLOAT32_BIAS = {
    "baseline.mean.weight": torch.zeros(0, 2).double(),
    "baseline.mean.bias": torch.ones(2),
}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"baseline.median.bias": torch.ones(2)}, "unknown baseline 'median'; known are majority"),
        ({"baseline.mean.bias": torch.ones(2).double()}, "baseline 'mean' needs float64 tensors"),
        (FLOAT32_BIAS, "baseline 'mean' needs float64 tensors weight"),
        (
            {**FLOAT32_BIAS, "baseline.mean.bias": torch.ones(3).double()},
            r"needs float64 tensors weight \(columns, outputs\) and bias \(outputs,\); train the",
        ),
    ],
)
def test_damaged_baselines_are_refused(tensors, message):
    with pytest.raises(InputError, match=message):
        from_tensors(tensors)


def test_baselines_of_other_data_are_refused():
    wrong = {"ridge on summaries": Baseline(torch.zeros(8, 2).double(), torch.zeros(2).double())}
    message = "'ridge on summaries' maps 8 columns to 2 outputs, but the data has 12 and 2"
    with pytest.raises(InputError, match=message):
        baseline_metrics(wrong, make(targets=2))


@pytest.mark.parametrize("name", ["logistic regression on summaries", "ridge on summaries", "mean"])
@pytest.mark.parametrize("count", [0, 1, 40])
def test_features_made_in_blocks_are_the_same(monkeypatch, name, count):
    data = two_classes(40).select(torch.arange(count))
    expected = baselines.RECIPES[name].features(data)
    for block in (1, 7, 1000):
        monkeypatch.setattr(baselines, "BLOCK", block)
        assert baselines.features_of(name, data).equal(expected)
