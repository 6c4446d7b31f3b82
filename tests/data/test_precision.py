"""Numbers far from zero, which float32 would round away."""

import json

import numpy as np
import pytest
import torch
from cli_cases import assert_refused, invoke, snapshot
from series_cases import SMALL, hours, read, waves, windows_of, write

from lstm_compile import ModelConfig, from_padded
from lstm_compile.data.readers import read_sequences
from lstm_compile.data.tables.precision import level_to_subtract
from lstm_compile.errors import InputError
from lstm_compile.evaluation.backtest import backtest
from lstm_compile.evaluation.forecast_baselines import naive
from lstm_compile.export import export_onnx
from lstm_compile.export.runtime import ModelError, load

COUNT = 200
DAILY = 1e9 + 5 * np.sin(2 * np.pi * np.arange(COUNT) / 24)
FORECAST = ["--task", "forecast", "--context", 24, "--horizon", 6, "--hidden-size", 6]
ONE = np.array([COUNT])


def series(path, y, **more):
    return write(path, {"time": hours(len(y)), "y": y, **more})


@pytest.mark.parametrize(
    "values",
    [
        waves(COUNT),
        np.arange(COUNT) * 1e6,
        np.linspace(0, 1e12, COUNT),
        np.full(COUNT, 1e9),
        100 + 1e-14 * np.arange(COUNT),
        np.full(COUNT, np.nan),
    ],
)
def test_where_float32_keeps_enough_nothing_is_subtracted(values):
    assert level_to_subtract(values, ONE) == 0


def test_a_level_is_subtracted_before_float32(tmp_path):
    table = read(series(tmp_path / "t.csv", DAILY))
    (level,) = table.info.subtracted
    kept = table.x[:, 0].astype(np.float64) + level
    np.testing.assert_allclose(kept, DAILY, rtol=0, atol=1e-6)
    assert f"y is kept as y - {level:.15g}" in table.roles.description


def test_what_cannot_be_kept_is_refused(tmp_path):
    wide = np.concatenate([np.arange(100.0), 4e9 + np.arange(100.0)])
    expected = (
        "from 0 to 4000000099, which float32 rounds to steps of up to 256.*rows of another level"
    )
    with pytest.raises(InputError, match=expected):
        read(series(tmp_path / "t.csv", wide))


@pytest.mark.parametrize(
    "y",
    [
        1e15 + 100 * np.sin(np.arange(COUNT)),
        5_000_000_000_000_000 + np.random.default_rng(0).integers(0, 120, COUNT).cumsum(),
        np.rint(2**53 + 40 * np.sin(np.arange(COUNT))),
        1e12 + 0.01 * np.sin(np.arange(COUNT)),
        1e9 + 1e-5 * np.sin(np.arange(COUNT)),
    ],
)
def test_changes_that_float64_holds_are_kept(tmp_path, y):
    table = read(series(tmp_path / "t.csv", y))
    (level,) = table.info.subtracted
    change = np.abs(np.diff(y)).mean()
    np.testing.assert_allclose(table.x[:, 0], y - level, rtol=0, atol=0.01 * change)


def test_one_number_of_another_level_costs_the_others_nothing(tmp_path):
    y = 5 * np.sin(np.arange(COUNT))
    y[100] = 9e9
    table = read(series(tmp_path / "low.csv", y))
    assert not table.info.subtracted
    np.testing.assert_array_equal(table.x[:, 0], y.astype(np.float32))
    y += 1e9
    table = read(series(tmp_path / "high.csv", y))
    (level,) = table.info.subtracted
    kept = table.x[:, 0].astype(np.float64) + level
    np.testing.assert_allclose(np.delete(kept - y, 100), 0, atol=1e-6)
    y = 1e9 + 5 * np.sin(np.arange(COUNT)) + 1e9 * (np.arange(COUNT) > 150)
    with pytest.raises(InputError, match="leave out the rows of another level"):
        read(series(tmp_path / "both.csv", y))


