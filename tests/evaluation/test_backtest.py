import json

import numpy as np
import pandas as pd
import pytest
import torch
from cli_cases import invoke
from marks import slow
from series_cases import SMALL, do, hourly, hours, several, waves, windows_of, write

from lstm_compile import ModelConfig
from lstm_compile.data.series.series_table import Shares
from lstm_compile.data.series.windows import split_windows
from lstm_compile.errors import InputError
from lstm_compile.evaluation import forecast_baselines
from lstm_compile.evaluation.backtest import ForecastScores, backtest, headline_of, naive_errors
from lstm_compile.evaluation.forecast_baselines import (
    RIDGE_ON_WINDOWS,
    fit_forecast_baselines,
    forecasts_of,
    naive,
    rules_for,
    seasonal_naive,
    seasonal_ratio,
    window_features,
)
from lstm_compile.evaluation.linear import fit_ridge
from lstm_compile.evaluation.plot import plot_forecasts
from lstm_compile.export.use.evaluate_file import evaluate_file
from lstm_compile.tasks.metrics import metrics, tuned_metrics

CONFIG = ModelConfig(task="forecast", input_size=3, output_size=1, known_size=2, **SMALL)


# ---- rules


def counted(tmp_path, count=40, horizon=5):
    path = write(tmp_path / "t.csv", {"time": np.arange(count), "y": 1.0 * np.arange(count)})
    return windows_of(path, (10, horizon))


def test_naive_is_the_last_value(tmp_path):
    windows = counted(tmp_path)
    assert naive(windows)[0, :, 0].tolist() == [9.0] * 5


def test_seasonal_naive_is_the_last_season_again(tmp_path):
    windows = counted(tmp_path)
    assert seasonal_naive(windows, 3)[0, :, 0].tolist() == [7, 8, 9, 7, 8]
    assert seasonal_naive(windows, 12)[0, :, 0].tolist() == [9, 9, 0, 1, 2]  # origin is row 10


def test_seasonal_ratio_grows_with_the_series(tmp_path):
    windows = counted(tmp_path)
    growth = (7 + 8 + 9) / (4 + 5 + 6)
    expected = np.array([7, 8, 9]) * growth
    found = seasonal_ratio(windows, 3)[0, :, 0].numpy()
    np.testing.assert_allclose(found[:3], expected, rtol=1e-5)
    np.testing.assert_allclose(found[3:], expected[:2] * growth, rtol=1e-5)
    np.testing.assert_array_equal(seasonal_ratio(windows, 7)[0], seasonal_naive(windows, 7)[0])


def test_a_season_of_millions_of_steps_takes_no_more_memory_than_the_rows(tmp_path):
    """A day at 100 Hz: an index of every step of it asked for 27 GB."""
    stamps = np.datetime64("2024-01-01T00", "ms") + 10 * np.arange(2000)
    path = write(tmp_path / "t.csv", {"time": stamps, "y": 1.0 * np.arange(2000)})
    windows = windows_of(path, (96, 24))
    season = windows.table.info.clock.season
    assert season == 8_640_000
    for rule in rules_for(season).values():
        assert torch.equal(rule(windows, season), naive(windows))
    assert naive_errors(windows, season).tolist() == [[1.0]]  # of a single step


@pytest.mark.parametrize("season", [3, 7, 20])
def test_growth_is_that_of_the_whole_seasons_of_its_own_series(tmp_path, season):
    windows = windows_of(several(tmp_path / "t.csv", (60, 45)), (8, 3))
    chosen = windows.select(torch.randperm(len(windows)))  # in any order
    found, y = seasonal_ratio(chosen, season).numpy(), chosen.x[:, 0].double().numpy()
    for row, (origin, series) in enumerate(zip(chosen.origins, chosen.series, strict=True)):
        begin, end = int(chosen.table.starts[series]), int(origin)
        last, before = y[end - season : end].sum(), y[end - 2 * season : end - season].sum()
        growth = last / before if end - 2 * season >= begin else 1.0
        expected = seasonal_naive(chosen, season)[row, 0, 0] * growth
        assert found[row, 0, 0] == pytest.approx(float(expected), rel=1e-5)


