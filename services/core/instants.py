"""Times as microseconds since 1970: the one parser of every time that comes from outside, and datetimes to and from.

HTTP bodies, `logpipe send` and the bounds of queries read times here, so that they agree about each spelling:

- ISO 8601, basic or extended: calendar, week and ordinal dates; `T` or a blank before the time; a dot or a comma before
  the fraction; `Z`, `+02`, `+0200` or `+02:00` as the offset, with or without a blank in front. Eight digits that are a
  date are that day.
- Any other number counts from 1970: seconds below 10^11, milliseconds below 10^14, microseconds below 10^17,
  nanoseconds beyond.

What is finer than a microsecond is cut off. A leap second is the last microsecond before it ends its day, so that the
row stays in that day. The time of a row must name its second, and an offset where the reader knows no zone; the bound
of a query may leave both out.

Nearly all clients send one form, `2026-01-31T12:00:00.123456Z`, with as many digits in each row. A column of such times
is read by one call of numpy, at a third of the cost of a `datetime` for each row; other columns go value by value.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import ROUND_FLOOR, Context, Decimal

import numpy as np

DAY = 86_400_000_000
LAST_INSTANT = 4_102_444_800_000_000
"""The first instant that is not accepted: 2100-01-01."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_ISO_8601 = re.compile(
    r"(\d{4}-\d\d-\d\d|\d{8}|\d{4}-W\d\d-\d|\d{4}W\d{3}|\d{4}-?\d{3})"  # the date
    r"(?:[Tt ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?)?"  # hour, minute, second, fraction
    r"(?: ?([Zz]|[-+\u2212]\d\d(?::?\d\d)?))?)?",  # the offset
    re.ASCII,
)
_RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\d[T ](?:[01]\d|2[0-3]):\d\d:[0-5]\d(?:\.\d{1,40})?(?:Z|[-+]\d\d:[0-5]\d)", re.ASCII
)
"""The usual spelling, which the standard library reads at a sixth of the cost of the others."""
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d{1,9})?", re.ASCII)
MAX_LENGTH = 100
"""Characters of a time: no longer text is one."""
_MAX_EXPONENT = 30
"""A number of more digits is no time: it lies beyond all of them, and a million digits would take long."""
_NANOSECOND = Decimal("0.001")
_UNITS = ((10**11, Decimal(1_000_000)), (10**14, Decimal(1_000)), (10**17, Decimal(1)))
"""A number below the first has a unit of this many microseconds; a number below none of them is nanoseconds."""
_ORDINAL_DIGITS = len("2026031")
_NEITHER = "neither an ISO 8601 time, such as 2026-01-31T12:00:00.123Z, nor a number of seconds since 1970"
_EXACT = Context(prec=2 * MAX_LENGTH, rounding=ROUND_FLOOR)

_MICROSECOND_WIDTH = len("2026-01-31T12:00:00.123456")
_FORMS = [b"0000-00-00T00:00:00Z", *(b"0000-00-00T00:00:00." + b"0" * digits + b"Z" for digits in range(1, 10))]
_UNIFORM = {
    len(form): tuple(np.frombuffer(form.replace(b"0", digit), np.uint8) for digit in (b"0", b"9")) for form in _FORMS
}
"""Width of a time in the common form -> the lowest and the highest character at each place."""


