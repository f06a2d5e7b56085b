"""The years of times that are written without one, decided once for each stretch of a file and kept in the journal.

The file's own time decides only about the lines that are there when a run begins. Lines that come later follow the last
of those lines, in the order of the file: a log that grows past New Year's Eve goes on in the new year, whatever became
of the file's own time by a copy or a restore.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, tzinfo
from operator import attrgetter

import msgspec

from services.send.parse import ANY_ZONE, Parser, time_of
from services.send.times import Window

MakeParser = Callable[[Window], Parser]
ParserAt = Callable[[int], Parser]
"""Returns the parser of the line that begins at an offset, in bytes of the decompressed file."""

_OUT_OF_ORDER = timedelta(hours=1)  # lines that many writers share are not quite in order
_RENEW = timedelta(hours=1)


class Stretch(msgspec.Struct, frozen=True):
    """Lines that begin at byte `start` or later, up to the next stretch, have the years of `window`."""

    start: int
    window: Window


def decided(
    make: MakeParser,
    first: Iterable[str],
    last: Sequence[str],
    size: int,
    year: int | None,
    zone: tzinfo,
    now: datetime,
) -> list[Stretch]:
    """The stretches of a file that is sent for the first time: what it has now (`size` bytes), and what will follow.

    With `year`, that is the year of the first line. Otherwise the last line's year is the latest that puts the line
    before `now`, the file's own time, and no line is later than the last one: so December of a file that ends in March
    is the year before's.
    """
    if year is not None:
        january = datetime(year, 1, 1, tzinfo=zone)
        start = _first_time(make(Window(since=january)), first)
        window = Window(since=max(start - _OUT_OF_ORDER, january) if start else january)
        return followed([Stretch(0, window)], make, last, size)
    end = _first_time(make(Window(until=now + ANY_ZONE)), reversed(last))
    if end is None:
        return [Stretch(0, Window(until=now + ANY_ZONE)), Stretch(size, Window(since=now - ANY_ZONE))]
    return [Stretch(0, Window(until=end + _OUT_OF_ORDER)), Stretch(size, Window(since=end - _OUT_OF_ORDER))]


def followed(stretches: Sequence[Stretch], make: MakeParser, last: Sequence[str], size: int) -> list[Stretch]:
    """Return the same, and what follows the `size` bytes that the file has now: times after that of its last line."""
    end = _first_time(make(stretches[-1].window), reversed(last))
    if end is None or size <= stretches[-1].start:
        return list(stretches)
    return [*stretches, Stretch(size, Window(since=end - _OUT_OF_ORDER))]


def needed(stretches: Sequence[Stretch], done: int) -> list[Stretch]:
    """Without the stretches that lie before byte `done` as a whole."""
    return list(stretches[max(0, _index(stretches, done)) :])


def of_file(make: MakeParser, stretches: Sequence[Stretch]) -> ParserAt:
    parsers = [make(stretch.window) for stretch in stretches]
    return lambda offset: parsers[max(0, _index(stretches, offset))]


def of_pipe(make: MakeParser, now: Callable[[], datetime]) -> ParserAt:
    """A pipe may flow for years: its lines have the latest year that puts them before the time they are read at."""
    made_at, parser = now(), make(Window(until=now() + ANY_ZONE))

    def at(offset: int) -> Parser:
        nonlocal made_at, parser
        if (moment := now()) - made_at > _RENEW:
            made_at, parser = moment, make(Window(until=moment + ANY_ZONE))
        return parser

    return at


def _index(stretches: Sequence[Stretch], offset: int) -> int:
    return bisect_right(stretches, offset, key=attrgetter("start")) - 1


def _first_time(parser: Parser, lines: Iterable[str]) -> datetime | None:
    return next((time for line in lines if (time := time_of(parser, line))), None)
