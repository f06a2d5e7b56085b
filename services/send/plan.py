"""What to send, and how: a fresh run from the options given, or the rest of an earlier one with the options of that."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import tzinfo
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec

from services.core.errors import Invalid
from services.core.rows import RowCodec
from services.datasets import find
from services.send import parse
from services.send.chunks import Chunk, Chunker
from services.send.formats import FORMATS, ISO, Format
from services.send.journal import Journal, Options, Progress
from services.send.levels import standard_level
from services.send.parse import NDJSON, Defaults, Parser
from services.send.source import Mark, Source, decode
from services.send.times import Window

_DETECTION_LINES = 100


class Given(msgspec.Struct, frozen=True):
    """The options of the command line; None: not given."""

    format: str | None = None
    pattern: str | None = None
    time_format: str | None = None
    service: str | None = None
    host: str | None = None
    level: str | None = None
    timezone: str | None = None
    year: int | None = None


class Plan:
    """Everything a transfer needs; to be closed. `resumed`: it goes on with an earlier run."""

    run: str
    resumed: bool
    _cuts: list[Mark]
    _chunker: Chunker

    def __init__(
        self, path: str, given: Given, *, resume: bool, folder: Path, request_rows: int, say: Callable[[str], None]
    ) -> None:
        """Raises Invalid (the options), NeedsOperator (the file or the state) or Malformed (the file)."""
        if path == "-" and resume:
            raise Invalid("standard input cannot be resumed: it cannot be read from the start again")
        with ExitStack() as opened:
            self.source = opened.enter_context(closing(Source(path)))
            self.journal = None if path == "-" else opened.enter_context(closing(Journal(folder, path)))
            recorded = self.journal.progress if self.journal else None
            if resume and recorded:
                _refuse_changes(given, recorded.options)
                self._go_on(recorded, say)
            else:
                self._begin(self._options(given, request_rows, say), recorded, say)
            self.close = opened.pop_all().close

    def chunks(self) -> Iterator[Chunk]:
        return self._chunker.chunks(self._cuts)

    def _go_on(self, recorded: Progress, say: Callable[[str], None]) -> None:
        self.resumed, self.run = True, recorded.run
        self._cuts = [begun.end for begun in recorded.begun]
        self._chunker = self._make_chunker(recorded.options)
        self.source.skip(recorded.done)
        say(f"resuming after line {recorded.done.lines}, format {recorded.options.format or 'of --pattern'}")

    def _begin(self, options: Options, recorded: Progress | None, say: Callable[[str], None]) -> None:
        self.resumed, self._cuts = False, []
        self._chunker = self._make_chunker(options)
        if recorded and recorded.begun:
            say("an earlier send of this file was interrupted: this one begins anew (--resume would go on with it)")
        self.run = self.journal.start(options).run if self.journal else uuid4().hex

    def _make_chunker(self, options: Options) -> Chunker:
        return Chunker(self.source, self._parser(options), RowCodec(find("logs")), options.request_rows)

    def _options(self, given: Given, request_rows: int, say: Callable[[str], None]) -> Options:
        if given.pattern and given.format:
            raise Invalid("--pattern and --format exclude each other")
        if given.time_format and not given.pattern:
            raise Invalid("--time-format goes with --pattern")
        timezone = given.timezone or "UTC"
        name = given.format or ""
        if not given.pattern and not name:
            name = self._detected(_zone(timezone), say)
        return Options(
            name,
            given.pattern or "",
            given.time_format or ISO,
            given.service or "",
            given.host or "",
            standard_level(given.level or ""),
            timezone,
            given.year,
            request_rows,
        )

    def _detected(self, zone: tzinfo, say: Callable[[str], None]) -> str:
        lines = self._first()
        name, count = parse.detect(lines, zone, self.source.modified())
        if lines and not name:
            raise Invalid(
                f"none of the first {len(lines)} lines is of a known format; name one by --format, or describe it by"
                " --pattern and --time-format (see --help)"
            )
        if lines:
            say(f"format {name}: {count} of the first {len(lines)} lines parse")
        return name or NDJSON

    def _parser(self, options: Options) -> Parser:
        form: Format | None = None
        if options.pattern:
            form = parse.custom(options.pattern, options.time_format)
        elif options.format != NDJSON:
            form = FORMATS[options.format]
        zone = _zone(options.timezone)
        defaults = Defaults(options.level, options.service, options.host)

        def make(window: Window) -> Parser:
            return parse.make(form, zone, window, defaults, self.source.name.partition(".")[0])

        parser = make(Window(until=self.source.modified()))
        if not parser.yearless:
            return parser
        last = [decode(line)[0] for line in self.source.last()]
        return make(parse.window(make, self._first(), last, options.year, zone, self.source.modified()))

    def _first(self) -> list[str]:
        return [decode(line)[0] for line in self.source.first(_DETECTION_LINES)]


def _refuse_changes(given: Given, recorded: Options) -> None:
    for name, value in msgspec.structs.asdict(given).items():
        was = getattr(recorded, name)
        if value is not None and value != was:
            option = "--" + name.replace("_", "-")
            raise Invalid(f"the run to resume has {option} {was or '(none)'}, not {value}: leave the option out")


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise Invalid(f"unknown time zone {name!r}; use a name such as Europe/Berlin") from error