def test_numbers_that_are_apart_but_for_a_few_are_refused(tmp_path):
    ids, kind = np.repeat(np.arange(60), 4), np.repeat(np.arange(60) % 2, 4)
    columns = {"id": ids, "x": np.where(ids < 2, 0, 1e9 + 2 * kind), "label": kind}
    path = tmp_path / "t.csv"
    with pytest.raises(InputError, match="'x': found numbers from 1000000000 to 1000000002"):
        read_sequences(write(path, columns))
    columns["x"] -= 1e9
    assert len(read_sequences(write(path, columns))) == 60


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).uniform(0, 1e9, 240),
        1.6e9 + 64 * np.arange(240),
        1 + 1e-6 * np.arange(240),
        100 + 1e-14 * np.arange(240),
        np.exp(np.random.default_rng(0).normal(0, 9, 240)),
    ],
)
def test_numbers_that_float32_keeps_apart_are_read(tmp_path, x):
    columns = {"id": np.repeat(np.arange(60), 4), "x": x, "label": np.repeat(np.arange(60) % 2, 4)}
    assert len(read_sequences(write(tmp_path / "t.csv", columns))) == 60


def test_each_series_is_judged_by_itself(tmp_path):
    small = 1e9 + 5 * np.sin(np.arange(COUNT))
    columns = {"id": np.repeat(list("abcde"), COUNT), "time": np.tile(hours(COUNT), 5)}

    def table_of(others):
        y = np.concatenate([np.tile(others, 4), small])
        return read(write(tmp_path / "t.csv", columns | {"y": y}), id="id")

    (level,) = table_of(1e6 * np.sin(np.arange(COUNT))).info.subtracted
    assert level == pytest.approx(1e9)
    expected = (
        r"column 'y': series 'e': found numbers from 99999.* steps of up to 64.*subtract 1000000"
    )
    with pytest.raises(InputError, match=expected):
        table_of(5 * np.sin(np.arange(COUNT)))
    columns["id"], columns["time"] = columns["id"][:-COUNT], columns["time"][:-COUNT]
    small = small[:0]
    assert not table_of(5 * np.sin(np.arange(COUNT))).info.subtracted


def test_data_of_another_level_than_training_are_refused(tmp_path):
    path, run = series(tmp_path / "t.csv", DAILY), tmp_path / "run"
    flags = ["--epochs", 1, "--output", run]
    assert invoke("train", path, *FORECAST, *flags).exit_code == 0
    other = series(tmp_path / "other.csv", DAILY + 1e9)
    export_onnx(run, tmp_path / "m.onnx")
    before, output = snapshot(tmp_path), ["--output", tmp_path / "p.csv"]
    onnx = ["predict", tmp_path / "m.onnx", other, *output]
    for command in (["evaluate", run, other], ["predict", run, other, *output], onnx):
        assert_refused(invoke(*command), "train a model on data of this level", before, tmp_path)


@pytest.mark.parametrize("start", [1e9, 2_000_000_000, 7e12])
def test_figures_of_rules_are_those_of_the_exact_numbers(tmp_path, start):
    y = start + np.random.default_rng(0).poisson(3, COUNT).cumsum()
    windows = windows_of(series(tmp_path / "t.csv", y), (24, 6))
    config = ModelConfig(
        task="forecast", input_size=windows.x.shape[1], output_size=1, known_size=4,
        **SMALL | {"context": 24, "horizon": 6},
    )  # fmt: skip
    found = backtest(lambda some: naive(some), config, windows, {}, torch.ones(1))
    origins = windows.origins.numpy()
    truth = y[origins[:, None] + np.arange(6)]
    error = np.abs(y[origins - 1][:, None] - truth)
    assert found.baselines["naive"]["mae"] == pytest.approx(error.mean(), rel=1e-9)
    percent = (error / np.abs(truth)).mean()
    assert found.baselines["naive"]["mape"] == pytest.approx(percent, rel=1e-6)
    grown = y[origins[:, None] - 24 + np.arange(6)]
    last, before = (sum(y[origins - step - shift] for step in range(1, 25)) for shift in (0, 24))
    ratio = np.where(origins >= 48, last / np.where(origins >= 48, before, 1), 1)
    expected = np.abs(grown * ratio[:, None] - truth).mean()
    assert found.baselines["seasonal ratio"]["mae"] == pytest.approx(expected, rel=1e-6)


