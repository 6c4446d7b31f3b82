import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from series_cases import hourly, hours, read, several, waves, write

from lstm_compile.data.series.clock import DAY, HOUR, Clock, calendar_columns
from lstm_compile.data.series.find_clock import infer_clock
from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.series_table import Shares, Split, look_ahead
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.errors import InputError

nan = float("nan")


def clock_of(stamps):
    times = np.array(stamps, "M8[s]") if isinstance(stamps[0], str) else np.array(stamps)
    return infer_clock(times, np.ones(len(times) - 1, bool))


# ---- the clock


@pytest.mark.parametrize(
    ("stamps", "kind", "step", "season", "name"),
    [
        (["2020-01-01T00", "2020-01-01T01", "2020-01-01T02"], "fixed", HOUR, 24, "1 hour"),
        (["2020-01-01", "2020-01-02", "2020-01-03"], "fixed", DAY, 7, "1 day"),
        (["2020-01-01", "2020-01-08", "2020-01-15"], "fixed", 7 * DAY, 52, "7 days"),
        (["2020-01-01T00:00", "2020-01-01T00:15"], "fixed", HOUR // 4, 96, "15 minutes"),
        (["2020-01-31", "2020-02-29", "2020-03-31"], "month-ends", 1, 12, "1 month"),
        (["2020-01-15", "2020-02-15", "2020-03-15"], "months", 1, 12, "1 month"),
        (["2020-01-01", "2020-04-01", "2020-07-01"], "months", 3, 4, "3 months"),
        (["2020-01-01", "2021-01-01", "2022-01-01"], "months", 12, 1, "12 months"),
        ([10, 20, 30], "number", 10, 1, "10"),
        ([0.1, 0.2, 0.30000000000000004], "number", 0.1, 1, "0.1"),
    ],
)
def test_the_step_is_inferred(stamps, kind, step, season, name):
    found = clock_of(stamps)
    assert (found.kind, found.season, found.name) == (kind, season, name)
    assert found.step == pytest.approx(step)


@pytest.mark.parametrize(
    "stamps",
    [
        ["2020-01-31", "2020-02-29", "2020-03-31"],
        ["2020-01-15T06:30", "2020-02-15T06:30"],
        ["2020-01-01T00", "2020-01-01T01"],
    ],
)
def test_ticks_and_stamps_are_each_others_inverse(stamps):
    times = np.array(stamps, "M8[s]")
    clock = clock_of(stamps)
    np.testing.assert_array_equal(clock.stamps(clock.ticks(times), times[0]), times)


def test_months_without_the_day_have_their_last():
    ticks = np.arange("2023-12", "2024-05", dtype="M8[M]").astype(np.int64)
    found = Clock("months", 1).stamps(ticks, np.datetime64("2023-11-30T18:30"))
    days = ["2023-12-30", "2024-01-30", "2024-02-29", "2024-03-30", "2024-04-30"]
    assert found.tolist() == [np.datetime64(f"{day}T18:30:00").item() for day in days]
    found = Clock("months", 1).stamps(ticks, np.datetime64("2024-01-31"))
    days = ["2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"]
    assert found.astype("M8[D]").astype(str).tolist() == days


def test_a_gap_does_not_change_the_step():
    assert (
        clock_of(["2020-01-01T00", "2020-01-01T05", "2020-01-01T06", "2020-01-01T07"]).step == HOUR
    )


@pytest.mark.parametrize(
    ("clock", "days", "names"),
    [
        (Clock("fixed", HOUR), 1, ()),
        (Clock("fixed", HOUR), 3, ("hour",)),
        (Clock("fixed", HOUR), 20, ("hour", "weekday")),
        (Clock("fixed", HOUR), 800, ("hour", "weekday", "month")),
        (Clock("fixed", DAY), 800, ("weekday", "month")),
        (Clock("number", 1), 800, ()),
    ],
)
def test_the_calendar_is_what_was_seen_twice(clock, days, names):
    assert clock.features(days * DAY) == names


def test_calendar_columns_are_sines_and_cosines():
    stamps = np.array(["2024-01-01T06", "2024-07-07T00"], "M8[s]")  # a Monday, a Sunday
    found = calendar_columns(stamps, ("hour", "weekday", "month"))
    angles = 2 * np.pi * np.array([[0.25, 0, 0], [0, 6 / 7, 0.5]])
    np.testing.assert_allclose(found[:, ::2], np.sin(angles), atol=1e-6)
    np.testing.assert_allclose(found[:, 1::2], np.cos(angles), atol=1e-6)


# ---- reading


def test_a_plain_table(tmp_path):
    table = read(hourly(tmp_path / "t.csv", 100))
    assert table.schema.targets == ("y",)
    assert table.schema.features == ("y", "hour_sin", "hour_cos")
    assert table.lengths.tolist() == table.history.tolist() == [100]
    np.testing.assert_allclose(table.x[:, 0], waves(100), rtol=1e-6)
    assert not table.missing.any()
    assert "target: y (inferred)" in table.roles.description


def test_rows_may_stand_anywhere(tmp_path):
    order = np.random.default_rng(0).permutation(50)
    plain = write(tmp_path / "a.csv", {"time": hours(50), "y": waves(50)})
    mixed = write(tmp_path / "b.csv", {"time": hours(50)[order], "y": waves(50)[order]})
    np.testing.assert_array_equal(read(plain).x, read(mixed).x)


def test_several_series_of_several_files(tmp_path):
    whole = read(several(tmp_path / "t.csv"), static=("kind",))
    assert (whole.ids, whole.lengths.tolist()) == (("a", "b"), [120, 90])
    assert whole.info.categories == (("even", "odd"),)
    assert whole.statics.tolist() == [[0], [1]]
    folder = tmp_path / "parts"
    folder.mkdir()
    rows = pa.csv.read_csv(tmp_path / "t.csv")
    for part in range(3):
        pa.parquet.write_table(rows.slice(part * 70, 70), folder / f"{part}.parquet")
    again = read(str(folder), static=("kind",))
    np.testing.assert_array_equal(again.x, whole.x)
    assert again.ids == whole.ids


def test_months_of_a_year_and_numbers_as_time(tmp_path):
    months = np.datetime64("2000-01") + np.arange(36).astype("m8[M]")
    table = read(write(tmp_path / "m.csv", {"Date": months, "y": np.arange(36)}))
    assert (table.info.kind, table.info.calendar) == ("months", ("month",))
    numbered = read(write(tmp_path / "n.csv", {"time": np.arange(9) * 5, "y": np.arange(9)}))
    assert (numbered.info.kind, numbered.info.step, numbered.info.calendar) == ("number", 5, ())


def test_stamps_with_an_offset_keep_it(tmp_path):
    stamps = [f"2020-01-01T{hour:02}:00:00+02:00" for hour in range(4)]
    table = read(write(tmp_path / "t.csv", {"time": stamps, "y": [1, 2, 3, 4]}))
    assert str(table.clock.stamps(table.ticks)[0]) == "2019-12-31T22:00:00"
    assert table.info.zone == "+02:00"
    assert str(table.stamps(table.ticks)[0]) == "2020-01-01T00:00:00"


# ---- duplicates and gaps

TWICE = {
    "time": [*hours(3), hours(3)[1], *hours(5)[3:]],
    "y": [1.0, 2.0, 3.0, 6.0, 4.0, 5.0],
    "u": [1.0, nan, 1.0, 8.0, 1.0, 1.0],
}


@pytest.mark.parametrize(("how", "y"), [("mean", 4.0), ("last", 6.0)])
def test_duplicates_become_one_row(tmp_path, how, y):
    table = read(write(tmp_path / "t.csv", TWICE), target=("y",), features=("u",), duplicates=how)
    np.testing.assert_array_equal(table.x[:, 0], [1, y, 3, 4, 5])
    assert table.x[1, 1] == 8  # the mean of the cells that hold a number
    assert f"1 duplicate rows ({how})" in table.roles.description


def gappy(path):
    columns = {"time": hours(12), "y": np.arange(12.0), "u": np.arange(12.0) * 2}
    columns["u"][4] = nan
    keep = [i for i in range(12) if i not in (6, 7)]
    return write(path, {name: np.array(values)[keep] for name, values in columns.items()})


@pytest.mark.parametrize(
    ("gaps", "y", "u"),
    [("forward", [5, 5], 6.0), ("linear", [6, 7], 8.0), ("indicate", [5, 5], 6.0)],
)
def test_gaps_are_filled(tmp_path, gaps, y, u):
    table = read(gappy(tmp_path / "t.csv"), target=("y",), features=("u",), gaps=gaps)
    assert table.x[6:8, 0].tolist() == y
    assert table.x[4, 1] == u
    assert np.flatnonzero(table.missing[:, 0]).tolist() == [6, 7]
    assert np.flatnonzero(table.missing[:, 1]).tolist() == [4, 6, 7]
    if gaps == "indicate":
        assert table.schema.features[-1] == "gap"
        assert np.flatnonzero(table.x[:, -1]).tolist() == [4, 6, 7]
    assert f"2 steps without a row ({gaps})" in table.roles.description


def test_what_leads_a_series_is_the_mean_of_the_training_part(tmp_path):
    u = np.where(np.arange(20) < 2, nan, 1.0)
    u[15:] = 9.0
    path = write(tmp_path / "t.csv", {"time": hours(20), "y": waves(20), "u": u})
    options = TableOptions(target=("y",), features=("u",), gaps="forward")
    table = read_series(path, options, split=Shares(0.25))
    assert table.x[:3, 1].tolist() == [1.0, 1.0, 1.0]


def test_a_line_is_not_drawn_into_another_part(tmp_path):
    y = np.arange(20.0)
    y[9:11] = nan
    path = write(tmp_path / "t.csv", {"time": hours(20), "y": y})
    options = TableOptions(gaps="linear")
    table = read_series(path, options, split=Shares(0.25, 0.25))
    assert table.x[9:11, 0].tolist() == [8.0, 8.0]
    assert read_series(path, options).x[9:11, 0].tolist() == [9.0, 10.0]


def test_rows_after_the_last_target_hold_known_covariates(tmp_path):
    y = [*waves(30)[:-4], nan, nan, nan, nan]
    path = write(tmp_path / "t.csv", {"time": hours(30), "y": y, "price": np.arange(30.0)})
    table = read(path, target=("y",), known=("price",), calendar=("hour",))
    assert (table.lengths.tolist(), table.history.tolist()) == ([30], [26])
    ahead = look_ahead(table, 4)
    assert ahead.known[0, :, 0].tolist() == [26, 27, 28, 29]
    assert table.stamps(ahead.ticks[0])[0] == hours(30)[26]
    with pytest.raises(
        InputError, match=r"column 'price': no value for 2020-01-02T06:00:00, step 5"
    ):
        look_ahead(table, 5)


# ---- parts


def test_parts_are_shares_of_the_rows_or_steps(tmp_path):
    path = hourly(tmp_path / "t.csv", 100)
    table = read_series(path, split=Shares(0.1, 0.2))
    assert np.bincount(table.split.part_of(table.ticks)).tolist() == [70, 10, 20]
    table = read_series(path, split=Shares(0.1, 25))
    assert np.bincount(table.split.part_of(table.ticks)).tolist() == [65, 10, 25]
    table = read_series(path, split=Shares(0.1, 25, least=30))
    assert np.bincount(table.split.part_of(table.ticks)).tolist() == [45, 30, 25]
    table = read_series(path)
    assert (table.split.part_of(table.ticks) == 0).all()
    assert read_series(path, split=Split(-np.inf, -np.inf)).split.part_of(table.ticks).min() == 2


def test_values_of_the_future_change_nothing_before_it(tmp_path):
    columns = {"time": hours(100), "y": waves(100), "u": waves(100, 1)}
    columns["u"][[0, 40, 41]] = nan
    first = write(tmp_path / "a.csv", columns)
    columns = {name: np.where(np.arange(100) < 80, v, v) for name, v in columns.items()}
    columns["y"][80:], columns["u"][80:] = 1e6, -1e6
    second = write(tmp_path / "b.csv", columns)
    for gaps in ("forward", "linear", "indicate"):
        options = TableOptions(target=("y",), features=("u",), gaps=gaps)
        one, two = (read_series(p, options, split=Shares(0.1, 0.2)) for p in (first, second))
        np.testing.assert_array_equal(one.x[:80], two.x[:80])
        assert one.roles.options.means == two.roles.options.means
        assert one.split == two.split


# ---- bad input

BAD = {
    "mixed step": (
        {"time": [*hours(4).astype("M8[m]"), np.datetime64("2020-01-01T03:30")], "y": range(5)},
        {},
        "row 5, column 'time': found a time 30 minutes after the row before, expected whole step",
    ),
    "a gap": (
        {"time": hours(5)[[0, 1, 3, 4]], "y": range(4)},
        {},
        r"found a time 2 steps after the row before \(steps missing in all: 1\), expected",
    ),
    "a stamp far away": (
        {"time": [*hours(4), np.datetime64("2090-01-01T00")], "y": range(5)},
        {"gaps": "forward"},
        "row 5, column 'time': found a time 613629 steps after the row before",
    ),
    "duplicates": (
        TWICE,
        {"target": ("y",)},
        r"row 4, column 'time': found the time of another row of its series again \(1 such rows",
    ),
    "several series without ids": (
        {"time": [*hours(3), *hours(3)], "store": list("aaabbb"), "y": range(6)},
        {},
        "expected one row a time; name the column of the series with --id; if all rows are one s",
    ),
    "duplicates within a series": (
        {"time": [*hours(3), *hours(1)], "item_id": list("aaaa"), "y": range(4)},
        {},
        "join it to the one of --id; else choose --duplicates mean or last",
    ),
    "a date that nanoseconds do not reach": (
        {"time": ["1500-01-01", "1500-01-02"], "y": range(2)},
        {"time": "time"},
        "row 1, column 'time': found '1500-01-01', expected",
    ),
    "an empty cell": (
        {"time": hours(4), "y": [1.0, nan, 3.0, 4.0]},
        {},
        r"row 2, column 'y': found an empty cell, NaN or infinity \(1 in all\), expected a finite",
    ),
    "text in a number column": (
        {"time": hours(4), "y": ["1", "two", "3", "4"]},
        {"target": ("y",)},
        "row 2, column 'y': found 'two', expected a number",
    ),
    "a target without any number": (
        {"time": hours(4), "y": [nan] * 4, "u": range(4)},
        {"target": ("y",), "gaps": "forward"},
        "column 'y': found no number in any row",
    ),
    "a stamp that is none": (
        {"time": [*hours(3), "soon"], "y": range(4)},
        {"time": "time"},
        "row 4, column 'time': found 'soon', expected a number or an ISO 8601 date",
    ),
    "no time": (
        {"a": range(4), "y": range(4)},
        {"target": ("y",)},
        "no column called time, timest",
    ),
    "no target": (
        {"time": hours(4), "a": range(4), "b": range(4)},
        {},
        "no column called target, label, class, y, found time",
    ),
    "one row": (
        {"time": hours(1), "y": [1]},
        {},
        "no series has two rows, so no step can be infer",
    ),
    "an unknown column": (
        {"time": hours(4), "y": range(4)},
        {"known": ("prise",)},
        "no column 'prise' for --known; found time, y",
    ),
    "two roles": (
        {"time": hours(4), "y": range(4)},
        {"target": ("y",), "known": ("y",)},
        "column 'y' is asked for as --target and as --known",
    ),
    "missing": (
        {"time": hours(4), "y": range(4)},
        {"missing": "zero"},
        "series take --gaps in place of --missing",
    ),
    "text": (
        {"time": hours(4), "y": range(4), "note": ["a"] * 4},
        {"text": "note"},
        "--text note is for tasks classify and tag; leave it out",
    ),
    "a calendar without dates": (
        {"time": range(4), "y": range(4)},
        {"calendar": ("hour",)},
        "calendar hour needs dates, but column 'time' holds numbers",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(tmp_path, name):
    columns, options, message = BAD[name]
    path = write(tmp_path / "t.csv", columns)
    with pytest.raises(InputError, match=message) as raised:
        read(path, **options)
    assert "\n" not in str(raised.value)
    assert "t.csv" in str(raised.value)


@pytest.mark.parametrize("name", ["unique_id", "item_id", "series_id", "group", "Item ID"])
def test_series_are_told_apart_by_the_usual_names(tmp_path, name):
    columns = {name: list("aaabbb"), "time": [*hours(3), *hours(3)], "y": range(6)}
    table = read(write(tmp_path / "t.csv", columns))
    assert table.roles.options.id == name
    assert table.lengths.tolist() == [3, 3]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "D"])
@pytest.mark.parametrize("year", [1600, 2300])
def test_dates_that_would_become_others_are_refused(tmp_path, unit, year):
    days = np.datetime64(f"{year}-03-01", "D") + np.arange(3)
    times = pa.array(days.astype(f"M8[{unit}]"))
    table = pa.table({"time": times, "y": [1.0, 2.0, 3.0]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    message = f"row 1, column 'time': found .*{year}-03-01.*, expected a date from 1678 to 2261"
    with pytest.raises(InputError, match=message):
        read(str(tmp_path / "t.parquet"))


def test_a_changing_static_is_named(tmp_path):
    path = several(tmp_path / "t.csv", (5, 5), kind=["p"] * 4 + ["q"] * 6)
    message = "row 5, column 'kind': found 'q', expected 'p' as in .*; give a series one cat"
    with pytest.raises(InputError, match=message):
        read(path, static=("kind",))


def test_later_data_must_fit_the_model(tmp_path):
    table = read(several(tmp_path / "t.csv"), static=("kind",))
    odd = several(tmp_path / "odd.csv", kind=["other"] * 210)
    with pytest.raises(InputError, match="column 'kind': found 'other', expected one of the cat"):
        read_series(odd, schema=table.schema)
    bare = write(tmp_path / "bare.csv", {"id": ["a"], "time": ["2020"], "y": [1]})
    with pytest.raises(InputError, match="no column 'kind' for --static; found id, time, y"):
        read_series(bare, schema=table.schema)
    numbers = several(tmp_path / "n.csv", (9, 9), time=[*range(9), *range(9)])
    with pytest.raises(InputError, match="times are numbers, but the model was trained on dates"):
        read_series(numbers, schema=table.schema)
    half = several(tmp_path / "h.csv", (9, 9), time=np.tile(hours(9).astype("M8[m]"), 2))
    assert read_series(half, schema=table.schema).lengths.tolist() == [9, 9]
    quarter = np.tile(hours(1)[0] + 15 * np.arange(9).astype("m8[m]"), 2)
    with pytest.raises(InputError, match="15 minutes after the row before, expected whole steps"):
        read_series(several(tmp_path / "q.csv", (9, 9), time=quarter), schema=table.schema)


@pytest.mark.parametrize("rate", [10, 100, 1000])
def test_seconds_since_1970_with_fractions(tmp_path, rate):
    y = waves(300)
    path = write(tmp_path / "t.csv", {"time": 1.7e9 + np.arange(300) / rate, "y": y})
    table = read(path, time="time", target=("y",))
    assert len(table.x) == 300
    np.testing.assert_allclose(table.x[:, 0], y, rtol=1e-6)
    assert table.info.step == pytest.approx(1 / rate, rel=1e-5)