def test_no_season_leaves_the_last_value_alone():
    assert list(rules_for(1)) == ["naive"]
    assert list(rules_for(24)) == ["naive", "seasonal naive", "seasonal ratio"]


def test_rules_do_not_look_at_other_series(tmp_path):
    windows = windows_of(several(tmp_path / "t.csv", (60, 60)), (8, 3))
    second = windows.select((windows.series == 1).nonzero()[:1, 0])
    assert (seasonal_naive(second, 24) > 80).all()  # the first series is at 20


# ---- ridge


def test_ridge_is_fitted_on_the_inputs_of_the_model(tmp_path):
    windows = windows_of(hourly(tmp_path / "t.csv", 300), (8, 3))
    parts = split_windows(windows)
    fitted = fit_forecast_baselines(parts["known"], parts["train"], parts["validation"])
    features, known = window_features(parts["known"]), parts["known"]
    assert features.shape == (len(known), 8 + 3 * 2)  # y, and the hour of each step ahead
    truth = known.x[known.origins[:, None] + torch.arange(3)][..., 0].double()
    for l2 in (1.0, 10.0, 100.0, 1000.0):
        expected = fit_ridge(features, truth, l2)
        if torch.allclose(fitted[RIDGE_ON_WINDOWS].weight, expected.weight, rtol=1e-6, atol=1e-9):
            break
    else:
        pytest.fail("no penalty gives these weights")


def test_ridge_reads_the_last_steps_of_a_long_context(tmp_path, monkeypatch):
    path = write(tmp_path / "t.csv", {"time": np.arange(200), "y": waves(200)})
    parts = split_windows(windows_of(path, (8, 3)))
    monkeypatch.setattr(forecast_baselines, "MOST_COLUMNS", 5)
    found = fit_forecast_baselines(parts["known"], parts["train"], parts["validation"])
    weight, bias = found[RIDGE_ON_WINDOWS]
    assert weight.shape == (5, 3)
    answers = dict(forecasts_of(found, parts["test"], 1))[RIDGE_ON_WINDOWS][..., 0]
    y, origins = parts["test"].x[:, 0].double(), parts["test"].origins
    last = torch.stack([y[origins - 5 + step] for step in range(5)], 1)
    torch.testing.assert_close(answers, last @ weight + bias)


def test_without_a_validation_part_the_end_of_training_chooses_the_penalty(tmp_path):
    windows = windows_of(hourly(tmp_path / "t.csv", 300), (8, 3))
    train = split_windows(windows)["train"]
    found = fit_forecast_baselines(train, train)[RIDGE_ON_WINDOWS]
    ends = int(train.origins.sort().values[int(0.8 * len(train))])
    before = train.select((train.origins + 3 <= ends).nonzero()[:, 0])
    after = train.select((train.origins >= ends).nonzero()[:, 0])
    expected = fit_forecast_baselines(train, before, after)[RIDGE_ON_WINDOWS]
    assert found.weight.equal(expected.weight)
    few = train.select(torch.arange(2))  # none of which lies before the other
    assert fit_forecast_baselines(few, few)[RIDGE_ON_WINDOWS].weight.isfinite().all()


def test_ridge_stands_constant_columns_and_large_offsets(tmp_path):
    columns = {"time": hours(200), "y": waves(200) + 1e5, "u": [7.0] * 200}
    windows = windows_of(write(tmp_path / "t.csv", columns), target=("y",), features=("u",))
    parts = split_windows(windows)
    fitted = fit_forecast_baselines(parts["known"], parts["train"], parts["validation"])
    found = window_features(windows) @ fitted[RIDGE_ON_WINDOWS].weight
    error = found + fitted[RIDGE_ON_WINDOWS].bias - windows.y[..., 0]
    assert error.abs().mean() < 5


