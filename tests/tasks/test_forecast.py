from dataclasses import replace

import numpy as np
import pytest
import torch
from forecast_cases import FORECASTERS, inputs, make_forecaster
from series_cases import SMALL, do, hourly, hours, read, several, waves, windows_of, write

from lstm_compile import ModelConfig, init_params
from lstm_compile.data.series.series_table import Shares
from lstm_compile.data.series.windows import History, Shape, all_windows, split_windows, thinned
from lstm_compile.errors import InputError
from lstm_compile.model.batch import Given
from lstm_compile.model.model import complete, forward
from lstm_compile.model.window_scaling import (
    differences,
    last_steps,
    symmetric_exp,
    symmetric_log,
)
from lstm_compile.tasks.losses import LossInput, forecast_loss, pinball
from lstm_compile.tasks.series_scaler import fit_series_scaler

every_config = pytest.mark.parametrize("name", FORECASTERS)


def ask(params, config, x, lengths, given, **options):
    with torch.no_grad():
        return complete(params, config, x, lengths, given=given, **options)


def rows_of(given, rows):
    return Given(*(None if part is None else part[rows] for part in given))


# ---- exact for any length


@every_config
def test_padding_and_neighbours_change_nothing(name):
    params, config = make_forecaster(**FORECASTERS[name])
    x, lengths, given = inputs(config, [9, 4, 1, 0, 6])
    x[torch.arange(9) >= lengths[:, None]] = torch.nan
    found = ask(params, config, x, lengths, given)
    assert found.shape[:3] == (5, 5, 2)
    assert found.isfinite().all()
    for row, length in enumerate(lengths.tolist()):
        alone = ask(
            params, config, x[row : row + 1, : max(1, length)], lengths[row : row + 1],
            rows_of(given, slice(row, row + 1)),
        )  # fmt: skip
        torch.testing.assert_close(alone[0], found[row], rtol=1e-5, atol=1e-5)


@every_config
def test_backends_agree_and_float64_is_the_oracle(name):
    params, config = make_forecaster(**FORECASTERS[name])
    x, lengths, given = inputs(config, [9, 4, 1, 0])
    double = {key: value.double() for key, value in params.items()}
    wide = Given(*(p.double() if p is not None and p.is_floating_point() else p for p in given))
    expected = ask(double, config, x.double(), lengths, wide, backend="reference")
    found = ask(params, config, x, lengths, given)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)


@every_config
def test_constant_windows_give_numbers_and_gradients(name):
    params, config = make_forecaster(**FORECASTERS[name])
    x, lengths, given = inputs(config, [7, 1, 3])
    leaves = {key: value.requires_grad_() for key, value in params.items()}
    found, _ = forward(leaves, config, torch.full_like(x, 4.0), lengths, given=_now(given, config))
    assert found.isfinite().all()
    gradients = torch.autograd.grad(found.sum(), list(leaves.values()), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)


def _now(given, config):
    known = given.known_future
    return given._replace(known_future=None if known is None else known[:, : config.steps_out])


def test_no_step_at_all_gives_a_forecast_too():
    params, config = make_forecaster(season=3, scaling="mean", log1p=True)
    found = ask(params, config, torch.zeros(2, 0, 2), torch.zeros(2, dtype=torch.int64), Given())
    assert found.isfinite().all()


def test_a_forecast_is_of_float32_units_however_large():
    params, config = make_forecaster(log1p=True)
    params["head.bias"] += 1e6
    x, lengths, given = inputs(config, [6])
    assert ask(params, config, x, lengths, given).isfinite().all()


@pytest.mark.parametrize("given", [{}, {"known_future": 1, "static": 1}])
def test_what_is_given_must_be_what_the_model_takes(given):
    params, config = make_forecaster(known_size=2)
    x, lengths, full = inputs(config, [4])
    found = Given(**dict.fromkeys(given, full.known_future))
    with pytest.raises(InputError, match="given must hold known_future for this model, found"):
        forward(params, config, x, lengths, given=found)


# ---- scalings and their inverses


@pytest.mark.parametrize(("scaling", "scale"), [("last", 1.0), ("mean", 1.0), ("revin", 7.0)])
def test_windows_carry_their_level_and_scale_to_the_forecast(scaling, scale):
    params, config = make_forecaster(scaling=scaling)
    # the decoder is told the level: without that the forecast moves exactly with the window
    params["decoder.steps.weight"][:, config.hidden_size :] = 0
    x, lengths, given = inputs(config, [8, 5])
    first = ask(params, config, x, lengths, given)
    second = ask(params, config, x * scale + 1000, lengths, given)
    torch.testing.assert_close(second, first * scale + 1000, rtol=1e-4, atol=1e-2)


