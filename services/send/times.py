"""The time of a log line as the wire wants it: ISO 8601, UTC. Whole seconds are parsed once and remembered."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from services.core.instants import to_datetime
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
        separator = "[.,]" if time_format == ISO else re.escape(head[-1:]) if has_fraction else ""
        self._split = re.compile(rf"(.*){separator}(\d{{1,9}})(\D.*)?", re.DOTALL).fullmatch if separator else None
        self._format = head[:-1] + tail if has_fraction else time_format
        self._zone = zone
        self._window = window
        self._known: dict[str, str] = {}
        self.yearless = self._format not in (ISO, EPOCH) and not re.search("%[YyGcx]", self._format)

    def wire(self, text: str) -> str:
        """Raises ValueError, saying why the text is no such time."""
        if self._split and (parts := self._split(text)):
            head, fraction, tail = parts.groups("")
            return f"{self._second(head + tail)}.{fraction[:6]}Z"
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
            if self._format == EPOCH:
                return _since_epoch(text)
            if self._format == ISO:
                return self._utc(datetime.fromisoformat(text))
            if not self.yearless:
                return self._utc(datetime.strptime(text, self._format))  # noqa: DTZ007 _utc adds the zone
        except (ValueError, OverflowError) as error:
            raise ValueError(f"not a time: {error}") from error
        return self._dated(text)

    def _dated(self, text: str) -> datetime:
        reason: Exception = ValueError("no year fits")
        for year in self._window.years(self._zone):
            try:
                time = self._utc(datetime.strptime(f"{year} {text}", f"%Y {self._format}"))  # noqa: DTZ007
            except (ValueError, OverflowError) as error:
                reason = error
                continue
            if time in self._window:
                return time
        raise ValueError(f"not a time: {reason}") from reason

    def _utc(self, time: datetime) -> datetime:
        return (time if time.tzinfo else time.replace(tzinfo=self._zone)).astimezone(UTC)


def _since_epoch(text: str) -> datetime:
    digits = len(text)
    unit = 1 if digits >= 16 else 1_000 if digits >= 13 else 1_000_000
    return to_datetime(int(text) * unit)