# ---- figures


def test_figures_are_those_of_their_definitions():
    random = np.random.default_rng(0)
    y, guess = random.normal(5, 2, (2, 30, 4, 2))
    y[3, 1, 0] = np.nan
    y[7, 0, 1] = 0.0
    naive_error, units = random.random((30, 2)) + 1, torch.tensor([2.0, 3.0]).double()
    scores = ForecastScores(ModelConfig(task="forecast", input_size=2, output_size=2), units)
    for rows in (slice(0, 11), slice(11, 30)):
        parts = (torch.from_numpy(value[rows]) for value in (guess, y, naive_error))
        scores.add(*parts)
    found, error = scores.metrics(), guess - y
    nonzero = np.where(y == 0, np.nan, np.abs(y))
    expected = {
        "mae": np.nanmean(np.abs(error)),
        "rmse": np.nanmean(error**2) ** 0.5,
        "scaled_mse": np.nanmean((error / units.numpy()) ** 2),
        "mase": np.nanmean(np.abs(error) / naive_error[:, None]),
        "mape": np.nanmean(np.abs(error) / nonzero),
        "smape": np.nanmean(2 * np.abs(error) / (np.abs(guess) + np.abs(y))),
    }
    assert found == pytest.approx(expected)
    details = scores.details(("a", "b"))
    assert details["b"]["steps"][2]["mae"] == pytest.approx(np.nanmean(np.abs(error[:, 2, 1])))
    assert details["a"]["mae"] == pytest.approx(np.nanmean(np.abs(error[..., 0])))


def test_quantiles_without_a_median_have_no_point_figures():
    config = ModelConfig(task="forecast", input_size=1, output_size=1, quantiles=(0.1, 0.9))
    y, forecast = torch.tensor([[[10.0]], [[20.0]]]), torch.tensor([[[[8.0, 14]]], [[[22.0, 30]]]])
    scores = ForecastScores(config, torch.ones(1).double())
    scores.add(forecast, y, torch.tensor([[2.0], [4.0]]))
    # 0.1 * 2 and 0.1 * 4 of the first truth, 0.9 * 2 and 0.1 * 10 of the second
    costs = np.array([(0.2 + 0.4) / 2, (1.8 + 1.0) / 2])
    expected = {"pinball": costs.mean(), "scaled_pinball": (costs / [2, 4]).mean(), "coverage": 0.5}
    assert scores.metrics() == pytest.approx(expected)
    assert metrics(config, forecast, y) == pytest.approx({"pinball": costs.mean()})
    assert tuned_metrics(config) == ("pinball", "loss")


def test_quantiles_without_a_median_are_judged_by_pinball_loss(tmp_path):
    """Against each rule with the quantiles of its own errors before the test part."""
    y = np.random.default_rng(0).normal(0, 1, 600).cumsum()
    windows = windows_of(write(tmp_path / "t.csv", {"time": np.arange(600), "y": y}), (8, 2))
    test, q = split_windows(windows)["test"], (0.1, 0.9)
    config = ModelConfig(
        task="forecast", input_size=1, output_size=1, quantiles=q, **{**SMALL, "horizon": 2}
    )
    spread = np.array([[-1.2816, 1.2816], [-1.8124, 1.8124]])  # of one step, and of two
    right = lambda w: naive(w)[..., None] + torch.from_numpy(spread)[:, None]  # noqa: E731
    for forecast, verdict in (
        (lambda w: w.y[..., None].expand(-1, -1, -1, 2), "better than every baseline: scaled_pi"),
        (right, "no better than a baseline: scaled_pinball"),
        (lambda w: right(w)[..., :1].expand(-1, -1, -1, 2), "worse than a baseline: scaled_pin"),
    ):
        found = backtest(forecast, config, test, {}, torch.ones(1), headline_of("pinball", q))
        assert found.verdict.startswith(verdict)
    values, origins = y.astype(np.float32).astype(float), test.origins.numpy()
    known, cost = np.arange(8, 479), []  # the test part begins at row 480
    for step in range(2):
        bounds = np.quantile(values[known + step] - values[known - 1], q)
        error = values[origins - 1][:, None] + bounds - values[origins + step][:, None]
        cost.append(np.maximum(-np.array(q) * error, (1 - np.array(q)) * error).mean())
    assert found.baselines["naive"]["pinball"] == pytest.approx(np.mean(cost), rel=1e-5)
    assert "mae" not in found.baselines["naive"]