def test_series_scaling_carries_location_and_scale():
    params, config = make_forecaster(scaling="series")
    x, lengths, given = inputs(config, [8, 5])
    moved = Given(None, None, given.series_location * 7 + 50, given.series_scale * 7)
    first, second = (
        ask(params, config, a, lengths, g) for a, g in ((x, given), (x * 7 + 50, moved))
    )
    torch.testing.assert_close(second, first * 7 + 50, rtol=1e-4, atol=1e-3)


def nothing(config):
    """A network that says 0 to everything, with scalers that do nothing."""
    zeros = {name: torch.zeros_like(value) for name, value in init_params(config, 0).items()}
    return {**zeros, "scaler.scale": torch.ones(config.input_size)}


def test_a_network_of_zeros_forecasts_what_its_transforms_say():
    x = torch.arange(1.0, 9.0).reshape(1, 8, 1).expand(1, 8, 2).clone()
    lengths = torch.tensor([8])
    for changes, expected in (
        ({"scaling": "last"}, [8, 8, 8, 8, 8]),
        ({"scaling": "mean"}, [4.5] * 5),
        ({"season": 3}, [6, 7, 8, 6, 7]),
        ({"season": 3, "scaling": "last"}, [9, 10, 11, 12, 13]),
        ({"season": 3, "log1p": True}, [6, 7, 8, 6, 7]),
        ({"season": 3, "quantiles": (0.5,)}, [6, 7, 8, 6, 7]),
    ):
        config = make_forecaster(**changes)[1]
        found = ask(nothing(config), config, x, lengths, Given())
        torch.testing.assert_close(found.reshape(5, 2)[:, 0], torch.tensor(expected).float())


def test_a_season_longer_than_the_window_is_led_by_the_last_value():
    config = make_forecaster(season=4)[1]
    x = torch.tensor([2.0, 3.0, 5.0]).reshape(1, 3, 1).expand(1, 3, 2).clone()
    found = ask(nothing(config), config, x, torch.tensor([3]), Given())
    assert found[0, :, 0].tolist() == [5, 2, 3, 5, 5]
    none = ask(nothing(config), config, x, torch.tensor([0]), Given())
    assert none[0, :, 0].tolist() == [0] * 5


def test_logarithms_of_both_signs_invert():
    x = torch.tensor([-1e6, -1.0, 0.0, 1e-3, 5.0, 1e9], dtype=torch.float64)
    torch.testing.assert_close(symmetric_exp(symmetric_log(x)), x)
    torch.testing.assert_close(symmetric_log(x[3:]), x[3:].log1p())


def test_differences_to_a_season_before():
    x = torch.randn(2, 7, 3)
    found = differences(x, 2)
    torch.testing.assert_close(found[:, :2], x[:, :2])
    torch.testing.assert_close(found[:, 2:], x[:, 2:] - x[:, :-2])


def test_last_steps_stand_at_equal_places():
    x, lengths = torch.arange(1.0, 13.0).reshape(3, 4, 1), torch.tensor([4, 2, 0])
    found = last_steps(x, lengths, 3)[..., 0]
    assert found.tolist() == [[2, 3, 4], [0, 5, 6], [0, 0, 0]]


# ---- decoders


@pytest.mark.parametrize(
    "quantiles", [(0.1, 0.5, 0.9), (0.05, 0.2), (0.7,), (0.01, 0.5, 0.6, 0.99)]
)
def test_quantiles_never_cross(quantiles):
    params, config = make_forecaster(quantiles=quantiles, season=2, log1p=True, scaling="revin")
    params["head.weight"] *= 20
    x, lengths, given = inputs(config, [9, 6, 3, 1] * 8)
    found = ask(params, config, x * 30, lengths, given)
    assert found.shape == (32, 5, 2, len(quantiles))
    assert (found.diff(dim=-1) >= 0).all()


