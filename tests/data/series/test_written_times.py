"""Times as people write them: rounded numbers, dates as numbers, other formats, mixed steps."""

import re

import numpy as np
import pandas as pd
import pytest
from series_cases import hours, next_stamps, time_table, waves

from lstm_compile.data.series.reader import read_series
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.errors import InputError

AHEAD = 14


def numbers(frequency, form, start="2017-03-01", count=60):
    return [
        int(each.strftime(form)) for each in pd.date_range(start, periods=count, freq=frequency)
    ]


# ---- numbers with fractions come back with their decimals

STEPS = {
    "months": (1950, 1 / 12, (2, 3, 4, 6, 8, 10)),
    "the middle of months": (1958 + 1 / 24, 1 / 12, (3, 4, 6)),
    "months from a day on": (1958.20274, 1 / 12, (2, 4)),
    "weeks": (2000, 1 / 52, (3, 4)),
    "hours of a day": (43831, 1 / 24, (3, 6)),
    "quarters of an hour": (43831, 1 / 96, (4, 6)),
    "thirds": (0, 1 / 3, (2, 3, 4)),
    "pictures": (0, 1 / 30, (3, 4)),
    "weeks of seven days": (2000, 7 / 365.25, (3, 5, 6)),
    "29.97 pictures a second": (0, 1 / 29.97, (4, 5)),
    "tenths": (0, 0.1, (1, 2)),
    "tenths of seconds since 1970": (1577836800, 0.1, (1,)),
    "hundredths of seconds since 1970": (1577836800, 0.01, (2,)),
}
CASES = [(name, decimals) for name, each in STEPS.items() for decimals in each[2]]


@pytest.mark.parametrize(("name", "decimals"), CASES)
def test_numbers_come_back_with_their_decimals(tmp_path, name, decimals):
    start, step, _ = STEPS[name]
    times = [round(start + i * step, decimals) for i in range(240 + AHEAD)]
    table = time_table(tmp_path / "t.csv", times[:-AHEAD])
    assert next_stamps(table, AHEAD) == times[-AHEAD:]
    again = time_table(tmp_path / "again.csv", times[30:-AHEAD])
    again = read_series(str(tmp_path / "again.csv"), TableOptions(time="when"), schema=table.schema)
    assert next_stamps(again, AHEAD) == times[-AHEAD:]


def test_missing_months_of_years_with_decimals(tmp_path):
    times = np.round(1950 + np.arange(120) / 12, 3)
    table = time_table(tmp_path / "t.csv", np.delete(times, [7, 8, 30]), gaps="linear")
    assert (len(table.x), table.missing.sum()) == (120, 3)
    assert next_stamps(table, 2) == [1960.0, 1960.083]


def test_single_precision_comes_back(tmp_path):
    times = np.round(1950 + np.arange(120) / 12, 3).astype(np.float32)
    path = tmp_path / "t.parquet"
    pd.DataFrame({"when": times[:-AHEAD], "y": waves(120 - AHEAD)}).to_parquet(path)
    table = read_series(str(path), TableOptions(time="when", target=("y",)))
    np.testing.assert_array_equal(next_stamps(table, AHEAD), times[-AHEAD:])


def test_whole_numbers_of_a_model_with_fractions(tmp_path):
    halves = time_table(tmp_path / "a.csv", np.arange(40) / 2)
    time_table(tmp_path / "b.csv", [3, 4, 5], gaps="forward")
    options = TableOptions(time="when", gaps="forward")
    whole = read_series(str(tmp_path / "b.csv"), options, schema=halves.schema)
    assert (len(whole.x), next_stamps(whole, 3)) == (5, [5.5, 6.0, 6.5])


# ---- whole numbers that are dates

