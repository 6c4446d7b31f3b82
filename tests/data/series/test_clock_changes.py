"""Local stamps as clocks go forward and back: what is read is what pandas made them from."""

import numpy as np
import pandas as pd
import pytest
from series_cases import next_stamps, time_table

from lstm_compile.data.series.reader import read_series
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.errors import InputError

BERLIN, COUNT, AHEAD = "Europe/Berlin", 40, 4
CHANGES = [
    (BERLIN, "2022-10-30"),
    (BERLIN, "2022-03-27"),
    ("America/New_York", "2022-11-06"),
    ("America/New_York", "2023-03-12"),
    ("Australia/Sydney", "2023-04-02"),
    ("Australia/Sydney", "2022-10-02"),
    ("America/Santiago", "2022-04-03"),  # back at midnight: Saturday at 23:00 comes twice
    ("America/Santiago", "2022-09-11"),
]


def moments(zone, day, step, count=COUNT):
    """Steps with the change of clocks among them, as pandas counts them."""
    start = pd.Timestamp(day, tz="UTC") - 20 * pd.Timedelta(step)
    return pd.date_range(start.tz_convert(zone).floor("D"), periods=count, freq=step)


def local(stamps):
    return [str(each) for each in stamps.tz_localize(None)]


@pytest.mark.parametrize("order", ["up", "down"])
@pytest.mark.parametrize(("zone", "day"), CHANGES)
@pytest.mark.parametrize("step", ["5min", "15min", "30min", "1h", "2h"])
def test_local_rows_are_moments(tmp_path, zone, day, step, order):
    count = COUNT if step.endswith("h") else 400
    stamps = moments(zone, day, step, count + AHEAD)
    rows = local(stamps[:count])[:: 1 if order == "up" else -1]
    table = time_table(tmp_path / "t.csv", rows, time_zone=zone)
    assert len(table.x) == count
    assert next_stamps(table, AHEAD) == [str(each) for each in stamps[count:]]


def test_rows_of_several_series_side_by_side(tmp_path):
    rows = local(moments(BERLIN, "2022-10-30", "15min", 80))
    table = time_table(tmp_path / "a.csv", np.repeat(rows, 2), "ab" * 80, time_zone=BERLIN)
    assert table.lengths.tolist() == [80, 80]
    turned = np.stack([rows, rows[::-1]], 1).ravel()  # one of them from the last to the first
    table = time_table(tmp_path / "b.csv", turned, "ab" * 80, time_zone=BERLIN)
    assert table.lengths.tolist() == [80, 80]


@pytest.mark.parametrize(("first", "last"), [(28, 60), (24, 60), (0, 27), (0, 30)])
def test_a_table_may_begin_and_end_in_the_hour(tmp_path, first, last):
    stamps = pd.date_range("2022-10-29 20:00", periods=80, freq="15min", tz=BERLIN)
    assert str(stamps[28]) == "2022-10-30 02:00:00+01:00"
    table = time_table(tmp_path / "t.csv", local(stamps[first:last]), time_zone=BERLIN)
    assert next_stamps(table, AHEAD) == [str(each) for each in stamps[last : last + AHEAD]]


def test_days_in_the_hour_are_days(tmp_path):
    days = pd.date_range("2022-10-20 02:30", periods=40)
    rows = np.random.default_rng(0).permutation(days.astype(str))
    table = time_table(tmp_path / "t.csv", rows, time_zone=BERLIN)
    assert next_stamps(table, 1) == ["2022-11-29 02:30:00+01:00"]


