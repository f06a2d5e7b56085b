"""Parses lines of log files into rows of the dataset `logs` in wire form, and detects the format of a file."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from functools import cache
from typing import Any, NamedTuple, Protocol

import msgspec

from services.core.errors import Invalid, LogpipeError
from services.core.rows import RowCodec
from services.datasets import find
from services.send.formats import FORMATS, ISO, NUMBERS, TRACE, Format, Layout
from services.send.levels import standard_level
from services.send.source import without_colours
from services.send.times import TimeParser, Window

NDJSON, DOCKER = "ndjson", "docker"
JSON_FORMATS = {
    NDJSON: "rows as the ingest API takes them, one JSON object in each line",
    DOCKER: "logs of containers as Docker's driver json-file writes them",
}
"""The formats that no regular expression describes."""

_ABSENT = (None, "", "-")
_encode = msgspec.json.Encoder().encode
LOGS = "logs"
"""The dataset that lines of every format become rows of."""

_codec_of = cache(lambda dataset: RowCodec(find(dataset)))

ANY_ZONE = timedelta(days=1)  # the times in a file may be of a zone that is ahead of the zone of this machine


class Unparsed(Exception):
    """The line does not have the format; the message says why."""


class Defaults(msgspec.Struct, frozen=True):
    """Values for rows that lack them; '' where the user gave none."""

    level: str = ""
    service: str = ""
    host: str = ""


class Part(NamedTuple):
    """A line that is a record, or a part of a record that its writer split. `is_last`: the record ends here."""

    stream: str
    message: str
    is_last: bool


class Parser(Protocol):
    yearless: bool
    """Whether some times of the format have no year."""

    splits: bool
    """Whether lines of the format may be parts of records. Blanks at the end of a line then belong to the message."""

    def row(self, line: str, more: str = "") -> bytes:
        """Return one JSON object in wire form, not yet validated. `more` is added to its message. Raises Unparsed."""

    def continues(self, line: str) -> bool:
        """Return whether the line continues the record before it."""

    def part(self, line: str) -> Part | None:
        """Return the part; None for a line that is not a part, and always if `splits` is false."""


class SingleLines:
    """What parsers share if every line of their format is a record of its own, with a full time."""

    yearless = splits = False

    def continues(self, line: str) -> bool:
        return False

    def part(self, line: str) -> Part | None:
        return None


class NdjsonParser(SingleLines):
    """Parses lines that are in wire form: adds the missing defaults, and keeps the bytes of everything else."""

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


class _DockerLine(msgspec.Struct):
    log: str
    time: str
    stream: str = ""
    attrs: dict[str, Any] = {}


class DockerParser:
    """Parses lines of Docker's driver json-file. A log text without a newline at its end is a part of a longer one."""

    yearless, splits = False, True

    def __init__(self, zone: tzinfo, defaults: Defaults, origin: str = "") -> None:
        self._decode = msgspec.json.Decoder(_DockerLine).decode
        self._times = TimeParser(ISO, zone, Window())
        self._defaults = defaults
        self._service = defaults.service or origin

    def row(self, line: str, more: str = "") -> bytes:
        found = self._line(line)
        try:
            time = self._times.wire(found.time)
        except ValueError as error:
            raise Unparsed(f"{found.time!r} is {error}") from error
        message = _whole(found.log) + more
        metadata = {**found.attrs, "stream": found.stream} if found.stream else found.attrs
        defaults = self._defaults
        return _row(time, defaults.level or "INFO", self._service, defaults.host, message, metadata)

    def continues(self, line: str) -> bool:
        return False

    def part(self, line: str) -> Part | None:
        try:
            found = self._line(line)
        except Unparsed:
            return None
        return Part(found.stream, _whole(found.log), found.log.endswith("\n"))

    def _line(self, line: str) -> _DockerLine:
        try:
            return self._decode(line)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Unparsed(f"not a line of Docker's json-file: {error}") from error


def _whole(log: str) -> str:
    return without_colours(log.removesuffix("\n").removesuffix("\r"))


