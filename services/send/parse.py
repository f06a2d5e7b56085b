"""A line of a log file -> one row of the dataset `logs` in wire form; and which format a file has."""

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Protocol

import msgspec

from services.core.errors import Invalid
from services.send.formats import FORMATS, NUMBERS, TRACE, Format, Layout
from services.send.levels import standard_level
from services.send.times import TimeParser, Window

NDJSON = "ndjson"
_ABSENT = (None, "", "-")
_encode = msgspec.json.Encoder().encode

ANY_ZONE = timedelta(days=1)  # a file's times may be in a zone ahead of the one its own time is known in


class Unparsed(Exception):
    """The line is not one of the format; says why."""


class Defaults(msgspec.Struct, frozen=True):
    """For rows that lack them; '' where none was given."""

    level: str = ""
    service: str = ""
    host: str = ""


class Parser(Protocol):
    yearless: bool
    """Whether some of its times have no year."""

    def row(self, line: str, more: str = "") -> bytes:
        """One JSON object in wire form, not yet validated; `more` is added to its message. Raises Unparsed."""

    def continues(self, line: str) -> bool:
        """Whether the line is no record of its own, but more of the one before it."""


class NdjsonParser:
    """Lines in wire form already: only what is missing is filled in, all else keeps its bytes."""

    yearless = False

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = {k: msgspec.Raw(_encode(v)) for k, v in msgspec.structs.asdict(defaults).items() if v}
        self._decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def row(self, line: str, more: str = "") -> bytes:
        if not self._defaults:
            return line.encode()
        try:
            return _encode(self._defaults | self._decode(line))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Unparsed(f"not a JSON object: {error}") from error

    def continues(self, line: str) -> bool:
        return False


class TextParser:
    """Lines of one of `formats.FORMATS`, or of a custom one. `origin`: the service of lines for want of any other."""

    def __init__(self, form: Format, zone: tzinfo, window: Window, defaults: Defaults, origin: str = "") -> None:
        self._name = form.name
        self._layouts = [(_compile(form, layout), TimeParser(layout.time, zone, window)) for layout in form.layouts]
        self._looks_continued = _continued(form)
        self._level_from = form.level_from
        self._level = defaults.level or "INFO"
        self._service = defaults.service or form.service or origin
        self._host = defaults.host
        self.yearless = any(times.yearless for _, times in self._layouts)

    def row(self, line: str, more: str = "") -> bytes:
        groups, time = self._match(line)
        level = groups.pop("level", None)
        original = None
        if level:
            name = standard_level(level)
            original, level = (level if level != name else None), name
        elif self._level_from and (source := groups.get(self._level_from[0])):
            level = self._level_from[1](source)
        service, host = groups.pop("service", None), groups.pop("host", None)
        message = (groups.pop("message", line) or "") + more
        metadata: dict[str, str | int] = {
            name: int(value) if name in NUMBERS and value.isdecimal() and len(value) < 16 else value
            for name, value in groups.items()
            if value not in _ABSENT and value is not None
        }
        if original:
            metadata["level"] = original
        return _encode(
            {
                "timestamp": time,
                "level": level or self._level,
                "service": service if service not in _ABSENT else self._service,
                "host": host if host not in _ABSENT else self._host,
                "message": message,
                "metadata": metadata,
            }
        )

    def continues(self, line: str) -> bool:
        return self._looks_continued(line) and not any(match(line) for match, _ in self._layouts)

    def time(self, line: str) -> datetime:
        """The line's time alone; raises Unparsed."""
        return datetime.fromisoformat(self._match(line)[1])

    def _match(self, line: str) -> tuple[dict[str, str | None], str]:
        for match, times in self._layouts:
            if found := match(line):
                groups: dict[str, str | None] = found.groupdict()
                text = groups.pop("timestamp")
                try:
                    return groups, times.wire(text or "")
                except ValueError as error:
                    raise Unparsed(f"{text!r} is {error}") from error
        raise Unparsed(f"does not match the format {self._name}")


def custom(pattern: str, time_format: str) -> Format:
    """A format of the user's own, one layout; raises Invalid."""
    form = Format("--pattern", "", (Layout(time_format, pattern),))
    _compile(form, form.layouts[0])
    return form


def make(form: Format | None, zone: tzinfo, window: Window, defaults: Defaults, origin: str) -> Parser:
    """The parser of a format; None: rows in wire form, NDJSON."""
    return TextParser(form, zone, window, defaults, origin) if form else NdjsonParser(defaults)


def detect(lines: Sequence[str], zone: tzinfo, now: datetime) -> tuple[str, int]:
    """The format that most of these lines parse as, and how many do; ('', 0) when no line does any."""
    window = Window(until=now + ANY_ZONE)
    counts = {NDJSON: sum(map(_is_object, lines))}
    for name, form in FORMATS.items():
        parser = TextParser(form, zone, window, Defaults())
        counts[name] = sum(time_of(parser, line) is not None for line in lines)
    best = max(counts, key=lambda name: counts[name])
    return (best, counts[best]) if counts[best] else ("", 0)


def _compile(form: Format, layout: Layout) -> Callable[[str], re.Match[str] | None]:
    try:
        pattern = re.compile(layout.pattern)
    except re.error as error:
        raise Invalid(f"{form.name}: not a regular expression: {error}") from error
    if "timestamp" not in pattern.groupindex:
        raise Invalid(f"{form.name}: the expression needs a group (?P<timestamp>...)")
    return pattern.fullmatch


def _continued(form: Format) -> Callable[[str], bool]:
    if form.head:
        is_head = re.compile(form.head).match
        return lambda line: not is_head(line)
    is_trace = re.compile(TRACE).match
    return lambda line: is_trace(line) is not None


def time_of(parser: Parser, line: str) -> datetime | None:
    if not isinstance(parser, TextParser):
        return None
    try:
        return parser.time(line)
    except Unparsed:
        return None


def _is_object(line: str) -> bool:
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True