@pytest.mark.parametrize("order", ["sorted", "mixed", "twice"])
def test_rows_that_do_not_tell_are_refused(tmp_path, order):
    rows = local(pd.date_range("2022-10-29 20:00", periods=80, freq="15min", tz=BERLIN))
    mixed = list(np.random.default_rng(0).permutation(rows))
    rows = {"sorted": sorted(rows), "mixed": mixed, "twice": list(np.repeat(rows, 2))}[order]
    message = (
        r"column 'when': found 2022-10-30T02:..:00, expected rows in the order of their moments, "
        r"as clocks in Europe/Berlin show this hour twice; .* offset, \+02:00 or \+01:00"
    )
    with pytest.raises(InputError, match=message):
        time_table(tmp_path / "t.csv", rows, time_zone=BERLIN, duplicates="last")


def test_a_time_that_clocks_skip_names_zones_without_changes(tmp_path):
    rows = list(pd.date_range("2022-03-26 20:00", periods=40, freq="h").astype(str))
    message = r"row 7, .* skip this one .*; if these clocks never change, say --time-zone UTC or "
    with pytest.raises(InputError, match=message + r"\+01:00"):
        time_table(tmp_path / "t.csv", rows, time_zone=BERLIN)
    for zone, end in (("UTC", "+00:00"), ("+01:00", "+01:00")):
        table = time_table(tmp_path / "t.csv", rows, time_zone=zone)
        assert next_stamps(table, 1) == [f"2022-03-28 12:00:00{end}"]


# ---- no zone is named


@pytest.mark.parametrize("step", ["15min", "1h", "2h", "6h"])
@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_a_change_of_clocks_names_the_zone_first(tmp_path, zone, day, step):
    rows = local(moments(zone, day, step, 200))
    with pytest.raises(InputError) as raised:
        time_table(tmp_path / "t.csv", rows)
    _, _, mend = str(raised.value).partition("; ")
    assert mend.startswith("if clocks change before 20")
    assert "name their zone with --time-zone; else" in mend
    assert len(time_table(tmp_path / "t.csv", rows, time_zone=zone).x) == 200  # the advice


def test_the_year_of_a_zone(tmp_path):
    rows = local(pd.date_range("2022-01-01", "2022-12-31 23:00", freq="h", tz=BERLIN))
    with pytest.raises(InputError, match="if clocks change before 2022-03-27T03:00:00, name"):
        time_table(tmp_path / "t.csv", rows)
    with pytest.raises(InputError, match="if clocks change before 2022-03-27T03:00:00, name"):
        time_table(tmp_path / "t.csv", rows, gaps="forward")
    table = time_table(tmp_path / "t.csv", rows, gaps="forward", duplicates="last")
    assert "an hour is lost or repeated before 2022-03-27T03:00:00" in table.roles.description
    assert next_stamps(time_table(tmp_path / "t.csv", rows, time_zone=BERLIN), 1) == [
        "2023-01-01 00:00:00+01:00"
    ]


def test_a_model_without_a_zone_is_trained_again(tmp_path):
    winter = time_table(tmp_path / "a.csv", pd.date_range("2022-01-01", periods=60, freq="h"))
    rows = local(moments(BERLIN, "2022-03-27", "1h"))
    time_table(tmp_path / "b.csv", rows, time_zone=BERLIN)
    with pytest.raises(InputError, match=r"before 2022-03-27T03:00:00, train with --time-zone; el"):
        read_series(str(tmp_path / "b.csv"), TableOptions(time="when"), schema=winter.schema)


@pytest.mark.parametrize("missing", [[6, 7], [16]])  # two hours of a night, one of the day
def test_other_gaps_do_not_name_a_zone(tmp_path, missing):
    rows = pd.date_range("2022-06-11 20:00", periods=40, freq="h").delete(missing)
    with pytest.raises(InputError, match="; fill gaps with --gaps"):
        time_table(tmp_path / "t.csv", rows)


def test_other_equal_rows_name_ids_first(tmp_path):
    rows = local(moments(BERLIN, "2022-10-30", "1h"))
    for twice in (rows + rows, np.repeat(rows, 2)):
        with pytest.raises(InputError, match="one row a time; name the column of the series with"):
            time_table(tmp_path / "t.csv", twice)
