"""Verdicts: a paired bootstrap over rows, and what is said of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from training_cases import (
    QUICK,
    baseline_metrics,
    do,
    means,
    save_npz,
    seeded,
    setting,
    two_classes,
)

from lstm_compile.data import load_dataset
from lstm_compile.evaluation.baselines import (
    baseline_predictions,
    fit_baselines,
    summary_features,
)
from lstm_compile.evaluation.evaluate import evaluate
from lstm_compile.evaluation.linear import fit_ridge
from lstm_compile.evaluation.verdict import (
    BUDGET,
    MIN_ROWS,
    best_of,
    difference_interval,
    paired_interval,
    verdict,
)
from lstm_compile.tasks.metrics import score_targets


def identity(mean):
    return mean


# ---- the interval


@pytest.mark.parametrize("rows", [300, 2000])
def test_the_interval_is_that_of_the_normal_law_for_many_rows(rows):
    own = torch.randn(rows, generator=seeded(0)).double() + 0.2
    other = 0.8 * own + 0.3 * torch.randn(rows, generator=seeded(1)).double()
    low, high = paired_interval(own, other, identity)
    difference = own - other
    error = float(difference.std()) / math.sqrt(rows)
    assert low == pytest.approx(float(difference.mean()) - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(float(difference.mean()) + 1.96 * error, abs=0.15 * error)


def test_the_interval_is_paired():
    """A small advantage on every row is certain, however much the rows differ."""
    own = torch.randn(50, generator=seeded(0)).double() * 100
    low, high = paired_interval(own + 0.01, own, identity)
    assert (low, high) == pytest.approx((0.01, 0.01))


def test_the_interval_is_that_of_a_plain_loop():
    own, other = (torch.rand(40, generator=seeded(s)).double().numpy() for s in (0, 1))
    generator = np.random.default_rng(7)
    found = []
    for _ in range(20000):
        rows = generator.integers(40, size=40)
        found.append(-np.sqrt(own[rows].mean()) + np.sqrt(other[rows].mean()))
    expected = np.quantile(found, [0.025, 0.975])
    low, high = paired_interval(torch.from_numpy(own), torch.from_numpy(other), lambda m: -m.sqrt())
    assert (low, high) == pytest.approx(tuple(expected), abs=0.01)


def test_the_interval_repeats_and_leaves_the_callers_random_state_alone():
    own, other = (torch.rand(30, generator=seeded(s)) for s in (0, 1))
    before = torch.get_rng_state()
    first, second = (paired_interval(own, other, identity) for _ in range(2))
    assert first == second
    assert torch.get_rng_state().equal(before)
    low, high = paired_interval(other, own, identity)
    assert (-high, -low) == pytest.approx(first)


def test_too_few_rows_tell_nothing():
    assert paired_interval(torch.ones(MIN_ROWS - 1), torch.zeros(MIN_ROWS - 1), identity) is None
    assert paired_interval(torch.ones(MIN_ROWS), torch.zeros(MIN_ROWS), identity) == (1, 1)
    assert 2 / 2 ** (MIN_ROWS - 1) > 0.05 > 2 / 2**MIN_ROWS


@pytest.mark.slow
def test_the_bootstrap_is_bounded_for_a_large_test_part(monkeypatch):
    drawn, original = [], torch.randint

    def spy(*args, **options):
        drawn.append(math.prod(args[1]))
        return original(*args, **options)

    monkeypatch.setattr(torch, "randint", spy)
    paired_interval(torch.rand(100_000), torch.rand(100_000), identity)
    assert max(drawn) <= BUDGET
    assert sum(drawn) == 2000 * 100_000


def test_equal_models_are_rarely_told_apart():
    """Two models of the same accuracy: an interval of 95 % excludes 0 in about one of twenty."""
    wrong, trials = 0, 200
    for seed in range(trials):
        own, other = (torch.rand(150, generator=seeded(2 * seed + k)) < 0.8 for k in (0, 1))
        low, high = paired_interval(own.double(), other.double(), identity)
        wrong += low > 0 or high < 0
    assert 0 < wrong / trials < 0.1


# ---- what is compared


def test_the_difference_of_classes_is_in_accuracy():
    y = torch.randint(4, (200,), generator=seeded(0))
    own, other = (functional.one_hot(y, 4).double() for _ in range(2))
    own[:10] = own[:10].roll(1, 1)  # 95 % right
    other[100:140] = other[100:140].roll(1, 1)  # 80 % right
    low, high = difference_interval("classify", own, other, y)
    assert 0.05 < low < 0.15 < high < 0.25


def test_the_difference_of_targets_is_in_rmse_over_all_values():
    y = torch.randn(300, 2, generator=seeded(0)) * torch.tensor([3.0, 40.0]) + 500
    own = y + torch.randn(300, 2, generator=seeded(1)) * torch.tensor([1.0, 8.0])
    other = y + torch.randn(300, 2, generator=seeded(2)) * torch.tensor([1.0, 16.0])
    low, high = difference_interval("regress", own, other, y)
    scores = [score_targets(guess, y)["rmse"] for guess in (other, own)]
    assert 0 < low < scores[0] - scores[1] < high
    assert high - low < 0.5 * (scores[0] - scores[1])


# ---- what is said


def test_verdicts():
    ours = {"accuracy": 0.9}
    others = {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.88}}
    assert verdict("classify", ours, {}, None) == "no baseline to compare with"
    assert verdict("classify", ours, others, (0.01, 0.03)) == (
        "better than every baseline: accuracy 0.9 against 0.88 of b (95 % interval of the "
        "difference +0.0100 to +0.0300)"
    )
    for interval in ((-0.01, 0.05), (0.0, 0.04), (-0.04, 0.0), (0.0, 0.0), (math.nan, math.nan)):
        found = verdict("classify", ours, others, interval)
        assert found.startswith(
            "no better than a baseline: accuracy 0.9 against 0.88 of b; the difference is within "
            "noise (95 % interval"
        )
    assert verdict("classify", ours, {"c": {"accuracy": 0.99}}, (-0.12, -0.05)) == (
        "worse than a baseline: accuracy 0.9 against 0.99 of c (95 % interval of the difference "
        "-0.1200 to -0.0500); use the simpler model"
    )
    assert verdict("classify", ours, others, None) == (
        "no better than a baseline: accuracy 0.9 against 0.88 of b; too few sequences to tell "
        "them apart"
    )


def test_the_best_baseline_has_the_highest_accuracy_or_the_lowest_rmse():
    assert best_of("classify", {"a": {"accuracy": 0.5}, "b": {"accuracy": 0.9}}) == "b"
    assert best_of("classify", {"a": {"accuracy": 0.9}, "b": {"accuracy": 0.9}}) == "a"
    assert best_of("regress", {"a": {"rmse": 3.0}, "b": {"rmse": 2.0}}) == "b"


@pytest.mark.parametrize(
    ("noise", "word"),
    [(0.0, "better than every"), (1.0, "no better than a"), (5.0, "worse than a")],
)
def test_a_regression_is_judged_against_the_ridge(noise, word):
    data = means(200, targets=2)
    _, config = setting(data)
    baselines = fit_baselines(data.select(torch.arange(100)))
    rows = data.select(torch.arange(100, 200))
    ridge = baseline_predictions(baselines, rows)["ridge on summaries"]
    error = score_targets(ridge, rows.y)["rmse"]
    # errors as large as the ridge's own, but others; none; five times as large
    signs = torch.randn(100, 2, generator=seeded(3)).sign()
    shuffled = (ridge - rows.y)[torch.randperm(100, generator=seeded(4))]
    found = evaluate(rows.y + noise * signs * shuffled, config, rows, baselines)
    assert found.verdict.startswith(word)
    assert f"of {best_of('regress', found.baselines)}" in found.verdict
    low, high = found.interval
    assert low < error - found.metrics["rmse"] < high
    assert (low > 0, high < 0) == (word.startswith("better"), word.startswith("worse"))


def test_an_evaluation_without_baselines_has_no_interval():
    data = two_classes()
    _, config = setting(data)
    found = evaluate(functional.one_hot(data.y, 2).float(), config, data, {})
    assert (found.interval, found.verdict) == (None, "no baseline to compare with")
    assert json.loads(json.dumps(found.to_dict()))["interval"] is None


def test_a_handful_of_rows_is_no_proof():
    data = two_classes(20)
    _, config = setting(data)
    few = data.select(torch.arange(MIN_ROWS - 1))
    perfect = functional.one_hot(few.y, 2).float()
    found = evaluate(perfect, config, few, fit_baselines(data))
    assert found.interval is None
    assert found.verdict.startswith("no better than a baseline: accuracy 1 against")


# ---- baselines of a regression


def test_the_baselines_of_a_regression_by_hand():
    train, test = means(100, targets=2), means(30, seed=5, targets=2)
    fitted = fit_baselines(train)
    assert list(fitted) == ["mean", "ridge on summaries"]
    found = baseline_predictions(fitted, test)
    expected = train.y.double().mean(0).expand(30, 2)
    torch.testing.assert_close(found["mean"], expected)
    ridge = fit_ridge(summary_features(train), train.y)
    torch.testing.assert_close(
        found["ridge on summaries"], summary_features(test) @ ridge.weight + ridge.bias
    )
    scores = baseline_metrics(fitted, test)
    assert scores["mean"]["r2"] < 0.1 < 0.9 < scores["ridge on summaries"]["r2"]


def test_a_run_on_targets_is_judged_by_mean_and_ridge(tmp_path):
    path, test = save_npz(tmp_path, means(80)), save_npz(tmp_path, means(60, seed=5), "test")
    found = do(path, tmp_path / "run", replace(QUICK, epochs=1), test=test)
    assert list(found.evaluation.baselines) == ["mean", "ridge on summaries"]
    train, rows = load_dataset(path, "train"), load_dataset(test, "train")
    assert found.evaluation.baselines == baseline_metrics(fit_baselines(train), rows)
    assert found.evaluation.verdict.startswith("worse than a baseline: rmse")
    assert found.evaluation.verdict.endswith("use the simpler model")
    assert found.evaluation.interval[1] < 0
