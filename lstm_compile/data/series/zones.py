"""Moments in UTC and what the clocks of a time zone show then. Loads no torch.

A zone is a name of the IANA database like `Europe/Berlin`, or an offset like `+02:00`; empty text
stands for stamps without a zone, whose moments are what they show.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray

from lstm_compile.errors import InputError

Moments = NDArray[Any]  # datetime64
DAY = 86_400  # of seconds
_OFFSET = re.compile(r"([+-])(\d\d):?(\d\d)?$")


def check_zone(zone: str) -> str:
    """The same zone, `UTC` for its other names, and `+02:00` for `+0200` or `+02`.

    Raises:
        InputError: no such zone.
    """
    if zone in ("Z", "z", "UTC", "Etc/UTC", "GMT") or _seconds(zone) == 0:
        return "UTC"
    if offset := _OFFSET.match(zone):
        sign, hours, minutes = offset.groups("00")
        return f"{sign}{hours}:{minutes}"
    to_local(np.zeros(1, "M8[s]"), zone)
    return zone


def to_local(moments: Moments, zone: str) -> Moments:
    """What the clocks of `zone` show at moments in UTC."""
    shown: Moments = moments + _offsets(moments, zone).astype("m8[s]")
    return shown


def meant_times(moments: Moments, zone: str) -> Moments:
    """`to_local` of the rows of a table, but what clocks skip is given as it was meant.

    Where clocks go forward at midnight, a day begins at 01:00. If the other rows begin at 00:00,
    or at another time that is skipped, that is what is meant.
    """
    if _seconds(zone) is not None:
        return to_local(moments, zone)
    moments = moments + np.timedelta64(0, "s")  # not coarser than seconds
    shown, before = to_local(moments, zone), to_local(moments - 1, zone) + 1
    if (shown == before).all():
        return np.asarray(shown)
    days = shown.astype("M8[D]")
    times, counts = np.unique(shown - days, return_counts=True)
    for row in np.flatnonzero(shown > before):
        skipped = days[row] + times
        counted = np.where((skipped >= before[row]) & (skipped <= shown[row]), counts, 0)
        shown[row] = skipped[int(counted.argmax())]
    return np.asarray(shown)


def to_utc(shown: Moments, zone: str, which: Literal["earliest", "latest"] = "earliest") -> Moments:
    """The moments in UTC at which the clocks of `zone` show these times.

    A time that is shown twice, as clocks go back, is the `earliest` or `latest` of both. One that
    is skipped is the moment of the change.
    """
    day = np.timedelta64(1, "D")
    before, after = (shown - _offsets(shown + each, zone).astype("m8[s]") for each in (-day, day))
    if (before == after).all():
        return np.asarray(before)
    first, last = np.minimum(before, after), np.maximum(before, after)
    exists = [to_local(each, zone) == shown for each in (first, last)]
    found = np.where(exists[0] & exists[1], last if which == "latest" else first, last)
    found = np.where(exists[0] & ~exists[1], first, found)
    for index in np.flatnonzero(~exists[0] & ~exists[1]):
        changes = _changes(zone, *_days(found[index : index + 1]))[0]
        place = np.searchsorted(changes, first[index].astype("M8[s]").astype(np.int64), "right")
        found[index] = np.datetime64(int(changes[place]), "s")
    return np.asarray(found)


def offset_text(moments: Moments, zone: str) -> list[str]:
    """The offset from UTC at each moment: `+01:00`."""
    minutes = (to_local(moments, zone) - moments).astype("m8[m]").astype(np.int64)
    words = {
        each: f"{'-' if each < 0 else '+'}{abs(each) // 60:02}:{abs(each) % 60:02}"
        for each in np.unique(minutes).tolist()
    }
    return [words[each] for each in minutes.tolist()]


def is_offset(zone: str) -> bool:
    """Whether a zone is an offset that never changes."""
    return _seconds(zone) is not None


def _seconds(zone: str) -> int | None:
    """The seconds of a fixed offset; None for a zone whose clocks may change."""
    if zone in ("", "UTC"):
        return 0
    if not (offset := _OFFSET.match(zone)):
        return None
    sign, hours, minutes = offset.groups("0")
    return (int(hours) * 3600 + int(minutes) * 60) * (-1 if sign == "-" else 1)


def _offsets(moments: Moments, zone: str) -> NDArray[np.int64]:
    """Seconds that the clocks of `zone` are ahead of UTC at moments in UTC, int64."""
    seconds = _seconds(zone)
    if seconds is not None or not len(moments):
        return np.full(len(moments), seconds or 0)
    changes, offsets = _changes(zone, *_days(moments))
    place = np.searchsorted(changes, moments.astype("M8[s]").astype(np.int64), "right")
    return offsets[place]


def _days(moments: Moments) -> tuple[int, int]:
    """The years around moments, as days from 1970 on."""
    years = np.array([moments.min(), moments.max()]).astype("M8[Y]") + np.array([-1, 2])
    first, last = years.astype("M8[D]").astype(np.int64).tolist()
    return first, last


@lru_cache(64)
def _changes(zone: str, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The seconds at which the offset of a zone changes, and the offsets before and after them."""
    try:
        clock = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"time zone {zone!r} is not known here; name one like Europe/Berlin, UTC or +02:00"
        ) from error

    def offset(second: int) -> int:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
        shift = moment.astimezone(clock).utcoffset() or timedelta(0)
        return int(shift.total_seconds())

    changes, offsets = list[int](), [offset(first * DAY)]
    for day in range(first, last):
        low, high = day * DAY, (day + 1) * DAY
        if (new := offset(high)) == offsets[-1]:
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if offset(middle) == offsets[-1] else (low, middle)
        changes.append(high)
        offsets.append(new)
    return np.array(changes, np.int64), np.array(offsets, np.int64)