class TextParser:
    """Parses lines of a format of `formats.FORMATS` or a custom one. `origin`: the service of lines without one."""

    def __init__(self, form: Format, zone: tzinfo, window: Window, defaults: Defaults, origin: str = "") -> None:
        self._name = form.name
        self._layouts = [(_compile(form, layout), TimeParser(layout.time, zone, window)) for layout in form.layouts]
        self._looks_continued = _continued(form)
        self._part = re.compile(form.part).fullmatch if form.part else None
        self.splits = bool(form.part)
        self._vague = [(match, layout.vague) for (match, _), layout in zip(self._layouts, form.layouts, strict=True)]
        self._level_from = form.level_from
        self._level = defaults.level or "INFO"
        self._service = defaults.service or form.service or origin
        self._host = defaults.host
        self.yearless = any(times.yearless for _, times in self._layouts)

    def row(self, line: str, more: str = "") -> bytes:
        groups, time = self.fields(line)
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
        return _row(
            time,
            level or self._level,
            self._service if service is None or service in _ABSENT else service,
            self._host if host is None or host in _ABSENT else host,
            message,
            metadata,
        )

    def continues(self, line: str) -> bool:
        return self._looks_continued(line) and not any(match(line) for match, _ in self._layouts)

    def part(self, line: str) -> Part | None:
        if self._part is None or (found := self._part(line)) is None:
            return None
        return Part(found["stream"], found["message"], found["more"] is None)

    def time(self, line: str) -> datetime:
        """Return only the time of the line. Raises Unparsed."""
        return datetime.fromisoformat(self.fields(line)[1])

    def is_vague(self, line: str) -> bool:
        """Return whether many other formats have the same layout as the line."""
        return next((vague for match, vague in self._vague if match(line)), False)

    def fields(self, line: str) -> tuple[dict[str, str | None], str]:
        """Return the groups of the line, and its time in wire form. Raises Unparsed."""
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
    """Return a format of the user's own, which has one layout. Raises Invalid."""
    form = Format("--pattern", "", (Layout(time_format, pattern),))
    _compile(form, form.layouts[0])
    return form


def make(form: Format | str, zone: tzinfo, window: Window, defaults: Defaults, origin: str) -> Parser:
    """Return the parser of a format. A format of JSON_FORMATS is given by its name."""
    if form == NDJSON:
        return NdjsonParser(defaults)
    if form == DOCKER:
        return DockerParser(zone, defaults, origin)
    assert isinstance(form, Format)
    return TextParser(form, zone, window, defaults, origin)


def detect(
    lines: Sequence[str],
    zone: tzinfo,
    now: datetime,
    defaults: Defaults = Defaults(),  # noqa: B008 it is frozen
) -> tuple[str, int]:
    """Return the format that most of these lines certainly have, and how many have it; ('', 0) if they have none.

    A wrong format stores rows that cannot be corrected. So a format whose lines look like those of many other formats
    needs proof.
    """
    window = Window(until=now + ANY_ZONE)
    ndjson, docker = NdjsonParser(defaults), DockerParser(zone, defaults, "origin")
    counts = {
        NDJSON: sum(why_no_row(ndjson, line) is None for line in lines),
        DOCKER: sum(why_no_row(docker, line) is None for line in lines),
    }
    for name, form in FORMATS.items():
        counts[name] = _count(form, TextParser(form, zone, window, Defaults()), lines)
    return most(counts)


def most(counts: Mapping[str, int]) -> tuple[str, int]:
    """Return the format that most lines have, by the number of lines that have each, and how many; else ('', 0)."""
    best = max(counts, key=lambda name: counts[name])
    return (best, counts[best]) if counts[best] else ("", 0)


def why_no_row(parser: Parser, line: str, dataset: str = LOGS) -> str | None:
    """Return why the line alone gives no row of the dataset that ingest accepts; None if it gives one."""
    try:
        _codec_of(dataset).decode_object(parser.row(line))
    except (Unparsed, LogpipeError) as error:
        return str(error)
    return None


def _count(form: Format, parser: TextParser, lines: Sequence[str]) -> int:
    """Return how many of the lines have the format; 0 if less than half of these prove it."""
    found = [(line, groups) for line in lines if (groups := _groups(parser, line)) is not None]
    if not form.proof:
        return len(found)
    hosts = Counter(groups.get("host") for _, groups in found)
    proven = 0
    for line, groups in found:
        shares_host = hosts[groups.get("host")] > 1 or (len(lines) == 1 and not parser.is_vague(line))
        proven += any(groups.get(name) for name in form.proof) or bool(
            groups.get("host") and groups.get("service") and shares_host
        )
    return len(found) if 2 * proven >= len(found) else 0


def _groups(parser: TextParser, line: str) -> dict[str, str | None] | None:
    try:
        return parser.fields(line)[0]
    except Unparsed:
        return None


def _row(time: str, level: str, service: str, host: str, message: str, metadata: Mapping[str, Any]) -> bytes:
    return _encode(
        {
            "timestamp": time,
            "level": level,
            "service": service,
            "host": host,
            "message": message,
            "metadata": metadata,
        }
    )


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