class InvalidInstant(ValueError):
    """`index`: the first value that is no instant between 1970 and 2100."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def to_datetime(instant: int) -> datetime:
    """In UTC."""
    return _EPOCH + timedelta(microseconds=instant)


def from_datetime(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def parse(values: Sequence[str]) -> list[int]:
    """Microseconds of each time of a column. Raises InvalidInstant."""
    times = _uniform(values)
    if times is None:
        times = [_one(index, value) for index, value in enumerate(values)]
    if min(times) < 0 or max(times) >= LAST_INSTANT:
        index = next(index for index, time in enumerate(times) if not 0 <= time < LAST_INSTANT)
        raise InvalidInstant(index, f"{values[index]} is not between 1970 and 2100")
    return times


def of_row(text: str, zone: tzinfo | None = None) -> int:
    """Return the time of a row. `zone`: of a time without an offset, which is refused where `zone` is None.

    Raises ValueError, which says why.
    """
    return _in_calendar(text, zone, needs_second=True)


def of_bound(text: str) -> int:
    """The bound of a query: a day, an hour or a minute stands for its start; a time without an offset is in UTC.

    Raises ValueError, which says why.
    """
    return _in_calendar(text, UTC, needs_second=False)


def _uniform(values: Sequence[str]) -> list[int] | None:
    """Return None unless all texts have the common form and one width, and are days of the calendar."""
    width = len(values[0])
    if width not in _UNIFORM or set(map(len, values)) != {width}:
        return None
    text = "".join(values)
    if not text.isascii():
        return None
    buffer = text.encode()
    characters = np.frombuffer(buffer, np.uint8).reshape(-1, width)
    lowest, highest = _UNIFORM[width]
    if not ((characters >= lowest) & (characters <= highest)).all():
        return None
    with suppress(ValueError):
        zoneless = np.frombuffer(buffer, f"S{width}").astype(f"S{min(width - 1, _MICROSECOND_WIDTH)}")
        times: list[int] = zoneless.astype("M8[us]").astype(np.int64).tolist()
        return times
    return None


def _one(index: int, value: str) -> int:
    try:
        return of_row(value)
    except ValueError as error:
        raise InvalidInstant(index, str(error)) from error


def _in_calendar(text: str, zone: tzinfo | None, *, needs_second: bool) -> int:
    try:
        return _read(text, zone, needs_second=needs_second)
    except OverflowError as error:
        raise ValueError(f"{text} is not between the years 1 and 9999, in UTC") from error


def _read(text: str, zone: tzinfo | None, *, needs_second: bool) -> int:
    if _RFC_3339.fullmatch(text):
        return from_datetime(datetime.fromisoformat(text))
    if len(text) > MAX_LENGTH:
        raise ValueError(_NEITHER)
    found = _ISO_8601.fullmatch(text)
    if found is None or (text.isdecimal() and not _is_day(text)):
        return _since_epoch(text)
    day, hour, minute, second, fraction, offset = found.groups()
    if needs_second and second is None:
        raise ValueError("expected a time with its second, such as 2026-01-31T12:00:00Z")
    if offset:
        zone = _zone(offset)
    elif zone is None:
        raise ValueError("expected a time with a zone (Z, or an offset such as +02:00)")
    if second == "60":
        return _leap_second(datetime.fromisoformat(f"{_calendar(day)}T{hour}:{minute}:59.999999").replace(tzinfo=zone))
    clock = f"{hour or '00'}:{minute or '00'}:{second or '00'}.{(fraction or '0')[:6]:0<6}"
    return from_datetime(datetime.fromisoformat(f"{_calendar(day)}T{clock}").replace(tzinfo=zone))


def _calendar(day: str) -> str:
    """An ordinal date (day 31 of a year) as a calendar date; every other date as it is."""
    if len(day.replace("-", "")) != _ORDINAL_DIGITS or "W" in day:
        return day
    year, number = int(day[:4]), int(day[-3:])
    if not 1 <= number <= date(year, 12, 31).timetuple().tm_yday:
        raise ValueError(f"day {number} is out of range for {year}")
    return (date(year, 1, 1) + timedelta(days=number - 1)).isoformat()


def _is_day(digits: str) -> bool:
    with suppress(ValueError):
        return len(digits) == len("20260131") and bool(date.fromisoformat(digits))
    return False


def _zone(offset: str) -> tzinfo:
    if offset in "Zz":
        return UTC
    hours, minutes = int(offset[1:3]), int(offset[3:].removeprefix(":") or 0)
    if hours >= 24 or minutes >= 60:
        raise ValueError(f"invalid ISO 8601 time: {offset} is no offset")
    ahead = timedelta(hours=hours, minutes=minutes)
    return timezone(ahead if offset[0] == "+" else -ahead)


def _leap_second(before: datetime) -> int:
    """`before`: the last microsecond before the leap second. Leap seconds end a month, in UTC."""
    instant = from_datetime(before)
    following = to_datetime(instant + 1)
    if (following.day, following.hour, following.minute) != (1, 0, 0):
        raise ValueError("invalid ISO 8601 time: second 60 is no leap second")
    return instant


def _since_epoch(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(_NEITHER)
    number = Decimal(text)
    if number.adjusted() > _MAX_EXPONENT:
        raise ValueError(_NEITHER)
    unit = next((unit for below, unit in _UNITS if abs(number) < below), _NANOSECOND)
    return int(_EXACT.to_integral_value(_EXACT.multiply(number, unit)))