def test_the_recursive_decoder_feeds_its_forecasts_back():
    params, config = make_forecaster(decoder="recursive", known_size=1, indicator=1, scaling="mean")
    x, lengths, given = inputs(config, [6, 4])
    found = ask(params, config, x, lengths, given)
    assert found.shape == (2, 5, 2)
    row, known = x[1:2, :4], given.known_future[1:2]
    for step in range(5):
        now = Given(known[:, step : step + 1])
        y, _ = forward(params, config, row, torch.tensor([4 + step]), given=now)
        torch.testing.assert_close(y[:, 0], found[1:2, step])
        new = torch.cat([y, known[:, step : step + 1], torch.zeros(1, 1, 1)], -1)
        row = torch.cat([row, new.detach()], 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quantiles": (0.9, 0.1)},
            r"quantiles must rise and lie between 0 and 1, got \[0.9, 0.1\]",
        ),
        ({"quantiles": (0.0, 0.5)}, "quantiles must rise"),
        ({"decoder": "recursive", "quantiles": (0.5,)}, "decoder recursive takes no quantiles"),
        ({"decoder": "recursive", "past_size": 1}, "recursive takes no past covariates"),
        ({"scaling": "series", "season": 2}, "scaling series goes without log1p and season"),
        ({"horizon": 0}, "horizon must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_forecaster(**changes)


@pytest.mark.parametrize("changes", [{"horizon": 3}, {"scaling": "revin"}, {"log1p": True}])
def test_other_tasks_take_nothing_of_forecasts(changes):
    with pytest.raises(InputError, match="is for task forecast"):
        ModelConfig(task="regress", input_size=1, output_size=1, **changes)


# ---- losses


def test_losses_leave_out_what_nobody_knows():
    params, config = make_forecaster(scaling="standard")
    prediction, y = torch.randn(4, 5, 2, requires_grad=True), torch.randn(4, 5, 2)
    y[0, 2] = y[3] = torch.nan
    known = ~y.isnan()
    scale = params["scaler.scale"][:2].expand(4, 5, 2)[known]
    error = (prediction[known] - y[known]) / scale
    for kind, expected in (("mse", error.square()), ("mae", error.abs())):
        found = forecast_loss(LossInput(params, config, kind, prediction, y))
        torch.testing.assert_close(found, expected.mean())
    (gradient,) = torch.autograd.grad(found, prediction)
    assert (gradient[~known] == 0).all()
    assert gradient.isfinite().all()
    unknown = torch.full_like(y, torch.nan)
    assert forecast_loss(LossInput(params, config, "mse", prediction, unknown)) == 0


def test_pinball_is_least_at_the_quantile():
    y = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    guesses = torch.linspace(-2, 2, 81)
    for share in (0.1, 0.5, 0.9):
        costs = torch.stack([pinball(guess - y, (share,)).mean() for guess in guesses])
        best = guesses[costs.argmin()]
        assert abs(best - torch.quantile(y, share)) < 0.06


# ---- windows


def test_windows_are_views_by_index(tmp_path):
    windows = windows_of(hourly(tmp_path / "t.csv", 80))
    assert len(windows) == 80 - 8 - 3 + 1
    batch = windows.gather(torch.tensor([0, 17, 49]))
    for row, origin in enumerate((8, 25, 57)):
        torch.testing.assert_close(batch.x[row], windows.x[origin - 8 : origin])
        torch.testing.assert_close(batch.y[row], windows.x[origin : origin + 3, :1])
        known = windows.x[origin : origin + 3, 1:]
        torch.testing.assert_close(batch.given.known_future[row], known)
    assert windows.select(torch.arange(5)).x.data_ptr() == windows.x.data_ptr()
    torch.testing.assert_close(windows.y[[0, 17, 49]], batch.y)


def test_short_series_are_padded_and_masked(tmp_path):
    windows = windows_of(several(tmp_path / "t.csv", (60, 10)), shape=(20, 3))
    lengths = windows.lengths[windows.series == 1]
    assert lengths.tolist() == [3, 4, 5, 6, 7]
    last = int((windows.series == 1).nonzero()[-1])
    batch = windows.gather(torch.tensor([0, last]))
    assert batch.lengths.tolist() == [20, 7]
    torch.testing.assert_close(batch.x[1, :7], windows.x[60:67])
    assert (batch.x[1, 7:] == 0).all()


def test_no_window_reaches_over_the_end_of_its_part_or_series(tmp_path):
    windows = windows_of(several(tmp_path / "t.csv", (100, 80)))
    parts = split_windows(windows)
    part_of = windows.table.split.part_of(windows.table.ticks)
    owner = np.repeat([0, 1], [100, 80])
    for name, number in (("train", 0), ("validation", 1), ("test", 2)):
        for start, origin in zip(parts[name].starts, parts[name].origins, strict=True):
            assert (part_of[origin : origin + 3] == number).all()
            assert len(set(owner[start : origin + 3])) == 1
    assert len(parts["known"]) > len(parts["train"]) + len(parts["validation"])


def test_filled_targets_are_neither_learned_nor_measured(tmp_path):
    keep = np.r_[0:20, 23:50]
    path = write(tmp_path / "t.csv", {"time": hours(50)[keep], "y": waves(50)[keep]})
    windows = windows_of(path, gaps="forward")
    y = windows.y
    rows = windows.origins[:, None] + torch.arange(3)
    assert torch.equal(y.isnan()[..., 0], (rows >= 20) & (rows < 23))
    assert not (windows.origins == 20).any()  # all of its horizon is unknown
    linear = windows_of(path, gaps="linear")
    assert not torch.isin(linear.origins, torch.tensor([21, 22, 23])).any()  # after a line


def test_thinned_windows_are_at_equal_distances(tmp_path):
    windows = windows_of(hourly(tmp_path / "t.csv", 111))
    assert thinned(windows, 10).origins.diff().tolist() == [10] * 10
    assert len(thinned(windows, 1, 7)) == 7
    assert thinned(windows, 1, 7).origins[[0, -1]].tolist() == windows.origins[[0, -1]].tolist()


def test_location_and_scale_are_of_the_past_alone():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1e5
    history = History.of(x, torch.tensor([0, 30]))
    location, scale = history.at(torch.tensor([10, 45, 30]), torch.tensor([0, 1, 1]))
    torch.testing.assert_close(location[0], x[:10].mean(0))
    torch.testing.assert_close(scale[1], x[30:45].double().std(0, correction=0).float())
    assert scale[2].tolist() == [1, 1]
    constant = History.of(torch.full((9, 1), 0.1), torch.tensor([0]))
    assert constant.at(torch.tensor([9]), torch.tensor([0]))[1].tolist() == [[1.0]]


def test_the_scaler_sees_the_training_part_and_nothing_that_was_filled(tmp_path):
    y = np.where(np.arange(60) < 30, 1.0 * np.arange(60), 1e6)
    y[5] = np.nan
    path = write(tmp_path / "t.csv", {"time": hours(60), "y": y})
    windows = split_windows(
        windows_of(path, split=Shares(0.25, 0.25), gaps="forward", calendar=("none",))
    )["train"]
    config = ModelConfig(task="forecast", input_size=1, output_size=1, **SMALL)
    seen = y[:30][np.isfinite(y[:30])]
    scaler = fit_series_scaler(windows, config)
    assert scaler.shift.item() == pytest.approx(seen.mean())
    assert scaler.scale.item() == pytest.approx(seen.std())
    seasonal = fit_series_scaler(windows, replace(config, season=3))
    assert (seasonal.shift.item(), seasonal.scale.item()) == (3.0, 1.0)


# ---- no leak


@pytest.mark.parametrize(
    "model", [{}, {"scaling": "series"}, {"season": 4, "log1p": True}, {"scaling": "revin"}]
)
def test_the_future_changes_no_weight_and_no_earlier_forecast(tmp_path, model):
    columns = {"time": hours(200), "y": waves(200), "u": waves(200, 5)}
    table = {"target": ("y",), "features": ("u",)}
    first = do(write(tmp_path / "a.csv", columns), tmp_path / "one", model, table=table)
    late = np.arange(200) >= 160  # the test part
    changed = {**columns, "y": np.where(late, -500.0, columns["y"]), "u": np.where(late, 9e9, 0.0)}
    changed["u"][~late] = columns["u"][~late]
    second = do(write(tmp_path / "b.csv", changed), tmp_path / "two", model, table=table)
    assert all(value.equal(second.model.params[n]) for n, value in first.model.params.items())
    one, two = (
        all_windows(
            read(str(tmp_path / name), **table), Shape(8, 3), model.get("scaling") == "series"
        )
        for name in ("a.csv", "b.csv")
    )
    early = (one.origins <= 160).nonzero()[:, 0]
    batches = (windows.gather(early) for windows in (one, two))
    forecasts = [
        ask(first.model.params, first.model.config, b.x, b.lengths, b.given) for b in batches
    ]
    assert torch.equal(*forecasts)