def test_quantiles_have_a_pinball_loss_and_a_coverage():
    config = ModelConfig(task="forecast", input_size=1, output_size=1, quantiles=(0.1, 0.5, 0.9))
    y = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    forecast = torch.tensor([-1.2816, 0.0, 1.2816]).double().expand(4000, 1, 1, 3)
    scores = ForecastScores(config, torch.ones(1).double())
    scores.add(forecast, y, torch.ones(4000, 1))
    found = scores.metrics()
    assert found["coverage"] == pytest.approx(0.8, abs=0.02)
    assert found["mae"] == pytest.approx(y.abs().mean().item())
    error = forecast - y[..., None]
    shares = torch.tensor([0.1, 0.5, 0.9]).double()
    cost = torch.maximum(-shares * error, (1 - shares) * error)
    assert found["pinball"] == pytest.approx(cost.mean().item())


def test_each_series_has_figures_of_its_own():
    random = np.random.default_rng(1)
    y, guess = random.normal(5, 2, (2, 30, 4, 2))
    y[3, 1, 0], owner = np.nan, random.integers(0, 3, 30)
    config = ModelConfig(task="forecast", input_size=2, output_size=2)
    scores = ForecastScores(config, torch.ones(2).double(), series=4)
    for rows in (slice(0, 11), slice(11, 30)):
        parts = (torch.from_numpy(value[rows]) for value in (guess, y, np.ones((30, 2)), owner))
        scores.add(*parts)
    found = scores.of_series(("a", "b", "c", "without a window"))
    assert [*found] == ["a", "b", "c"]
    for number, name in enumerate(found):
        error = (guess - y)[owner == number]
        assert found[name]["mae"] == pytest.approx(np.nanmean(np.abs(error)))
        assert found[name]["rmse"] == pytest.approx(np.nanmean(error**2) ** 0.5)


def test_forecasts_that_are_not_finite_are_refused_and_not_left_out(tmp_path):
    windows = split_windows(windows_of(hourly(tmp_path / "t.csv", 400), (8, 3)))["test"]

    def predict(windows):
        found = windows.y.clone()
        found[5, 1] = torch.nan
        return found

    with pytest.raises(InputError, match=r"t.csv, from 2020-01-14T13:00:00 on: the forecast is no"):
        backtest(predict, CONFIG, windows, {}, torch.ones(1))


def test_mase_divides_by_the_naive_error_before_the_test_part(tmp_path):
    y = np.where(np.arange(60) < 45, np.arange(60) % 2 * 3.0, 1e6)
    path = write(tmp_path / "t.csv", {"time": np.arange(60), "y": y})
    windows = windows_of(path, split=Shares(0.1, 0.25))
    assert naive_errors(windows, 1).tolist() == [[3.0]]
    assert naive_errors(windows, 2).tolist() == [[1.0]]  # no error at all


