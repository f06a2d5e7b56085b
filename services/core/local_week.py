"""The local time of a week, for which no store needs a time zone database of its own.

The time zone databases of stores differ by their release. A query therefore carries the offsets of its zone, which are
computed here, and every store adds the same offset to the same instant.
"""

from collections.abc import Iterable
from datetime import timedelta, tzinfo
from functools import cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from services.core.errors import shown
from services.core.instants import DAY, to_datetime
from services.core.rows import Row

WEEK = 7 * DAY
MINUTES_OF_DAY = 1440

_MINUTE = 60_000_000
_HOUR = 60 * _MINUTE
_MICROSECOND = timedelta(microseconds=1)
_SINCE_MONDAY = 10 * DAY
"""1970-01-01 was a Thursday. One more week keeps the local times of 1970-01-01 positive west of Greenwich."""

FIRST_MONDAY = -_SINCE_MONDAY
"""A Monday, 00:00 UTC, before every local time, in microseconds since 1970."""


class Offset(NamedTuple):
    """From `start` on, in microseconds since 1970, local time is `ahead` microseconds ahead of UTC."""

    start: int
    ahead: int

    @property
    def since_monday(self) -> int:
        """Add this to an instant; the remainder of a division by WEEK is the local time since Monday, 00:00."""
        return self.ahead + _SINCE_MONDAY


def zone(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name, such as Asia/Seoul. Raises ValueError."""
    if name not in _zone_names():
        raise ValueError(f"unknown time zone {shown(name)!r}; expected a name such as Asia/Seoul or UTC")
    return ZoneInfo(name)


@cache
def _zone_names() -> set[str]:
    return available_timezones()


def offsets(local: tzinfo, start: int, end: int) -> tuple[Offset, ...]:
    """Return the zone's offsets at the instants start <= time < end, in order; at least one.

    Relies on no zone changing its offset twice within a day.
    """
    found = [Offset(start, _ahead(local, start))]
    for day in range(start, end, DAY):
        last = min(day + DAY, end - 1)
        if (ahead := _ahead(local, last)) != found[-1].ahead:
            found.append(Offset(_change(local, day, last), ahead))
    return tuple(found)


def _change(local: tzinfo, before: int, after: int) -> int:
    """Return the first instant with the offset of `after`."""
    new = _ahead(local, after)
    while after - before > 1:
        middle = (before + after) // 2
        before, after = (before, middle) if _ahead(local, middle) == new else (middle, after)
    return after


def _ahead(local: tzinfo, instant: int) -> int:
    ahead = to_datetime(instant).astimezone(local).utcoffset()
    assert ahead is not None
    return ahead // _MICROSECOND


def minute_of_week(instant: int, zone_offsets: Iterable[Offset]) -> int:
    """Return the microseconds from Monday, 00:00 local time, to the start of the instant's minute."""
    offset = [each for each in zone_offsets if each.start <= instant][-1]
    since = (instant + offset.since_monday) % WEEK
    return since - since % _MINUTE


def by_weekday_and_hour(minutes: Iterable[Row]) -> list[list[int]]:
    """Return seven lists of 24 counts, from Monday on. `minutes`: (`minute_of_week`, count) each."""
    counts = [[0] * 24 for _ in range(7)]
    for since, count in minutes:
        counts[since // DAY][since % DAY // _HOUR] += count
    return counts


def by_minute_of_day(minutes: Iterable[Row]) -> list[int]:
    """Return 1,440 counts, from midnight on. `minutes`: (`minute_of_week`, count) each."""
    counts = [0] * MINUTES_OF_DAY
    for since, count in minutes:
        counts[since % DAY // _MINUTE] += count
    return counts
