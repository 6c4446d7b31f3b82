"""Time columns as people have them: zones, calendars, whole numbers, unsteady clocks."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from series_cases import hours, read, waves, write

from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.series_table import look_ahead
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.errors import InputError

COUNT, AHEAD = 60, 4


def table_of(tmp_path, stamps, name="t.csv", **options):
    """A table whose time column `when` has these cells, text or typed."""
    frame = pd.DataFrame({"when": stamps})
    frame["y"] = waves(len(frame))
    path = tmp_path / name
    if name.endswith(".csv"):
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return read(str(path), time="when", **options)


def ahead_of(table, as_text=True):
    ticks = look_ahead(table, AHEAD).ticks.ravel()
    return table.format.cells(table.clock.stamps(ticks, table.stamp), as_text)


def split(stamps):
    return stamps[:-AHEAD], [str(each) for each in stamps[-AHEAD:]]


def dates(frequency, start="2020-01-01", count=COUNT, **more):
    return pd.date_range(start, periods=count, freq=frequency, **more)


# ---- what is written is what follows, as the table writes it

TEXTS = {
    "business days": dates("B").strftime("%Y-%m-%d"),
    "months": dates("MS").strftime("%Y-%m"),
    "business month ends": dates("BME").strftime("%Y-%m-%d"),
    "quarters": [f"{2008 + i // 4}Q{i % 4 + 1}" for i in range(COUNT)],
    "quarters with a dash": [f"{2008 + i // 4}-Q{i % 4 + 1}" for i in range(COUNT)],
    "quarters first": [f"Q{i % 4 + 1} {2008 + i // 4}" for i in range(COUNT)],
    "numbered months": dates("MS").strftime("%YM%m"),
    "weeks": dates("W-MON", "2018-06-04", 160).strftime("%G-W%V"),
    "YYYYMM": dates("MS").strftime("%Y%m"),
    "YYYYMMDD": dates("D").strftime("%Y%m%d"),
    "YYYYWW": dates("W-MON", "2018-06-04", 160).strftime("%G%V"),
    "YYYYMMDDHH": dates("h").strftime("%Y%m%d%H"),
    "years": [str(1950 + i) for i in range(COUNT)],
    "minutes": dates("15min").strftime("%Y-%m-%d %H:%M"),
    "tenths": [f"2020-01-01T00:00:{i // 10:02}.{i % 10}" for i in range(COUNT)],
    "UTC": dates("h").strftime("%Y-%m-%dT%H:%M:%SZ"),
    "one offset": [f"{each:%Y-%m-%d %H:%M:%S}-03:00" for each in dates("h")],
    "a short offset": [f"{each:%Y-%m-%dT%H:%M}+0530" for each in dates("h")],
}


@pytest.mark.parametrize("name", TEXTS)
def test_stamps_come_back_as_they_are_written(tmp_path, name):
    rows, expected = split(list(TEXTS[name]))
    table = table_of(tmp_path, rows)
    assert list(map(str, ahead_of(table).to_pylist())) == expected
    again = read_series(str(tmp_path / "t.csv"), TableOptions(time="when"), schema=table.schema)
    assert list(map(str, ahead_of(again).to_pylist())) == expected


TYPED = {
    "date32": pa.array(dates("B")).cast(pa.timestamp("s")).cast(pa.date32()),
    "milliseconds": pa.array(dates("h")).cast(pa.timestamp("ms")),
    "nanoseconds": pa.array(dates("h")).cast(pa.timestamp("ns")),
    "a zone": pa.array(dates("h", "2022-10-29", tz="Europe/Berlin")).cast(
        pa.timestamp("ms", "Europe/Berlin")
    ),
    "days of a zone": pa.array(dates("D", "2022-09-02", tz="Europe/Berlin")).cast(
        pa.timestamp("us", "Europe/Berlin")
    ),
    "months of a zone": pa.array(dates("MS", "2015-01-01", tz="America/New_York")).cast(
        pa.timestamp("us", "America/New_York")
    ),
    "YYYYMM": pa.array(dates("MS").strftime("%Y%m").astype(int), pa.int32()),
    "whole floats": pa.array(dates("MS").strftime("%Y%m").astype(float)),
    "text": pa.array(dates("MS").strftime("%Y-%m").to_list()),
    "numbers": pa.array(np.arange(COUNT) * 5),
    "times of day": pa.array(np.arange(COUNT) * 1000, pa.int32()).cast(pa.time32("ms")),
    "durations": pa.array(np.arange(COUNT) + 2000).cast(pa.duration("s")),
}


@pytest.mark.parametrize("name", TYPED)
def test_stamps_keep_their_type(tmp_path, name):
    column = TYPED[name]
    rows = pa.table({"when": column[:-AHEAD], "y": waves(COUNT - AHEAD)})
    pyarrow.parquet.write_table(rows, tmp_path / "t.parquet")
    table = read(str(tmp_path / "t.parquet"), time="when", target=("y",))
    found = ahead_of(table, as_text=False)
    assert found.type == column.type
    assert found.to_pylist() == column[-AHEAD:].to_pylist()


# ---- zones

LOCAL = dates("h", "2022-10-29", tz="Europe/Berlin")  # clocks go back on the second day


@pytest.mark.parametrize("form", ["offsets", "local", "UTC"])
def test_a_zone_that_is_named(tmp_path, form):
    stamps = {
        "offsets": LOCAL.map(str),
        "local": LOCAL.tz_localize(None),  # 02:00 stands there twice
        "UTC": LOCAL.tz_convert("UTC").map(str),
    }[form]
    rows, _ = split(list(stamps))
    table = table_of(tmp_path, rows, time_zone="Europe/Berlin")
    assert (table.info.zone, table.info.kind, len(table.x)) == ("Europe/Berlin", "fixed", 56)
    assert ahead_of(table).to_pylist() == [str(each) for each in LOCAL[-AHEAD:]]
    angle = 2 * np.pi * LOCAL.hour[:-AHEAD] / 24  # of the clocks there, not of UTC
    np.testing.assert_allclose(
        table.x[:, table.schema.features.index("hour_sin")], np.sin(angle), atol=1e-6
    )


def test_several_offsets_without_a_zone_are_utc(tmp_path):
    rows, _ = split([str(each) for each in LOCAL])
    table = table_of(tmp_path, rows)
    assert table.info.zone == "UTC"
    expected = [str(each) for each in LOCAL[-AHEAD:].tz_convert("UTC")]
    assert ahead_of(table).to_pylist() == expected
    assert "UTC, as the stamps have several offsets (+01:00, +02:00)" in table.roles.description
    midnights = [str(each) for each in dates("D", "2022-10-01", tz="Europe/Berlin")]
    with pytest.raises(
        InputError, match=r"25 hours after .*; name the zone that has equal days with --t"
    ):
        table_of(tmp_path, midnights)
    assert table_of(tmp_path, midnights, time_zone="Europe/Berlin").info.kind == "wall"


def test_stamps_must_fit_the_zone_of_a_model(tmp_path):
    plain = table_of(tmp_path, hours(20), "plain.csv")
    zoned = table_of(tmp_path, LOCAL.map(str), "zoned.csv", time_zone="Europe/Berlin")
    options = TableOptions(time="when")
    with pytest.raises(InputError, match="the stamps have a time zone, but the model was trained"):
        read_series(str(tmp_path / "zoned.csv"), options, schema=plain.schema)
    with pytest.raises(InputError, match="have no time zone, but the model was trained on stamps"):
        read_series(str(tmp_path / "plain.csv"), options, schema=zoned.schema)
    named = TableOptions(time="when", time_zone="America/New_York")
    table = read_series(str(tmp_path / "plain.csv"), named, schema=zoned.schema)
    assert str(table.clock.stamps(table.ticks)[0]) == "2020-01-01T05:00:00"
    with pytest.raises(InputError, match="time zone 'Mars/Base' is not known here"):
        table_of(tmp_path, hours(20), time_zone="Mars/Base")
    with pytest.raises(InputError, match="--time-zone is for dates, but the times are numbers"):
        table_of(tmp_path, np.arange(20), time_zone="UTC")


def test_a_time_that_clocks_skip_is_named(tmp_path):
    stamps = pd.date_range("2022-03-27", periods=20, freq="h")
    with pytest.raises(InputError, match=r"row 3, column 'when': found 2022-03-27T02:00.*skip"):
        table_of(tmp_path, stamps, time_zone="Europe/Berlin")


def test_mixed_stamps_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"row 3, column 'when': found '2020-01-01 02:00:00\+01"):
        table_of(tmp_path, [*map(str, hours(2)), "2020-01-01 02:00:00+01:00"])
    with pytest.raises(InputError, match="row 3, column 'when': found '2020-07-01', expected a qu"):
        table_of(tmp_path, ["2020Q1", "2020Q2", "2020-07-01"])


# ---- days of weeks and months


def test_a_row_on_no_business_day_is_named(tmp_path):
    table = table_of(tmp_path, dates("B"), "a.csv")
    assert "step: 1 day of Monday to Friday" in table.roles.description
    later = list(dates("B", "2021-01-01", 20).strftime("%Y-%m-%d"))
    write(tmp_path / "b.csv", {"when": [*later, "2021-01-30"], "y": range(21)})
    message = "row 21, column 'when': found 2021-01-30T00:00:00, a Saturday, expected a day of Mon"
    with pytest.raises(InputError, match=message):
        read_series(str(tmp_path / "b.csv"), TableOptions(time="when"), schema=table.schema)


def test_a_step_that_is_asked_for(tmp_path):
    stamps = [*dates("B", "2020-01-02", 4).strftime("%Y-%m-%d")]  # too few to tell
    with pytest.raises(InputError, match="if rows are business days, say --step B; else fill gaps"):
        table_of(tmp_path, stamps)
    table = table_of(tmp_path, stamps, step="B")
    assert ahead_of(table).to_pylist() == ["2020-01-08", "2020-01-09", "2020-01-10", "2020-01-13"]
    holidays = dates("B").delete([20, 31])
    with pytest.raises(InputError, match="found a time 2 steps after the row before"):
        table_of(tmp_path, holidays)
    assert table_of(tmp_path, holidays, gaps="forward").missing.sum() == 2


def test_a_wrong_month_is_named_and_invents_no_rows(tmp_path):
    months = [*dates("MS", "2018-01-01", 24).strftime("%Y%m")]
    months[12] = "201813"
    message = "row 13, column 'when': found 201813, expected a date YYYYMM, as in other rows"
    for gaps in (None, "forward"):
        with pytest.raises(InputError, match=message):
            table_of(tmp_path, months, gaps=gaps)


def test_a_wrong_month_for_a_model_is_named(tmp_path):
    table = table_of(tmp_path, dates("MS").strftime("%Y%m"), "a.csv")
    path = write(tmp_path / "b.csv", {"when": [202412, 202413, 202414], "y": range(3)})
    with pytest.raises(
        InputError, match="row 2, column 'when': found 202413, expected a date YYYY"
    ):
        read_series(path, TableOptions(time="when"), schema=table.schema)


def test_a_wrong_year_is_named_but_a_count_is_none(tmp_path):
    years = [*range(1960, 2019), 20190]
    with pytest.raises(
        InputError, match=r"row 60, .*: found 20190, expected a date YYYY, as in ot"
    ):
        table_of(tmp_path, years)
    assert table_of(tmp_path, np.arange(1700, 2300)).info.kind == "number"
    assert table_of(tmp_path, np.arange(1700, 1900), step="1").info.kind == "number"


def test_short_weeks_are_asked_for(tmp_path):
    weeks = [201901 + i for i in range(12)]
    assert table_of(tmp_path, weeks).info.kind == "months"
    table = table_of(tmp_path, weeks, step="W")
    assert (table.clock.name, table.info.form) == ("7 days", "YYYYWW")
    assert ahead_of(table).to_pylist() == [201913, 201914, 201915, 201916]


@pytest.mark.parametrize("first", [1, 10_000, 300_000, 20_990_101, 1_577_836_800])
def test_other_whole_numbers_stay_numbers(tmp_path, first):
    table = table_of(tmp_path, first + 7 * np.arange(60))
    assert (table.info.kind, table.info.zone) == ("number", None)
    assert ahead_of(table).to_pylist() == (first + 7 * np.arange(60, 64)).tolist()


def test_a_forecast_beyond_the_last_date_is_refused(tmp_path):
    table = table_of(tmp_path, np.datetime64("2261-12-31") - np.arange(40)[::-1])
    with pytest.raises(InputError, match="would reach beyond the year 2261"):
        look_ahead(table, 200)
    years = table_of(tmp_path, [f"{year}-01-01" for year in range(2202, 2262)])
    ticks = years.ticks[-1] + 12 * np.arange(1, 6)
    assert str(years.stamps(ticks)[-1]) == "2266-01-01T00:00:00"


# ---- unsteady clocks


def test_stamps_beside_their_step_are_moved_with_a_note(tmp_path):
    noise = np.random.default_rng(1).integers(-80_000, 80_000, 200)
    start = np.datetime64("2020-01-01", "ns")
    exact = start + np.arange(204) * np.timedelta64(10_000_000, "ns")
    table = table_of(tmp_path, exact[:200] + noise.astype("m8[ns]"))
    np.testing.assert_array_equal(table.stamps(table.ticks), exact[:200])
    np.testing.assert_array_equal(table.stamps(look_ahead(table, 4).ticks.ravel()), exact[200:])
    assert "step: 10 milliseconds" in table.roles.description
    assert "stamps beside their step (moved by less than 0.01 steps)" in table.roles.description
    with pytest.raises(InputError, match="expected whole steps"):
        table_of(tmp_path, exact[:200] + noise.astype("m8[ns]"), jitter=0)
    again = read_series(str(tmp_path / "t.csv"), TableOptions(time="when"), schema=table.schema)
    np.testing.assert_array_equal(again.ticks, table.ticks)


def test_jitter_of_numbers_of_gaps_and_of_a_clock_that_drifts(tmp_path):
    noise = np.random.default_rng(2).uniform(-0.0005, 0.0005, 300)
    table = table_of(tmp_path, np.arange(300) * 0.1 + noise)
    np.testing.assert_allclose(table.ticks, np.arange(300) * 0.1, atol=1e-9)
    kept = np.delete(np.arange(300), [7, 8, 150])
    holes = table_of(tmp_path, (np.arange(300) * 0.1 + noise)[kept], gaps="forward")
    assert (len(holes.x), holes.missing.sum()) == (300, 3)
    fast = np.arange(300) * 0.1003 + noise
    write(tmp_path / "fast.csv", {"when": fast, "y": range(300)})
    later = read_series(str(tmp_path / "fast.csv"), TableOptions(time="when"), schema=table.schema)
    assert later.ticks[-1] == pytest.approx(fast[-1], abs=0.001)  # goes on from its own last row
    assert np.diff(later.ticks) == pytest.approx(0.1)


def test_jitter_of_weeks_goes_to_midnight(tmp_path):
    noise = np.random.default_rng(0).integers(-3000, 3000, COUNT).astype("m8[s]")
    table = table_of(tmp_path, dates("W").to_numpy() + noise)
    np.testing.assert_array_equal(table.stamps(table.ticks), dates("W").to_numpy())


def test_a_row_far_from_its_step_is_still_refused(tmp_path):
    stamps = hours(50).astype("M8[s]")
    stamps[30] += np.timedelta64(300, "s")
    with pytest.raises(InputError, match="row 31, column 'when': found a time 65 minutes after"):
        table_of(tmp_path, stamps)
    assert len(table_of(tmp_path, stamps, jitter=0.1).x) == 50
    with pytest.raises(InputError, match=r"jitter must be a share from 0 to below 0\.25; got 0\.7"):
        TableOptions(jitter=0.7)


# ---- series one after the other


def glued(first, second):
    return np.concatenate((first, second))


@pytest.mark.parametrize(
    "second",
    [
        hours(50).astype("M8[m]") + np.timedelta64(30, "m"),  # would make a step of 30 minutes
        hours(50, "2019-06-01T00"),  # would be filled with --gaps
    ],
)
@pytest.mark.parametrize("gaps", [None, "forward"])
def test_glued_series_are_noticed(tmp_path, second, gaps):
    stamps = glued(hours(50).astype("M8[m]"), second.astype("M8[m]"))
    message = r"row 51, column 'when': found a time before .* \(the stamps start over 1 time\), ex"
    with pytest.raises(InputError, match=message) as raised:
        table_of(tmp_path, stamps, gaps=gaps)
    assert "name the column of the series with --id" in str(raised.value)


def test_parts_of_one_series_in_another_order_are_told(tmp_path):
    stamps = glued(hours(50, "2020-01-03T02"), hours(50))
    table = table_of(tmp_path, stamps)
    assert len(table.x) == 100
    assert "the stamps start over 1 time, and the rows were sorted" in table.roles.description
    late = glued(np.delete(hours(60), [20, 30, 31]), hours(60)[[20, 30, 31]])
    assert len(table_of(tmp_path, late).x) == 60


def test_equal_rows_from_the_last_to_the_first(tmp_path):
    stamps = np.repeat(hours(8)[::-1], 9)
    table = table_of(tmp_path, stamps, duplicates="mean")
    assert len(table.x) == 8


# ---- forecasts are written as the file given to a model writes its stamps


def for_model(tmp_path, stamps, schema, zone=None, name="b.csv"):
    frame = pd.DataFrame({"when": stamps, "y": range(len(stamps))})
    path = tmp_path / name
    frame.to_csv(path, index=False) if name.endswith("csv") else frame.to_parquet(path)
    options = TableOptions(time="when", time_zone=zone)
    return read_series(str(path), options, schema=schema)


@pytest.mark.parametrize("asked", [None, "Europe/Berlin"])  # it is kept with the model
@pytest.mark.parametrize("end", ["-04:00", "-0400", "Z", "+00:00", "+05:30", "+02:00"])
def test_the_offset_of_a_file_comes_back(tmp_path, asked, end):
    summer = dates("h", "2023-04-01", tz="Europe/Berlin")
    rows = summer if asked else summer.tz_convert("UTC")
    trained = table_of(tmp_path, rows.map(str), time_zone=asked)
    shift = pd.Timestamp(f"2023-04-01T00:00{end}").tz
    texts = [each.strftime("%Y-%m-%d %H:%M:%S") + end for each in summer.tz_convert(shift)]
    again = for_model(tmp_path, texts[:-AHEAD], trained.schema, asked)
    assert ahead_of(again).to_pylist() == texts[-AHEAD:]
    np.testing.assert_array_equal(again.x[:, 1:], trained.x[:-AHEAD, 1:])  # the calendar


def test_the_zone_of_a_typed_file_comes_back(tmp_path):
    summer = dates("h", "2023-04-01", tz="Europe/Berlin")
    schema = table_of(tmp_path, summer.map(str), time_zone="Europe/Berlin").schema
    for zone in ("UTC", "America/New_York", "Europe/Paris"):
        stamps = summer.tz_convert(zone)
        again = for_model(tmp_path, stamps[:-AHEAD], schema, "Europe/Berlin", "b.parquet")
        found = ahead_of(again, as_text=False)
        assert (found.type.tz, found.to_pylist()) == (zone, list(stamps[-AHEAD:]))


def test_offsets_of_the_zone_and_a_zone_that_is_named_stay(tmp_path):
    autumn = dates("h", "2023-10-27 14:00", tz="Europe/Berlin")  # clocks go back in the forecast
    schema = table_of(tmp_path, LOCAL.map(str), time_zone="Europe/Berlin").schema
    again = for_model(tmp_path, autumn[:-AHEAD].map(str), schema, "Europe/Berlin")
    assert ahead_of(again).to_pylist() == list(autumn[-AHEAD:].map(str))
    york = dates("h", "2023-11-04", tz="America/New_York").map(str)  # of two offsets, the last
    again = for_model(tmp_path, york[:-AHEAD], schema, "Europe/Berlin")
    assert ahead_of(again).to_pylist() == list(york[-AHEAD:])
    away = autumn.tz_convert("Asia/Tokyo").map(str)
    named = for_model(tmp_path, autumn[:-AHEAD].map(str), schema, "Asia/Tokyo")
    assert ahead_of(named).to_pylist() == list(away[-AHEAD:])


@pytest.mark.parametrize(("winter", "summer"), [("+01:00", "+02:00"), ("+00:00", "+01:00")])
def test_another_offset_than_in_training_is_told(tmp_path, winter, summer):
    schema = table_of(tmp_path, [f"{each}{winter}" for each in dates("h")]).schema
    rows = [f"{each}{summer}" for each in dates("h", "2020-07-01")]
    told = r"these stamps have \+0.:00, and hours .* \(if clocks change, train with --time-zone\)"
    assert re.search(told, for_model(tmp_path, rows, schema).roles.description)
    same = for_model(tmp_path, [f"{each}{winter}" for each in dates("h")], schema)
    assert "--time-zone" not in same.roles.description
