"""The time of a log line as the wire wants it: ISO 8601, UTC. Whole seconds are parsed once and remembered."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from time import strftime, strptime

from services.core.instants import MAX_LENGTH, of_row, to_datetime
from services.send.formats import ISO

EPOCH = "%s"
_YEARS = 8  # how far to look for a year that has the day (29 February)
_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Window:
    """Gives a time without a year the latest year that puts it before `until`, or else the first after `since`."""

    until: datetime | None = None
    since: datetime | None = None

    def years(self, zone: tzinfo) -> Iterator[int]:
        if self.until:
            latest = self.until.astimezone(zone).year
            yield from range(latest, latest - _YEARS, -1)
        elif self.since:
            earliest = self.since.astimezone(zone).year
            yield from range(earliest, earliest + _YEARS)

    def __contains__(self, time: datetime) -> bool:
        return (self.until is None or time <= self.until) and (self.since is None or time >= self.since)


class TimeParser:
    """Parses times of one format; `zone` is that of times which name none."""

    def __init__(self, time_format: str, zone: tzinfo, window: Window) -> None:
        head, has_fraction, tail = time_format.partition("%f")
        self._is_instant = time_format == ISO or head.startswith(EPOCH)
        separator, before = "", ".*"
        if time_format == ISO:
            separator, before = "[.,]", ".*[Tt ].*"  # a number since 1970 stays whole: its unit depends on its size
        elif has_fraction and not self._is_instant:
            separator = re.escape(head[-1:])
        self._split = (
            re.compile(rf"({before}){separator}(\d{{1,9}})(\D.*)?", re.DOTALL).fullmatch if separator else None
        )
        self._format = head[:-1] + tail if has_fraction else time_format
        self._zone = zone
        self._window = window
        self._known: dict[str, str] = {}
        self.yearless = not self._is_instant and not re.search("%[YyGcx]", self._format)

    def wire(self, text: str) -> str:
        """Return the time in wire form. Raises ValueError, which says why the text is not a time."""
        if len(text) > MAX_LENGTH:  # the patterns take long for a long text
            raise ValueError(f"not a time: it has {len(text)} characters; a time has at most {MAX_LENGTH}")
        if self._split and (parts := self._split(text)):
            head, fraction, tail = parts.groups("")
            second = self._second(head + tail)
            # A leap second has a fraction of its own.
            return f"{second}Z" if "." in second else f"{second}.{fraction[:6]}Z"
        return f"{self._second(text)}Z"

    def _second(self, text: str) -> str:
        second = self._known.get(text)
        if second is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            time = self._parse(text)
            second = self._known[text] = time.replace(tzinfo=None).isoformat()
        return second

    def _parse(self, text: str) -> datetime:
        """In UTC."""
        try:
            if self._is_instant:
                return to_datetime(of_row(text.replace(",", ".") if self._format != ISO else text, self._zone))
            if not self.yearless:
                return self._strptime(text, self._format)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"not a time: {error}") from error
        return self._dated(text)

    def _dated(self, text: str) -> datetime:
        reason: Exception = ValueError("no year fits")
        for year in self._window.years(self._zone):
            try:
                time = self._strptime(f"{year} {text}", f"%Y {self._format}")
            except (ValueError, OverflowError) as error:
                reason = error
                continue
            if time in self._window:
                return time
        raise ValueError(f"not a time: {reason}") from reason

    def _strptime(self, text: str, time_format: str) -> datetime:
        """Parse as datetime.strptime does, and accept a leap second, too."""
        parts = strptime(text, time_format)
        zone = self._zone if parts.tm_gmtoff is None else timezone(timedelta(seconds=parts.tm_gmtoff))
        if parts.tm_sec >= 60:
            return to_datetime(of_row(strftime(f"%Y-%m-%dT%H:%M:{parts.tm_sec}", parts), zone))
        return datetime(*parts[:6], tzinfo=zone).astimezone(UTC)