def test_a_level_is_learned_and_given_back(tmp_path):
    path, output = series(tmp_path / "t.csv", DAILY, c=3e9 + np.arange(COUNT)), tmp_path / "run"
    flags = ["--known", "c", "--epochs", 1, "--output", output]
    result = invoke("train", path, *FORECAST, *flags)
    assert result.exit_code == 0, result.output
    ahead = [f"{stamp}," + f",{3e9 + COUNT + i}" for i, stamp in enumerate(hours(COUNT + 6)[-6:])]
    with open(path, "a") as file:
        file.write("\n".join(ahead) + "\n")
    export_onnx(output, tmp_path / "m.onnx")
    answers = []
    for model in (output, tmp_path / "m.onnx"):
        invoke("predict", model, path, "--output", tmp_path / "p.csv")
        answers.append(np.loadtxt(tmp_path / "p.csv", delimiter=",", skiprows=1, usecols=1))
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-4)
    assert (np.abs(answers[0] - 1e9) < 30).all()
    ready, table = load(tmp_path / "m.onnx"), read(path, known=("c",), target=("y",))
    history = np.column_stack([DAILY, 3e9 + np.arange(COUNT), table.x[:COUNT, 2:]])
    known = np.column_stack([3e9 + COUNT + np.arange(6), table.x[COUNT:, 2:]])
    found = ready.forecast([history], known[None])
    np.testing.assert_allclose(found[0, :, 0], answers[1], rtol=0, atol=1e-4)
    with pytest.raises(ModelError, match="expected float64, as the model subtracts 3000000"):
        ready.forecast([history.astype(np.float32)], known[None])


def test_log1p_of_such_numbers_is_refused(tmp_path):
    path = series(tmp_path / "t.csv", DAILY)
    before = snapshot(tmp_path)
    result = invoke("train", path, *FORECAST, "--log1p", "--output", tmp_path / "run")
    assert_refused(result, "leave --log1p out", before, tmp_path)


@pytest.mark.parametrize("column", ["x", "y"])
@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_sequences_whose_numbers_float32_cannot_tell_apart_are_refused(tmp_path, suffix, column):
    path, ids = tmp_path / f"t{suffix}", np.repeat(np.arange(20), 5)
    columns = {"x": np.arange(100) / 100, "y": np.repeat(np.arange(20) / 4, 5)}
    columns[column] += 1e9
    if suffix == ".csv":
        write(path, {"id": ids, **columns})
    else:
        np.savez(path, x=columns["x"][:, None], lengths=np.full(20, 5), y=columns["y"][::5])
    with pytest.raises(InputError, match=r"float32 rounds to steps of 64.*subtract 1000000000 "):
        read_sequences(path)


def test_a_model_reads_a_narrow_part_of_what_it_was_trained_on(tmp_path):
    wide = {
        "id": np.repeat([0, 1], 50),
        "x": np.linspace(0, 1e9, 100),
        "y": [0.5] * 50 + [1.5] * 50,
    }
    schema = read_sequences(write(tmp_path / "wide.csv", wide)).schema
    narrow = {"id": [0, 0], "x": [1e9, 1e9 + 1], "y": [0.5, 0.5]}
    assert len(read_sequences(write(tmp_path / "narrow.csv", narrow), schema=schema)) == 1


def test_schemas_without_levels_are_written_as_before(tmp_path):
    table = read(series(tmp_path / "t.csv", waves(COUNT)))
    assert "subtracted" not in json.loads(table.schema.to_json())["series"]


def test_tensors_are_checked_too():
    x, y = torch.ones(6, 2, 1).double(), 1e9 + torch.arange(6).double()[:, None]
    with pytest.raises(InputError, match=r"y, column 'target_0': .* rounds to steps of 64"):
        from_padded(x, y)
    with pytest.raises(InputError, match=r"x, column 'feature_0': .* rounds to steps of 64"):
        from_padded(x * y[..., None], y - 1e9)
    assert len(from_padded(x, y - 1e9)) == 6
