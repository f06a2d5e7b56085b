"""The one parser of times: bodies, `logpipe send` and queries agree about each spelling."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from services.core import instants
from services.core.instants import InvalidInstant, from_datetime, of_bound, of_row, parse
from services.datasets import find
from services.query_api.parameters import list_parameters
from services.send.formats import ISO
from services.send.times import TimeParser, Window

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def micros(moment: datetime) -> int:
    return from_datetime(moment)


def by_send(text: str) -> int:
    return from_datetime(datetime.fromisoformat(TimeParser(ISO, UTC, Window()).wire(text)))


def by_query(text: str) -> int:
    parameters = list_parameters(find("logs")).model_validate({"end_time": text})
    return int(parameters.end_time or 0)


SPELLINGS = [
    ("2026-01-31T12:00:00Z", NOON),
    ("2026-01-31T12:00:00.123456Z", NOON + timedelta(microseconds=123_456)),
    ("2026-01-31T12:00:00.123456999Z", NOON + timedelta(microseconds=123_456)),
    ("2026-01-31T21:00:00+0900", NOON),
    ("2026-01-31T21:00:00+09", NOON),
    ("2026-01-31T21:00:00 +09:00", NOON),
    ("2026-01-31T04:00:00\u221208:00", NOON),
    ("2026-01-31t12:00:00.5z", NOON + timedelta(seconds=0.5)),
    ("2026-01-31 12:00:00-00:00", NOON),
    ("2026-01-31T12:00:00,123Z", NOON + timedelta(milliseconds=123)),
    ("20260131T120000Z", NOON),
    ("20260131T120000.25+0000", NOON + timedelta(seconds=0.25)),
    ("2026-W05-6T12:00:00Z", NOON),
    ("2026W056T120000Z", NOON),
    ("2026-031T12:00:00Z", NOON),
    ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 999_999, UTC)),
    ("2016-12-31T15:59:60-08:00", datetime(2016, 12, 31, 23, 59, 59, 999_999, UTC)),
    ("2016-12-31T23:59:60.5Z", datetime(2016, 12, 31, 23, 59, 59, 999_999, UTC)),
    ("1769860800", NOON),
    ("1769860800.5", NOON + timedelta(seconds=0.5)),
    ("1769860800123", NOON + timedelta(milliseconds=123)),
    ("1769860800123.25", NOON + timedelta(microseconds=123_250)),
    ("1769860800123456", NOON + timedelta(microseconds=123_456)),
    ("1769860800123456789", NOON + timedelta(microseconds=123_456)),
    ("1769860800." + "9" * 60, NOON + timedelta(microseconds=999_999)),
    ("20261331", datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=20_261_331)),  # no date: seconds
    ("2026031", datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=2_026_031)),  # no eight digits: seconds
]


@pytest.mark.parametrize(("text", "moment"), SPELLINGS)
def test_bodies_send_and_queries_agree_about_each_spelling(text: str, moment: datetime) -> None:
    expected = [micros(moment)] * 2
    assert parse([text, text]) == expected
    assert parse([text, "2026-01-31T12:00:00.1Z"])[0] == micros(moment)
    assert [by_send(text), by_query(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-02-29T00:00:00Z",
        "2026-01-31T24:00:00Z",
        "2026-01-31T12:60:00Z",
        "2026-01-31T12:00:60Z",  # no leap second ends this minute
        "2026-01-31T23:59:61Z",
        "2026-01-31T12:00:00+24:00",
        "2026-01-31T12:00:00+02:60",
        "2026-01-31_12:00:00Z",
        "2026-366T12:00:00Z",
        "9999-999T12:00:00Z",
        "2026-01-31T12:00:00.Z",
        "2026-01-31T12:00:00Z\n",
        "\u0968\u0966\u0968\u096c-01-31T12:00:00Z",
        "1_000",
        " 1769860800",
        "nan",
        "Infinity",
        "1e999999",
        "1" * 101,
        "0x10",
    ],
)
def test_what_is_no_time_is_refused_by_all_three(text: str) -> None:
    for read in (lambda: parse([text]), lambda: of_row(text, UTC), lambda: of_bound(text)):
        with pytest.raises(ValueError, match=r"."):
            read()


@pytest.mark.parametrize("text", ["2026-01-31T12:00Z", "2026-01-31T12Z", "2026-01-31", "20260131"])
def test_a_bound_may_stop_before_the_second_and_a_row_may_not(text: str) -> None:
    assert of_bound(text) == micros(NOON if "T" in text else NOON - timedelta(hours=12))
    with pytest.raises(InvalidInstant, match="second"):
        parse([text])
    with pytest.raises(ValueError, match="second"):
        of_row(text, UTC)


def test_a_time_without_an_offset_is_in_the_readers_zone() -> None:
    assert of_bound("2026-01-31T12:00:00") == micros(NOON)
    assert of_row("2026-07-01T14:00:00", ZoneInfo("Europe/Berlin")) == micros(datetime(2026, 7, 1, 12, tzinfo=UTC))
    with pytest.raises(InvalidInstant, match="zone"):
        parse(["2026-01-31T12:00:00"])


@pytest.mark.parametrize("digits", range(10))
def test_a_column_of_one_form_is_cut_to_the_microsecond_as_its_values_are(digits: int) -> None:
    fraction = "." + "999999999"[:digits] if digits else ""
    column = [f"2026-01-31T23:59:59{fraction}Z"] * 2
    assert instants._uniform(column) == [of_row(column[0])] * 2
    assert of_row(column[0]) < micros(datetime(2026, 2, 1, tzinfo=UTC))


def test_the_unit_of_a_number_is_known_by_its_size() -> None:
    assert of_bound("99999999999") == 99_999_999_999_000_000
    assert of_bound("100000000000") == 100_000_000_000_000
    assert of_bound("99999999999999") == 99_999_999_999_999_000
    assert of_bound("100000000000000") == 100_000_000_000_000
    assert of_bound("99999999999999999") == 99_999_999_999_999_999
    assert of_bound("100000000000000000") == 100_000_000_000_000
    assert of_bound("-1.0000001") == -1_000_001
