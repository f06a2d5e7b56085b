"""Local times of a week by offsets, held to `datetime` in zones with unusual changes of the clocks."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.core.instants import DAY, LAST_INSTANT, from_datetime, to_datetime
from services.core.local_week import Offset, by_minute_of_day, by_weekday_and_hour, minute_of_week, offsets, zone

MINUTE = 60_000_000
HOUR = 60 * MINUTE
ZONES = ("Asia/Seoul", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Casablanca", "America/New_York", "Pacific/Apia")


def at(text: str) -> int:
    return from_datetime(datetime.fromisoformat(text))


def test_a_change_of_the_clocks_is_found_to_the_microsecond() -> None:
    year = at("2026-01-01T00:00Z"), at("2027-01-01T00:00Z")
    assert offsets(ZoneInfo("Australia/Lord_Howe"), *year) == (
        Offset(year[0], 11 * HOUR),
        Offset(at("2026-04-04T15:00Z"), 10 * HOUR + HOUR // 2),
        Offset(at("2026-10-03T15:30Z"), 11 * HOUR),
    )
    change = at("2026-10-03T15:30Z")
    assert len(offsets(ZoneInfo("Australia/Lord_Howe"), change - 1, change)) == 1
    assert len(offsets(ZoneInfo("Australia/Lord_Howe"), change - 1, change + 1)) == 2
    assert offsets(ZoneInfo("Asia/Seoul"), change, change) == (Offset(change, 9 * HOUR),)


@given(st.sampled_from(ZONES), st.integers(0, LAST_INSTANT - 1), st.integers(0, 400 * DAY), st.integers(0, 400 * DAY))
@example("Pacific/Apia", at("2011-12-29T00:00Z"), DAY, 3 * DAY)  # the day on which Samoa had no 30 December
def test_minutes_of_the_week(name: str, start: int, after: int, length: int) -> None:
    instant = min(start + min(after, length), LAST_INSTANT)
    local = to_datetime(instant).astimezone(ZoneInfo(name))
    expected = ((local.weekday() * 24 + local.hour) * 60 + local.minute) * MINUTE
    assert minute_of_week(instant, offsets(ZoneInfo(name), start, start + length + 1)) == expected


def test_counts_by_hour_and_by_minute() -> None:
    minutes = [(0, 2), (DAY + 61 * MINUTE, 3), (2 * DAY + 61 * MINUTE, 4), (7 * DAY - MINUTE, 5)]
    hours, of_day = by_weekday_and_hour(minutes), by_minute_of_day(minutes)
    assert [(day, hour, n) for day, counts in enumerate(hours) for hour, n in enumerate(counts) if n] == [
        (0, 0, 2),
        (1, 1, 3),
        (2, 1, 4),
        (6, 23, 5),
    ]
    assert {minute: n for minute, n in enumerate(of_day) if n} == {0: 2, 61: 7, 1439: 5}


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "asia/seoul", "Europe", "/etc/localtime"])
def test_an_unknown_zone(name: str) -> None:
    with pytest.raises(ValueError, match="unknown time zone"):
        zone(name)
