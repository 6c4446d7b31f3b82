import csv
import json
import os
import subprocess
import sys
import tomllib

import numpy as np
import pandas as pd
import pytest
from cli_cases import invoke
from marks import slow
from series_cases import hourly, hours, several, waves, write

from lstm_compile import load_model
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.errors import InputError
from lstm_compile.export.use.evaluate_file import evaluate_file
from lstm_compile.export.use.predict_file import predict_file
from lstm_compile.training.defaults import resolve

nan = float("nan")
QUICK = [
    *("--task", "forecast", "--context", 8, "--horizon", 3, "--hidden-size", 6),
    *("--epochs", 2, "--batch-size", 16, "--device", "cpu"),
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory: `runs/` is relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ok(*args):
    result = invoke(*args)
    assert (result.exit_code, result.stderr) == (0, ""), result.output[-300:]
    return result.stdout


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def ok_json(*args):
    result = invoke(*args, "--json")
    assert result.exit_code == 0, result.stderr[-300:]
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on two series with a known and a static covariate."""
    folder = tmp_path_factory.mktemp("trained")
    price = np.r_[waves(120, 7), waves(90, 8)]
    path = several(folder / "t.csv", price=price)
    table = ["--known", "price", "--static", "kind", "--quantiles", "0.1,0.5,0.9"]
    out = ok("train", path, *QUICK, *table, "--output", folder / "run")
    return path, folder / "run", out


@pytest.fixture(scope="module")
def exported(trained):
    """The same run with its ONNX file; the proof compiles."""
    ok("export", trained[1], "--onnx")
    return trained


# ---- train


def test_what_train_prints(trained):
    path, run, out = trained
    lines = out.splitlines()
    assert lines[0].startswith(f"data        {path}: 4 features, target y")
    assert "id: id (inferred); time: time (inferred); target: y (inferred)" in lines[1]
    assert "known covariates: price; static: kind; calendar: hour; step: 1 hour" in lines[1]
    assert "windows to train, " in lines[2]
    for name in ("naive", "seasonal naive", "seasonal ratio", "ridge on windows"):
        assert f"baseline    {name}: mae " in out
    assert lines[-1] == f"next        lstm-compile export {run} --onnx"


def test_the_config_of_a_run_trains_the_same_model(trained, here):
    _, run, _ = trained
    document = tomllib.loads((run / "config.toml").read_text())
    assert document["task"] == "forecast"
    assert document["table"]["known"] == ["price"]
    ok("train", document["data"], "--config", run / "config.toml", "--output", "again")
    first, second = load_model(run), load_model(here / "again")
    assert first.config == second.config
    assert all(value.equal(second.params[name]) for name, value in first.params.items())


def test_a_config_file_may_leave_the_task_to_a_flag(here):
    (here / "some.toml").write_text("[model]\nhorizon = 2\ncontext = 5\nscaling = 'last'\n")
    path, quick = hourly(here / "t.csv"), ("--epochs", 1, "--hidden-size", 4)
    for order in (
        ("--config", "some.toml", "--task", "forecast"),
        ("--task", "forecast", "--config", "some.toml"),
    ):
        ok("train", path, *order, *quick)
    config = load_model(here / "runs" / "t-2").config
    assert (config.horizon, config.context, config.scaling) == (2, 5, "last")
    result = invoke("train", "japanese-vowels", "--config", "some.toml", *quick)
    assert "is for task forecast" in result.stderr


def test_a_bundled_series_brings_its_settings(here):
    settings = resolve("airline")
    assert (settings.task, settings.model["season"], settings.training.test_share) == (
        *("forecast", 12, 12),
    )
    assert resolve("airline", model={"season": 0}).model["season"] == 0
    assert resolve("else.csv", "forecast").training.batch_size == 64
    assert resolve("else.csv").model == {}
    found = ok_json("train", "airline", "--epochs", 1, "--output", "run")
    assert (found["task"], found["rows"], found["tested_on"]) == ("forecast", 1, "test")
    assert found["baselines"]["seasonal naive"]["mae"] == pytest.approx(47.833, abs=1e-3)
    assert found["baselines"]["seasonal ratio"]["mae"] == pytest.approx(13.432, abs=1e-3)
    ok("evaluate", "run")


def test_a_test_file_is_tested_whole(here):
    path, test = hourly(here / "t.csv", 150), hourly(here / "later.csv", 60)
    found = ok_json("train", path, *QUICK, "--test", test, "--output", "run")
    assert found["rows"] == 60 - 8 - 3 + 1
    again = ok_json("evaluate", "run", test)
    assert again["metrics"] == pytest.approx(found["metrics"])


def test_without_a_validation_part_all_before_the_test_part_is_learned(here):
    path, later = hourly(here / "t.csv", 150), hourly(here / "later.csv", 60)
    out = ok("train", path, *QUICK, "--validation", 0, "--test-share", 12, "--output", "run")
    assert "windows to train, 0 to validate, 10 to test\n" in out
    assert "stopped     all epochs done\n" in out
    ok("evaluate", "run")
    found = ok_json("train", path, *QUICK, "--validation", 0, "--test", later)
    assert (found["epochs"], found["tested_on"]) == (2, "test")
    refused = invoke("train", path, *QUICK, "--validation", 0, "--test-share", 0)
    assert refused.exit_code == 2
    assert "nothing is held out to measure on; take a --validation above 0" in refused.stderr


def test_a_horizon_longer_than_the_test_part_says_what_is_measured(here):
    path = hourly(here / "t.csv", 150)
    out = ok("train", path, *QUICK, "--test-share", 2, "--output", "run")
    why = "none to test (the test part is shorter than the horizon of 3 steps)"
    assert f"{why}: the figures are of the validation part\n" in out
    assert "\nvalidation  mae " in out
    assert "\ntest " not in out
    refused = invoke("evaluate", "run")
    assert refused.exit_code == 2
    assert "no window of 3 steps from 2020-01-07T04:00:00 on" in refused.stderr


def test_quantiles_without_a_median_from_training_to_prediction(here):
    path = hourly(here / "t.csv", 150)
    out = ok("train", path, *QUICK, "--quantiles", "0.1,0.9", "--output", "run")
    verdict = next(line for line in out.splitlines() if line.startswith("verdict"))
    assert "scaled_pinball" in verdict
    assert "mae" not in out
    found = ok_json("evaluate", "run")
    assert {"pinball", "scaled_pinball", "coverage"} == found["metrics"].keys()
    assert all(found["metrics"].keys() == each.keys() for each in found["baselines"].values())
    ok("predict", "run", path, "--output", "p.csv")
    assert [*rows_of("p.csv")[0]] == ["time", "y_0.1", "y_0.9"]


@pytest.mark.parametrize(
    "scaling", ["none", "standard", "minmax", "series", "last", "mean", "revin"]
)
def test_values_far_from_those_of_training_are_answered_with_numbers_or_refused(here, scaling):
    """Squares beyond float32 became forecasts of NaN."""
    path = hourly(here / "t.csv", 90)
    ok("train", path, *QUICK, "--scaling", scaling, "--epochs", 1, "--output", "run")
    refused = set()
    for level in (1.0, 1e12, 1e20, 1e30, 4e36):
        data = write(here / "far.csv", {"time": hours(40), "y": level * waves(40)})
        result = invoke("predict", "run", data, "--output", "p.csv")
        if result.exit_code:
            assert "rows 0 to 0: row 0: the answer is no finite number, as its" in result.stderr
            refused.add(level)
        else:
            assert np.isfinite([float(row["y"]) for row in rows_of("p.csv")]).all()
    assert refused <= {1e20, 1e30, 4e36}
    assert scaling != "revin" or 1e20 in refused


def usage(*args):
    """Run the program in a process of its own; its seconds of processor time and peak MiB."""
    process = subprocess.Popen([sys.executable, "-m", "lstm_compile", *map(str, args)])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts memory in KiB")
@pytest.mark.parametrize("kind", ["100 Hz", "2,000 series"])
def test_large_tables_take_little_memory_and_time(here, kind):
    random = np.random.default_rng(0)
    if kind == "100 Hz":  # a season of a day is 8.64 million steps
        times = np.datetime64("2024-01-01T00", "ms") + 10 * np.arange(100_000)
        columns = {"time": times, "y": np.sin(np.arange(100_000) / 17).round(4)}
    else:
        days, ids = np.datetime64("2022-01-01") + np.arange(300), np.arange(2000)
        y = 50 + 10 * np.sin(np.arange(300) / 7 + ids[:, None]) + random.normal(0, 3, (2000, 300))
        columns = {
            "id": np.repeat([f"s{i}" for i in ids], 300), "time": np.tile(days, 2000),
            "y": y.ravel().round(3),
        }  # fmt: skip
    path = write(here / "t.csv", columns)
    seconds, peaks = zip(
        usage("train", path, "--task", "forecast", "--epochs", 1, "--output", "run"),
        usage("evaluate", "run"),
        usage("export", "run", "--onnx"),
        usage("predict", "run/model.onnx", path, "--output", "p.csv"),
        strict=True,
    )
    assert max(peaks) < 1536
    assert sum(seconds) < 180


@pytest.mark.slow
def test_a_recursive_model_from_end_to_end(here):
    path = hourly(here / "t.csv", 200)
    ok("train", path, *QUICK, "--decoder", "recursive", "--scaling", "last", "--output", "run")
    ok("export", "run", "--onnx")
    ours, theirs = (evaluate_file(here / "run" / name, path) for name in ("", "model.onnx"))
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-4)
    ours, theirs = (predict_file(here / "run" / name, path) for name in ("", "model.onnx"))
    assert ours.values.shape == (1, 3, 1)
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-5)


# ---- evaluate


@pytest.mark.slow
def test_evaluate_gives_the_figures_of_training(exported):
    path, run, _ = exported
    training = load_model(run).training
    for source in (run, run / "model.onnx"):
        found = evaluate_file(source, path)
        assert found.metrics == pytest.approx(training["test"], rel=1e-4)
        assert found.baselines == {
            name: pytest.approx(values) for name, values in training["baselines"].items()
        }
    assert evaluate_file(run).metrics == pytest.approx(training["test"])


def test_evaluate_prints_figures_by_target_and_step(trained):
    path, run, _ = trained
    found = ok_json("evaluate", run, path)
    assert set(found) == {
        *("task", "rows", "metrics", "baselines", "verdict", "interval", "details")
    }
    assert {"mae", "rmse", "mape", "smape", "mase", "pinball", "coverage"} <= set(found["metrics"])
    steps = found["details"]["targets"]["y"]["steps"]
    assert len(steps) == 3
    assert set(steps[0]) == set(found["metrics"])
    assert set(found["details"]["baselines"]) == set(found["baselines"])


@pytest.mark.slow
def test_evaluate_strides_and_draws(trained, here):
    pytest.importorskip("matplotlib")
    path, run, _ = trained
    whole = ok_json("evaluate", run, path)["rows"]
    out = ok("evaluate", run, path, "--stride", 5, "--plot", "plot.png")
    assert f"({-(-whole // 5)} windows)" in out
    assert "plot        plot.png" in out
    assert (here / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_training_saw_is_not_tested(trained, here):
    _, run, _ = trained
    early = several(here / "early.csv", (60, 60), price=waves(120))
    result = invoke("evaluate", run, early)
    assert result.exit_code == 2
    assert (
        "where the test part begins; the model was trained on the rows before it" in result.stderr
    )


# ---- predict


def with_future(path, known=True, count=3):
    """The two series of `trained`, and rows for the horizon after them."""
    lengths = (120 + count, 90 + count)
    y = [np.r_[waves(n - count, i, 20.0 + 100 * i), [nan] * count] for i, n in enumerate(lengths)]
    price = np.r_[waves(lengths[0], 7), waves(lengths[1], 8)]
    if not known:
        price[lengths[0] - 1] = nan
    return several(path, lengths, y=np.concatenate(y), price=price)


@pytest.mark.parametrize(("fixture", "name"), [("trained", ""), slow("exported", "model.onnx")])
def test_predict_gives_the_next_horizon_of_each_series(request, here, fixture, name):
    _, run, _ = request.getfixturevalue(fixture)
    out = ok("predict", run / name, with_future(here / "new.csv"), "--output", "out.csv")
    assert "rows        6, 2 series" in out
    found = rows_of("out.csv")
    assert list(found[0]) == ["id", "time", "y_0.1", "y_0.5", "y_0.9"]
    assert [row["id"] for row in found] == ["a"] * 3 + ["b"] * 3
    assert [row["time"] for row in found[:3]] == [
        *("2020-01-06T00", "2020-01-06T01", "2020-01-06T02")
    ]
    assert all(float(row["y_0.1"]) <= float(row["y_0.9"]) for row in found)


@pytest.mark.slow
def test_a_run_and_its_onnx_file_forecast_alike(exported, here):
    _, run, _ = exported
    path = with_future(here / "new.csv")
    ours, theirs = (predict_file(run / name, path).values for name in ("", "model.onnx"))
    spread = load_model(run).training["target_deviation"][0]
    assert np.abs(ours - theirs).max() <= 1e-5 * spread


@pytest.mark.slow
def test_an_onnx_file_forecasts_without_torch(exported, here):
    _, run, _ = exported
    with_future(here / "new.csv")
    code = (
        "import sys\nfrom lstm_compile.cli import main\n"
        f"sys.argv = ['x', 'predict', {str(run / 'model.onnx')!r}]\n"
        "sys.argv += ['new.csv', '--output', 'o.csv']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(here / "o.csv")) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: with_future(path, known=False),
            "row 123, column 'price': found an empty cell, NaN or infinity (1 in all), expected",
        ),
        (lambda path: with_future(path, count=2), "column 'price': no value for 2020-01-06T02:00"),
        (lambda path: several(path), "no column 'price' for --known; found id, time, y, kind"),
        (
            lambda path: several(path, (9, 9), price=waves(18), kind=["even"] * 9 + ["new"] * 9),
            "row 10, column 'kind': found 'new', expected one of the categories the model was trai",
        ),
        (
            lambda path: several(path, (9, 9), price=waves(18), y=[*range(9), *[nan] * 9]),
            "series 'b': found no value of y, expected at least one",
        ),
        (
            lambda path: several(path, (9, 9), price=["1"] * 17 + ["dear"]),
            "row 18, column 'price': found 'dear', expected a number",
        ),
        (
            lambda path: several(path, (9, 9), price=waves(18), y=[1.0, nan, *range(16)]),
            r"row 2, column 'y': found an empty cell, NaN or infinity",
        ),
    ],
)
def test_predict_names_what_is_wrong(exported, here, make, message):
    _, run, _ = exported
    result = invoke("predict", run / "model.onnx", make(here / "new.csv"), "--output", "out.csv")
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (here / "out.csv").exists()


def test_gaps_of_fresh_data_may_be_filled_otherwise(trained, here):
    _, run, _ = trained
    path = several(here / "new.csv", (9, 12), y=[1.0, nan, *range(19)], price=[*waves(21)])
    result = invoke("predict", run, path, "--gaps", "forward", "--output", "out.csv")
    assert "no value for" in result.stderr  # the gap is filled, the horizon is not


# ---- bad input of train


def short(path):
    return several(path, (100, 3))


@pytest.mark.parametrize(
    ("make", "args", "message"),
    [
        (
            short,
            (),
            "series 'b', from 2020-01-01T00:00:00 on: 3 steps with a target, expected more",
        ),
        (
            lambda path: hourly(path, 30),
            ("--horizon", 12),
            "no window of 12 steps lies in the training part; take a smaller --horizon",
        ),
        (
            lambda path: write(path, {"time": hours(40), "y": [nan] * 40, "u": waves(40)}),
            ("--target", "y", "--gaps", "forward"),
            "column 'y': found no number in any row",
        ),
        (hourly, ("--missing", "zero"), "series take --gaps in place of --missing"),
        (
            hourly,
            ("--noise", 0.1),
            "noise is for task classify or regress or tag",
        ),
        (hourly, ("--class-weight", "balanced"), "class_weight must be none for task forecast"),
        (
            hourly,
            ("--loss", "cross-entropy"),
            "loss must be one of auto, mse, mae, huber for task fore",
        ),
        (
            hourly,
            ("--loss", "mse", "--quantiles", "0.1,0.9"),
            "loss must be one of auto, pinball for quantiles; got 'mse'",
        ),
        (hourly, ("--quantiles", "0.1,x"), "expected numbers separated by commas, got '0.1,x'"),
        (
            hourly,
            ("--calendar", "minute"),
            "calendar must be auto, none or of hour, weekday, month",
        ),
    ],
)
def test_train_refuses_and_writes_nothing(here, make, args, message):
    result = invoke("train", make(here / "t.csv"), *QUICK, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]
    assert not (here / "runs").exists()


def test_options_of_series_need_the_task(here):
    path = several(here / "t.csv")
    result = invoke("train", path, "--gaps", "forward")
    assert "--gaps is for series to forecast; add --task forecast" in result.stderr
    result = invoke("train", "japanese-vowels", "--horizon", 3)
    assert "horizon is for task forecast, the task is classify" in result.stderr
    result = invoke("train", "japanese-vowels", "--task", "regress")
    assert "japanese-vowels: good for task classify, not regress; leave --task out" in result.stderr
    with pytest.raises(InputError, match="gaps must be one of error, forward, linear, indicate"):
        TableOptions(gaps="nearest")


# ---- calendars, zones and names, from training to the ONNX file


def through(frame, path, *flags, fresh=None):
    """What `predict` makes of a table, or of another one, with the file that `export` makes."""
    frame.to_parquet(path) if path.endswith("parquet") else frame.to_csv(path, index=False)
    ok("train", path, *QUICK[:-6], "--epochs", 1, "--device", "cpu", "--output", "run", *flags)
    ok("evaluate", "run", path)
    ok("evaluate", ok_onnx("run"), path)
    out = "out" + path[path.rindex(".") :]
    ok("predict", "run/model.onnx", fresh or path, "--output", out)
    return pd.read_parquet(out) if out.endswith("parquet") else pd.read_csv(out, dtype=str)


def ok_onnx(run):
    ok("export", run, "--onnx")
    return f"{run}/model.onnx"


@pytest.mark.slow
def test_business_days_with_covariates_and_gaps(here):
    days = pd.bdate_range("2024-01-01", periods=93)
    frame = pd.DataFrame({"day": days.strftime("%Y-%m-%d"), "sold": waves(93)})
    frame["promo"] = np.arange(93) % 4
    frame.loc[90:, "sold"] = nan
    frame = pd.concat([frame.assign(shop="007"), frame.assign(shop="03")]).drop(index=20)
    flags = ["--id", "shop", "--known", "promo", "--gaps", "forward"]
    found = through(frame, "shops.csv", "--target", "sold", *flags)
    assert list(found) == ["shop", "day", "sold"]
    joined = frame.merge(found, on=["shop", "day"])
    assert joined["day"].tolist() == [*days[90:].strftime("%Y-%m-%d")] * 2


@pytest.mark.slow
def test_days_of_a_zone_across_a_change_of_clocks(here):
    times = pd.date_range("2022-08-01", periods=93, freq="D", tz="Europe/Berlin").as_unit("us")
    frame = pd.DataFrame({"number": 5, "at": times, "y": waves(93)})
    found = through(frame[:90], "zone.parquet", "--id", "number")
    joined = frame.merge(found, on=["number", "at"])
    assert joined["at"].tolist() == [*times[90:]]
    assert found.dtypes["at"] == times.dtype


@pytest.mark.slow
def test_series_of_several_files_and_whole_numbers(here):
    (here / "parts").mkdir()
    months = pd.date_range("2015-01-01", periods=63, freq="MS").strftime("%Y%m").astype(int)
    for name in "ab":
        rows = pd.DataFrame({"date": months[:60], "y": waves(60)})
        rows.to_csv(here / "parts" / f"{name}.csv", index=False)
    frame = pd.DataFrame({"date": months[:60], "y": waves(60)})
    found = through(frame, "months.csv", fresh="parts")
    assert found["file"].tolist() == ["parts/a.csv"] * 3 + ["parts/b.csv"] * 3
    assert found["date"].tolist() == [*map(str, months[60:])] * 2
    info = json.loads(ok("inspect", "run/model.onnx", "--json"))
    assert info["schema"]["series"]["form"] == "YYYYMM"