CODES = {
    "YYYYQ": [(2000 + i // 4) * 10 + i % 4 + 1 for i in range(60)],
    "half years as YYYYQ": [(2000 + i // 2) * 10 + i % 2 * 2 + 1 for i in range(60)],
    "YYYYDDD": numbers("D", "%Y%j", "2000-12-01"),
    "YYYYDDD of one year": numbers("D", "%Y%j", "2023-01-01", 365 + AHEAD),
    "weeks as YYYYDDD": numbers("7D", "%Y%j", "2000-01-01", 80),
    "business days as YYYYDDD": numbers("B", "%Y%j", "2000-11-01", 80),
}


@pytest.mark.parametrize("name", CODES)
def test_quarters_and_days_of_the_year(tmp_path, name):
    rows = CODES[name]
    table = time_table(tmp_path / "t.csv", rows[:-AHEAD])
    assert table.info.form == name.split()[-1 if name.endswith(("Q", "D")) else 0]
    assert list(map(int, next_stamps(table, AHEAD))) == rows[-AHEAD:]


@pytest.mark.parametrize(
    "rows",
    [
        range(2_000_001, 2_000_401),
        range(20_001, 20_101),
        range(20_001, 20_401, 10),
        range(20_001, 20_005),
        range(1001, 1400),
        [*range(90, 99), 99, 100, 101],
    ],
)
def test_counts_are_no_dates(tmp_path, rows):
    table = time_table(tmp_path / "t.csv", rows)
    assert table.info.kind == "number"
    assert next_stamps(table, 1) == [2 * rows[-1] - rows[-2]]


@pytest.mark.parametrize(
    "rows",
    [
        [x for x in range(1, 200) if x not in (40, 41)],
        [*range(1, 10), *range(11, 21)],
        [*range(5), *range(7, 12)],
        [*range(90, 100), *range(101, 131)],
        [20_001 + 10 * i for i in range(40) if i not in (5, 6)],
    ],
)
def test_gaps_in_counts_may_be_filled(tmp_path, rows):
    with pytest.raises(InputError, match="; fill gaps with --gaps"):
        time_table(tmp_path / "t.csv", rows)


UNREAD = {
    "YYMM": numbers("MS", "%y%m", "2010-01-01"),
    "YYMM like years": numbers("MS", "%y%m"),
    "YYMM of two centuries": numbers("MS", "%y%m", "1996-01-01"),
    "YYWW like years": numbers("W", "%y%V", "2017-01-01", 150),
    "YYMMDD": numbers("D", "%y%m%d", "2010-01-01"),
    "YYMMDD like weeks": numbers("D", "%y%m%d", "2019-01-01"),
    "business days": numbers("B", "%y%m%d", "2019-01-01", 200),
    "months as YYMMDD": numbers("MS", "%y%m%d", "2019-01-01"),
    "quarters as YYMMDD": numbers("QS", "%y%m%d", "2019-01-01"),
    "MMYYYY": numbers("MS", "%m%Y"),
    "DDMMYYYY": numbers("D", "%d%m%Y"),
    "MMDDYYYY": numbers("D", "%m%d%Y", count=800),
    "YYQ": [(10 + i // 4) * 10 + i % 4 + 1 for i in range(40)],
    "YYDDD": numbers("D", "%y%j", "2020-12-01"),
    "YYYYH": [(2000 + i // 2) * 10 + i % 2 + 1 for i in range(40)],
    "HHMM": [100 * hour + minute for hour in range(10) for minute in (0, 15, 30, 45)],
    "YYMMDDHHMM": numbers("15min", "%y%m%d%H%M", "2020-12-01"),
    "days since 1900": [43832 + 7 * (i // 5) + i % 5 for i in range(1, 60)],
    "seconds since 1970": [86400 * (18263 + 7 * (i // 5) + i % 5) for i in range(1, 60)],
    "YYYY.MM": [float(f"{1871 + i // 12}.{i % 12 + 1:02}") for i in range(150)],
    "YYYY.Q": [1950 + i // 4 + (i % 4 + 1) / 10 for i in range(40)],
}


@pytest.mark.parametrize("gaps", [None, "forward"])
@pytest.mark.parametrize("name", UNREAD)
def test_other_dates_as_numbers_are_refused(tmp_path, name, gaps):
    with pytest.raises(InputError, match="look like dates") as raised:
        time_table(tmp_path / "t.csv", UNREAD[name], gaps=gaps)
    assert "write dates as ISO 8601, like 2000-01-31; if they are numbers, say --step" in str(
        raised.value
    )
    assert "--gaps" not in str(raised.value)


def test_a_step_says_that_they_are_numbers(tmp_path):
    with pytest.raises(InputError, match=r"row 11, .*; fill gaps with --gaps"):
        time_table(tmp_path / "t.csv", UNREAD["YYMM like years"], step="1")
    assert time_table(tmp_path / "t.csv", range(2_000_001, 2_000_061), step="1").info.form == ""
    assert next_stamps(time_table(tmp_path / "t.csv", [20001, 20002], step="QS"), 3) == [
        20003,
        20004,
        20011,
    ]


# ---- series of several steps


def two(path, first, second, **options):
    stamps = [str(each) for each in [*first, *second]]
    return time_table(path, stamps, "a" * len(first) + "b" * len(second), **options)


@pytest.mark.parametrize("gaps", [None, "forward"])
@pytest.mark.parametrize(
    ("first", "second", "found", "step"),
    [
        (("D", 40), ("h", 400), "1 day", "1 hour"),
        (("h", 50), ("15min", 300), "1 hour", "15 minutes"),
        (("MS", 40), ("D", 200), "31 days", "1 day"),
        (("QS", 20), ("MS", 60), "3 months", "1 month"),
        (("7D", 30), ("D", 100), "7 days", "1 day"),
    ],
)
def test_a_series_of_longer_steps_is_refused(tmp_path, first, second, found, step, gaps):
    rows = [pd.date_range("2020-01-01", periods=n, freq=each) for each, n in (first, second)]
    message = f"row 2, .* found rows {found} apart, expected the step of {step} in series 'a'; use"
    with pytest.raises(InputError, match=message):
        two(tmp_path / "t.csv", *rows, gaps=gaps)
    table = time_table(tmp_path / "alone.csv", [str(each) for each in rows[0]])  # the advice
    assert table.clock.name == found.replace("31 days", "1 month")


def test_a_series_of_shorter_steps_is_refused(tmp_path):
    days = pd.date_range("2020-01-01", periods=200)
    message = r"row 202, .* found a time 1 hour .* whole steps of 1 day in series 'b'; bring .*, or"
    with pytest.raises(InputError, match=message):
        two(tmp_path / "t.csv", days, hours(50), gaps="forward")


def test_a_model_of_hours_refuses_days(tmp_path):
    table = time_table(tmp_path / "a.csv", hours(60))
    time_table(tmp_path / "b.csv", pd.date_range("2020-01-01", periods=40).astype(str))
    options = TableOptions(time="when", gaps="forward")
    with pytest.raises(InputError, match="found rows 1 day apart, expected the step of 1 hour"):
        read_series(str(tmp_path / "b.csv"), options, schema=table.schema)


def test_too_many_missing_steps_are_counted_for_each_series(tmp_path):
    far = [*hours(50), np.datetime64("2020-06-01T00")]
    with pytest.raises(InputError, match=r"row 51, .* 3599 steps after .* in series 'a'; mend the"):
        two(tmp_path / "t.csv", far, hours(2000), gaps="forward")


def test_few_rows_of_a_series_may_be_filled(tmp_path):
    days = pd.date_range("2020-01-01", periods=300)
    kept = np.sort(np.random.default_rng(0).choice(300, 60, replace=False))
    assert len(two(tmp_path / "t.csv", days[kept], days, gaps="forward").x) > 580


def test_business_days_beside_days_are_a_run_of_their_own(tmp_path):
    days, business = (pd.date_range("2020-01-01", periods=60, freq=each) for each in "DB")
    with pytest.raises(InputError, match="say --step B in a run of this series alone; else fill"):
        two(tmp_path / "t.csv", days, business)


# ---- months and years that do not fit


MONTHS = [str(each) for each in pd.date_range("2010-01-01", periods=40, freq="MS")]
ENDS = [str(each) for each in pd.date_range("2013-05-31", periods=5, freq="ME")]


@pytest.mark.parametrize(
    ("rows", "step", "message"),
    [
        (
            MONTHS + ENDS,
            "MS",
            "row 41, .* found 2013-05-31T00:00:00, a Friday, .* like 2010-01-01T",
        ),
        (ENDS + MONTHS[:3], "ME", "row 6, .* found 2010-01-01T00:00:00, a Friday, .* 2013-05-31T"),
        ([*MONTHS[:11], "2010-12-31", *MONTHS[12:]], "MS", "row 12, .* found 2010-12-31T"),
        ([*MONTHS[:9], "2010-10-01 07:00:00", *MONTHS[10:]], "MS", "row 10, .* 2010-10-01T07:00"),
        (["2020-01-01 09:00", "2020-01-02 16:00", "2020-01-03 16:00"], "B", "row 1, .* found 2020"),
    ],
)
def test_the_row_that_differs_from_most_is_named(tmp_path, rows, step, message):
    with pytest.raises(InputError, match=message):
        time_table(tmp_path / "t.csv", rows, step=step)


@pytest.mark.parametrize(
    ("frequency", "step", "wrong", "name"),
    [("MS", "MS", 20, "months"), ("QS", "QS", 10, "quarters"), ("YS", "YS", 20, "years")],
)
def test_a_wrong_day_among_months_is_named_with_a_step(tmp_path, frequency, step, wrong, name):
    dates = pd.date_range("1990-01-01", periods=40, freq=frequency)
    rows = [str(each.date()) for each in dates]
    rows[wrong] = rows[wrong][:-1] + "2"
    with pytest.raises(InputError, match=f"; if rows are {name}, say --step {step}; else bring"):
        time_table(tmp_path / "t.csv", rows)
    with pytest.raises(InputError, match=f"row {wrong + 1}, column 'when': found {rows[wrong]}T"):
        time_table(tmp_path / "t.csv", rows, step=step)


# ---- other formats

FORMATS = (
    "%m/%d/%Y", "%d.%m.%Y", "%Y/%m", "%Y/%m/%d", "%d-%b-%Y", "%b %Y", "%Y-%m-%d %I:%M %p",
    "%Y%m%dT%H%M%S", "%Y.%m.%d", "%d %B %Y", "%H:%M",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_a_format_of_all_rows_is_told(tmp_path, form):
    rows = pd.date_range("2008-01-01", periods=40).strftime(form)
    message = "row 1, .*; all rows are written like this: write them as YYYY-MM-DD or YYYY-MM-DD HH"
    with pytest.raises(InputError, match=message):
        time_table(tmp_path / "t.csv", rows)


def test_a_format_of_most_rows_is_told(tmp_path):
    rows = ["2000-01-02", *(f"{month:02}/02/2000" for month in range(2, 13))]
    with pytest.raises(InputError, match=r"row 2, .*; most rows are written like this: write them"):
        time_table(tmp_path / "a.csv", rows)
    rows = ["01/02/2000", *pd.date_range("2000-01-03", periods=20).astype(str)]
    with pytest.raises(InputError, match=r"row 1, .*; mend the cell or drop the row"):
        time_table(tmp_path / "b.csv", rows)
    with pytest.raises(InputError, match="if the comma is the decimal mark, add"):
        time_table(tmp_path / "c.csv", [f'"{i},5"' for i in range(20)])


# ---- stamps and whole numbers that are rounded to their own resolution


def pictures(rate, unit, count=120 + AHEAD):
    """Stamps as a camera of `rate` pictures a second writes them."""
    offsets = [round(i * 1e9 / rate) for i in range(count)]
    return (pd.Timestamp("2020-01-01") + pd.to_timedelta(offsets, unit="ns")).round(unit)


@pytest.mark.parametrize("jitter", [None, 0.05])
@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("rate", [24, 30, 30 / 1.001, 60, 7])
def test_rounded_stamps_are_read_as_rounded_numbers_are(tmp_path, rate, unit, jitter):
    stamps = pictures(rate, unit)
    table = time_table(tmp_path / "t.csv", stamps[:-AHEAD].map(str), jitter=jitter)
    assert [pd.Timestamp(each) for each in next_stamps(table, AHEAD)] == list(stamps[-AHEAD:])
    time_table(tmp_path / "b.csv", stamps[40:-AHEAD].map(str))
    again = read_series(str(tmp_path / "b.csv"), TableOptions(time="when"), schema=table.schema)
    assert [pd.Timestamp(each) for each in next_stamps(again, AHEAD)] == list(stamps[-AHEAD:])


@pytest.mark.parametrize("start", [0, 1_577_836_800_000])
def test_rounded_milliseconds_as_whole_numbers(tmp_path, start):
    times = [start + round(i * 1000 / 30) for i in range(120 + AHEAD)]
    found = next_stamps(time_table(tmp_path / "t.csv", times[:-AHEAD]), AHEAD)
    assert list(map(str, found)) == list(map(str, times[-AHEAD:]))


def test_a_wrong_whole_second_is_not_rounding(tmp_path):
    seconds = np.arange(60) * 10
    seconds[5] += 1
    for rows in (seconds, np.datetime64("2020-01-01", "s") + seconds):
        with pytest.raises(InputError, match=r"row 6, .* found a time 11 "):
            time_table(tmp_path / "t.csv", rows)


@pytest.mark.parametrize(("share", "enough"), [(0.04, "0.05"), (0.09, "0.1"), (0.18, "0.2")])
def test_an_unsteady_clock_names_the_likely_step_and_jitter(tmp_path, share, enough):
    noise = np.random.default_rng(0).uniform(-share, share, 120)
    offsets = pd.to_timedelta(np.round((np.arange(120) + noise) * 0.1, 6), unit="s")
    rows = [str(each) for each in pd.Timestamp("2020-01-01") + offsets]
    message = f"expected whole steps of 100 milliseconds; bring .*, or let --jitter {enough} move"
    with pytest.raises(InputError, match=message):
        time_table(tmp_path / "t.csv", rows)
    table = time_table(tmp_path / "t.csv", rows, jitter=float(enough))  # the advice
    assert pd.Timestamp(next_stamps(table, 1)[0]) == pd.Timestamp("2020-01-01 00:00:12")


def test_jitter_for_one_row_leaves_the_others(tmp_path):
    stamps = hours(60).astype("M8[m]")
    stamps[20] += np.timedelta64(5, "m")
    with pytest.raises(InputError, match=r"bring .* first, or let --jitter 0\.1 move them"):
        time_table(tmp_path / "t.csv", stamps)
    table = time_table(tmp_path / "t.csv", stamps, jitter=0.1)  # the advice
    np.testing.assert_array_equal(table.stamps(table.ticks), hours(60))


@pytest.mark.parametrize(("step", "expected"), [(0.1, 1600000010.5), (0.3, 1600000031.5)])
def test_moved_numbers_have_no_digits_of_rounding(tmp_path, step, expected):
    noise = np.random.default_rng(0).uniform(-1e-5, 1e-5, 105)
    table = time_table(tmp_path / "t.csv", 1.6e9 + step * np.arange(105) + noise)
    assert next_stamps(table, 1) == [expected]


# ---- what messages about times advise


@pytest.mark.parametrize("old", ["1600-01-01", "1650-01-15", "2263-01-01", "2262-04-12T00", "2262"])
def test_years_that_are_not_read_are_told(tmp_path, old):
    rows = [*pd.date_range("2000-01-01", periods=20).astype(str), old + "-01" * (len(old) == 4)]
    with pytest.raises(InputError, match=r"row 21, .* expected a date from 1678 to 2261; drop the"):
        time_table(tmp_path / "t.csv", rows)


@pytest.mark.parametrize("frequency", ["YS", "MS", "B", "D", "h"])
def test_no_forecast_is_later_than_what_is_read(tmp_path, frequency):
    rows = pd.date_range(end="2261-12-31 23:00", periods=60, freq=frequency).astype(str)
    with pytest.raises(InputError, match="would reach beyond the year 2261"):
        next_stamps(time_table(tmp_path / "t.csv", rows), 20)
    assert next_stamps(time_table(tmp_path / "t.csv", rows[:-2]), 2) == list(rows[-2:])


@pytest.mark.parametrize(
    ("end", "odd", "expected"),
    [
        ("+01:00", "", r"an offset like \+01:00"),
        ("Z", "", "an offset like Z"),
        ("", "-05", "no of"),
    ],
)
def test_a_row_without_the_offset_of_others_is_told(tmp_path, end, odd, expected):
    rows = [f"2023-03-26 {hour:02}:00:00{end if hour != 7 else odd}" for hour in range(20)]
    message = f"row 8, .* expected a stamp with {expected}.*; write the offset in all rows or in no"
    with pytest.raises(InputError, match=message):
        time_table(tmp_path / "t.csv", rows)


FRIDAYS = pd.date_range("2000-01-01", periods=60, freq="WOM-3FRI").astype(str)


def test_months_on_other_days_are_written_as_first_days(tmp_path):
    message = "write each as the first day of its month"
    for step in (None, "MS"):
        with pytest.raises(InputError, match=message) as raised:
            time_table(tmp_path / "t.csv", FRIDAYS, step=step)
        assert not re.search("drop the row|--step MS", str(raised.value))
    firsts = time_table(tmp_path / "t.csv", [f"{each[:7]}-01" for each in FRIDAYS])  # the advice
    assert next_stamps(firsts, 1) == ["2005-01-01"]


def test_months_of_a_zone_name_the_zone(tmp_path):
    rows = pd.date_range("2010-01-01", periods=60, freq="MS", tz="America/New_York").map(str)
    for step in (None, "MS"):
        with pytest.raises(
            InputError, match=r"; name the zone that has equal .* with --time-zone,"
        ):
            time_table(tmp_path / "t.csv", rows, step=step)
    table = time_table(tmp_path / "t.csv", rows, time_zone="America/New_York")
    assert next_stamps(table, 1) == ["2015-01-01 00:00:00-05:00"]


def test_hours_of_trading_may_be_counted(tmp_path):
    rows = pd.date_range("2024-01-01", periods=1000, freq="h")
    rows = rows[(rows.day_of_week < 5) & (rows.hour >= 9) & (rows.hour <= 16)]
    message = "if nights or weekends have no rows, count the rows: name a column of whole numbers"
    with pytest.raises(InputError, match=message):
        time_table(tmp_path / "t.csv", rows)
    assert next_stamps(time_table(tmp_path / "t.csv", range(len(rows))), 1) == [len(rows)]


@pytest.mark.parametrize(("first", "second", "step"), [(7, 6, "Mon-Sat"), (6, 5, "B"), (7, 5, "B")])
def test_a_series_of_fewer_days_names_its_step(tmp_path, first, second, step):
    days = pd.date_range("2024-01-01", periods=90)
    rows = [days[days.day_of_week < each] for each in (first, second)]
    with pytest.raises(InputError, match=f"say --step {step} in a run of this series alone; else"):
        two(tmp_path / "t.csv", *rows)
    assert len(time_table(tmp_path / "t.csv", rows[1], step=step).x) == len(rows[1])  # the advice


@pytest.mark.parametrize("step", ["15min", "1h"])
def test_clocks_that_never_change_name_utc_in_autumn(tmp_path, step):
    rows = pd.date_range("2022-10-28", periods=400, freq=step)
    message = r"; if these clocks never change, say --time-zone UTC or \+01:00; else fill gaps"
    with pytest.raises(InputError, match=message):
        time_table(tmp_path / "t.csv", rows, time_zone="Europe/Berlin")
    for zone in ("UTC", "+01:00"):
        assert len(time_table(tmp_path / "t.csv", rows, time_zone=zone).x) == 400
    with pytest.raises(InputError, match=r"(hour|minutes); fill gaps with"):
        time_table(tmp_path / "t.csv", rows.delete(5), time_zone="Europe/Berlin")