def test_a_perfect_forecast_is_better_and_a_bad_one_worse(tmp_path):
    windows = split_windows(windows_of(hourly(tmp_path / "t.csv", 400), (8, 3)))["test"]
    for forecast, verdict in (
        (lambda w: w.y, "better than every baseline: scaled_mse 0 against"),
        (lambda w: w.y + 100, "worse than a baseline"),
        (lambda w: seasonal_ratio(w, 24), "no better than a baseline"),
    ):
        found = backtest(forecast, CONFIG, windows, {}, torch.ones(1))
        assert found.verdict.startswith(verdict)
        assert found.rows == len(windows)
        assert set(found.details["baselines"]) == set(found.baselines)
    assert json.dumps(found.to_dict())


def test_the_metric_that_decides_is_of_what_was_minimised():
    assert [headline_of(loss) for loss in ("mse", "mae", "huber", "pinball")] == [
        *("scaled_mse", "mase", "mase", "mase")
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Series a and b from the third day on, ten days; and its run folder."""
    folder = tmp_path_factory.mktemp("trained")
    path = several(folder / "t.csv", (240, 240), time=np.tile(hours(240, "2020-01-03T00"), 2))
    do(path, folder / "run", training={"epochs": 1})
    return path, folder / "run"


@pytest.mark.parametrize(
    ("ids", "begin", "count", "windows"),
    [
        (("a", "b"), "2020-01-03T00", 240, 2 * 46),  # the data of training: the last fifth
        (("c", "d"), "2020-01-03T00", 240, 2 * (240 - 8 - 2)),  # other series
        (("b", "c"), "2020-01-03T00", 240, 46 + 240 - 8 - 2),
        (("a", "b"), "2020-01-01T00", 60, 2 * (48 - 8 - 2)),  # the two days before, and 12 hours
        (("a", "b"), "2020-02-01T00", 60, 2 * (60 - 8 - 2)),
    ],
)
def test_what_is_evaluated_is_what_training_has_not_seen(
    trained, tmp_path, ids, begin, count, windows
):
    times = np.tile(hours(count, begin), 2)
    columns = {"id": np.repeat(ids, count), "time": times, "y": waves(2 * count)}
    data = write(tmp_path / "other.csv", columns | {"kind": ["even"] * (2 * count)})
    found = evaluate_file(trained[1], data)
    assert found.rows == windows
    assert sorted(found.details["series"]) == sorted(ids)


def test_what_training_has_seen_is_not_evaluated(trained, tmp_path):
    columns = {"id": ["a"] * 60, "time": hours(60, "2020-01-04T00"), "y": waves(60)}
    data = write(tmp_path / "seen.csv", columns | {"kind": ["even"] * 60})
    with pytest.raises(InputError, match="no window of 3 steps from 2020-01-11T00:00:00 on, where"):
        evaluate_file(trained[1], data)


@pytest.mark.parametrize("kind", ["folder", "float", "zeros"])
def test_series_of_training_are_known_however_their_ids_are_written(tmp_path, monkeypatch, kind):
    """Two series of 60 rows: the last fifth of each is the test part, with 12 - 3 + 1 windows."""
    monkeypatch.chdir(tmp_path)
    frames = [pd.DataFrame({"time": hours(60), "y": waves(60)}) for _ in range(2)]
    if kind == "folder":
        (tmp_path / "set").mkdir()
        for name, frame in zip("ab", frames, strict=True):
            frame.to_csv(f"set/{name}.csv", index=False)
        trained, again = "set", tmp_path / "set"
    else:
        rows = pd.concat([frame.assign(id=i) for i, frame in enumerate(frames, 1)])
        trained, again = "t.csv", f"again.{'parquet' if kind == 'float' else 'csv'}"
        rows.to_csv(trained, index=False)
        if kind == "float":
            rows.assign(id=rows["id"].astype(float)).to_parquet(again)
        else:
            rows.assign(id=rows["id"].map("{:03d}".format)).to_csv(again, index=False)
    small = ("--context", 4, "--horizon", 3, "--epochs", 1, "--hidden-size", 4, "--num-layers", 1)
    done = invoke("train", trained, "--task", "forecast", *small, "--output", "run")
    assert done.exit_code == 0, done.output
    expected = evaluate_file("run", trained).rows
    assert expected == 2 * 10
    assert evaluate_file("run", str(again)).rows == expected


def test_a_model_with_a_test_file_is_not_measured_on_its_training_file(tmp_path):
    path = hourly(tmp_path / "t.csv", 90)
    test = write(tmp_path / "test.csv", {"time": hours(60, "2020-02-01T00"), "y": waves(60)})
    outcome = do(path, tmp_path / "run", training={"epochs": 1}, test=test)
    assert evaluate_file(tmp_path / "run", test).metrics == pytest.approx(
        outcome.evaluation.metrics, rel=1e-5
    )
    with pytest.raises(InputError, match=r"t\.csv: the model was trained on all of it"):
        evaluate_file(tmp_path / "run", path)
    with pytest.raises(InputError, match="has no test part of its own; name the data"):
        evaluate_file(tmp_path / "run")


@pytest.mark.parametrize("seed", [0, slow(1), slow(2)])
def test_on_a_random_walk_nothing_beats_persistence(tmp_path, seed):
    walk = 100 + np.random.default_rng(seed).normal(0, 1, 1500).cumsum()
    path = write(tmp_path / "t.csv", {"time": hours(1500), "y": walk})
    outcome = do(path, tmp_path / "run", {"context": 24, "scaling": "last"}, {"epochs": 3})
    assert outcome.evaluation.verdict.startswith(("no better than a baseline", "worse than a base"))
    assert " of naive" in outcome.evaluation.verdict or " of ridge" in outcome.evaluation.verdict


@pytest.mark.slow
def test_a_season_is_learned(tmp_path):
    outcome = do(
        hourly(tmp_path / "t.csv", 600), tmp_path / "run",
        {"context": 24, "hidden_size": 16}, {"epochs": 12, "learning_rate": 0.02},
    )  # fmt: skip
    found = outcome.evaluation
    assert found.metrics["mae"] < 0.8 * found.baselines["naive"]["mae"]


# ---- the plot


@pytest.mark.parametrize("suffix", [slow(".png"), slow(".svg"), slow(".pdf")])
def test_forecasts_are_drawn(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    windows = windows_of(several(tmp_path / "t.csv", (60, 60)), (8, 3))
    config = ModelConfig(
        task="forecast", input_size=3, output_size=1, quantiles=(0.1, 0.5, 0.9), **SMALL
    )
    path = tmp_path / f"plot{suffix}"

    def band(some):
        return naive(some)[..., None] + torch.tensor([-1.0, 0.0, 1.0])

    plot_forecasts(path, band, config, windows)
    begins = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(begins)
    if suffix == ".png":
        from matplotlib.image import imread

        picture = imread(path)
        assert picture.shape[0] > 100
        assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 50


@pytest.mark.slow
def test_one_step_ahead_is_seen(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    windows = windows_of(several(tmp_path / "t.csv", (60, 60)), (1, 1))
    plot_forecasts(tmp_path / "p.png", lambda some: naive(some) + 1, CONFIG, windows)
    colours = np.unique(imread(tmp_path / "p.png")[:-60].reshape(-1, 4), axis=0)  # but the legend
    blue = colours[:, 2] - colours[:, 0] > 0.4
    assert blue.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plot.txt", "a plot must end in .png or .svg or .pdf"),
        ("no/plot.png", "there is no folder"),
    ],
)
def test_a_plot_that_cannot_be_written_is_refused(tmp_path, name, message):
    windows = counted(tmp_path)
    with pytest.raises(InputError, match=message):
        plot_forecasts(tmp_path / name, naive, CONFIG, windows)


def test_without_matplotlib_a_plot_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("lstm_compile.evaluation.plot.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'lstm-compile\[plot\]'"):
        plot_forecasts(tmp_path / "p.png", naive, CONFIG, counted(tmp_path))
