"""Steps of calendars and zones, compared with pandas."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lstm_compile.data.series.clock import DAY, HOUR, Clock
from lstm_compile.data.series.find_clock import asked_clock, fitting_clock, infer_clock
from lstm_compile.data.series.jitter import steady_step
from lstm_compile.data.series.zones import check_zone, to_local, to_utc
from lstm_compile.errors import InputError

ZONES = ("", "UTC", "+05:30", "Europe/Berlin", "America/New_York", "America/Sao_Paulo")
AHEAD = 40


def pandas_times(frequency, start, count, zone):
    """Moments in UTC; what clocks skip is the moment of the change."""
    index = pd.date_range(start, periods=count, freq=frequency)
    if zone:
        first = np.ones(count, bool)  # of both, where clocks go back
        index = index.tz_localize(zone, nonexistent="shift_forward", ambiguous=first)
        index = index.tz_convert("UTC").tz_localize(None)
    return index.to_numpy().astype("M8[ns]")


def inferred(times, zone=""):
    return infer_clock(times, np.ones(len(times) - 1, bool), zone)


STEPS = [
    ("B", "2020-01-01", "weekdays", 5),
    ("B", "2020-01-01 16:00", "weekdays", 5),
    (pd.offsets.CustomBusinessDay(weekmask="1111110"), "2020-01-01", "weekdays", 6),
    (pd.offsets.CustomBusinessDay(weekmask="1111001"), "2020-01-01", "weekdays", 5),
    (pd.offsets.CustomBusinessDay(weekmask="1010100"), "2020-01-01", "weekdays", 3),
    ("MS", "2015-01-01", "months", 12),
    ("ME", "2015-01-31", "month-ends", 12),
    ("ME", "2015-01-31 23:59:59", "month-ends", 12),
    ("BMS", "2015-01-01", "business-month-starts", 12),
    ("BME", "2015-01-31", "business-month-ends", 12),
    ("BQE", "2015-03-31", "business-month-ends", 4),
    ("QS", "2008-01-01", "months", 4),
    ("QE", "2008-03-31", "month-ends", 4),
    ("YS", "1950-01-01", "months", 1),
    ("D", "2018-01-01", None, 7),
    ("W", "2018-01-01", None, 52),
]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(("frequency", "start", "kind", "season"), STEPS)
def test_steps_go_on_as_those_of_pandas(frequency, start, kind, season, zone):
    times = pandas_times(frequency, start, 150, zone)
    rows = times[:-AHEAD]
    clock = inferred(rows, zone)
    assert clock.kind == (kind or ("wall" if zone else "fixed"))
    assert clock.season == season
    ticks, like = clock.ticks(rows), clock.like(rows)
    np.testing.assert_array_equal(clock.stamps(ticks, like), rows)
    assert (np.diff(ticks) == clock.step).all()
    ahead = ticks[-1] + clock.step * np.arange(1, AHEAD + 1)
    np.testing.assert_array_equal(clock.stamps(ahead, like), times[-AHEAD:])


def test_the_30th_is_the_last_day_of_february():
    months = pd.date_range("2019-01-01", periods=30, freq="MS")
    days = np.minimum(30, months.days_in_month) - 1
    times = (months + pd.to_timedelta(days, unit="D")).to_numpy()
    clock = inferred(times[:-6])
    found = clock.stamps(clock.ticks(times), clock.like(times[:-6]))
    assert clock.kind == "months"
    np.testing.assert_array_equal(found, times)


@settings(deadline=None)
@example("wall", "Europe/Berlin", 640, 7201)
@given(
    st.sampled_from(["fixed", "wall", "weekdays", "months", "month-ends", "business-month-ends"]),
    st.sampled_from(ZONES),
    st.integers(-3000, 3000),
    st.integers(0, 86_399),
)
def test_stamps_are_the_opposite_of_ticks(kind, zone, day, second):
    week = "1011010" if kind == "weekdays" else ""
    clock = Clock(kind, DAY if kind in ("fixed", "wall") else 1, zone, week)
    like = to_utc(np.array([np.datetime64("2021-05-31") + np.timedelta64(second, "s")]), zone)[0]
    first = clock.ticks(np.array([like]))[0]
    ticks = first + np.arange(day, day + 25) * int(clock.step)
    stamps = clock.stamps(ticks, like)
    assert (np.diff(stamps) > np.timedelta64(0)).all()
    np.testing.assert_array_equal(clock.ticks(stamps), ticks)
    np.testing.assert_array_equal(clock.stamps(clock.ticks(stamps), like), stamps)


@settings(deadline=None)
@given(
    st.sampled_from(ZONES[1:]),
    st.lists(st.integers(-8_000_000_000, 8_000_000_000), min_size=1, max_size=20),
)
def test_zones_show_what_pandas_shows(zone, seconds):
    moments = np.array(seconds).astype("M8[s]")
    index = pd.DatetimeIndex(moments).tz_localize("UTC").tz_convert(zone)
    shown = to_local(moments, zone)
    np.testing.assert_array_equal(shown, index.tz_localize(None).to_numpy())
    both = [to_utc(shown, zone, which) for which in ("earliest", "latest")]
    assert ((both[0] == moments) | (both[1] == moments)).all()
    np.testing.assert_array_equal(to_local(both[0], zone), shown)


def test_names_of_zones():
    assert [check_zone(name) for name in ("Z", "+00:00", "+0530", "-03")] == [
        *("UTC", "UTC", "+05:30", "-03:00")
    ]
    with pytest.raises(InputError, match="time zone 'Europe/Atlantis' is not known here; name one"):
        check_zone("Europe/Atlantis")


@pytest.mark.parametrize(
    ("step", "kind", "size", "week"),
    [
        ("B", "weekdays", 1, "1111100"),
        ("Mon-Sat", "weekdays", 1, "1111110"),
        ("Sun-Thu", "weekdays", 1, "1111001"),
        ("Mon,Wed,Fri", "weekdays", 1, "1010100"),
        ("15min", "fixed", HOUR // 4, ""),
        ("0.5s", "fixed", 500_000_000, ""),
        ("2W", "fixed", 14 * DAY, ""),
        ("QE", "month-ends", 3, ""),
        ("2MS", "months", 2, ""),
    ],
)
def test_steps_that_are_asked_for(step, kind, size, week):
    assert asked_clock(step, is_date=True) == Clock(kind, size, "", week)
    assert asked_clock("0.5", is_date=False) == Clock("number", 0.5)


@pytest.mark.parametrize(
    ("step", "is_date", "message"),
    [
        ("fortnight", True, "--step fortnight is no step; expected a number, days like Mon-Sat"),
        ("Mon-Son", True, "--step Mon-Son is no step"),
        ("0.3MS", True, "no such step"),
        ("0min", True, "no such step"),
        ("5", True, "--step 5 is for numbers, but the column holds dates; name a unit"),
        ("B", False, "--step B is for dates, but the column holds numbers"),
    ],
)
def test_steps_that_are_none(step, is_date, message):
    with pytest.raises(InputError, match=message):
        asked_clock(step, is_date)


def days(*names):
    return np.array(names, "M8[D]")


@pytest.mark.parametrize(
    ("rows", "ahead"),
    [
        (days("2024-01-31", "2024-02-29"), days("2024-03-31", "2024-04-30")),
        (days("2023-02-28", "2023-03-31"), days("2023-04-30", "2023-05-31")),
        (days("2024-01-30", "2024-02-29"), days("2024-03-30", "2024-04-30")),
        (days("2024-01-15", "2024-02-15"), days("2024-03-15", "2024-04-15")),
    ],
)
@pytest.mark.parametrize("kind", ["months", "month-ends"])
def test_a_model_of_months_takes_the_days_of_later_rows(kind, rows, ahead):
    clock = fitting_clock(Clock(kind, 1), rows)
    ticks = clock.ticks(rows)
    found = clock.stamps(ticks[-1] + np.array([1, 2]), clock.like(rows))
    np.testing.assert_array_equal(found, ahead)


def test_a_gap_among_few_days_is_no_week():
    times = np.delete(np.arange("2024-01-01", "2024-01-12", dtype="M8[D]"), 5)
    assert inferred(times) == Clock("fixed", DAY)


@pytest.mark.parametrize(("period", "found"), [(10_000_000, 10_000_000), (10_003_000, 10_003_000)])
def test_the_step_of_an_unsteady_clock(period, found):
    noise = np.random.default_rng(0).uniform(-0.009, 0.009, 5000) * period
    ticks = np.arange(5000) * period + noise.astype(np.int64)
    assert steady_step(ticks, np.ones(4999, bool), 0.01) == found
    assert steady_step(ticks, np.ones(4999, bool), 0.001) is None
