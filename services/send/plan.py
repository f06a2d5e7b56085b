"""What to send, and how: a fresh run from the options given, or the rest of an earlier one with the options of that."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import tzinfo
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec

from services.core.dataset import Dataset
from services.core.errors import Invalid, NeedsOperator
from services.core.rows import RowCodec
from services.datasets import find
from services.send import parse, requests, years
from services.send.chunks import Chunk, Chunker
from services.send.formats import FORMATS, ISO, Format
from services.send.journal import Journal, Options, Progress
from services.send.levels import standard_level
from services.send.parse import JSON_FORMATS, LOGS, NDJSON, Defaults, NdjsonParser
from services.send.requests import RequestParser
from services.send.source import Mark, Source, decode
from services.send.times import Window
from services.send.years import MakeParser, ParserAt, Stretch

_DETECTION_LINES = 100


class Given(msgspec.Struct, frozen=True):
    """The options of the command line; None: not given."""

    dataset: str | None = None
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

    dataset: Dataset
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
        self._say = say
        with ExitStack() as opened:
            self.source = opened.enter_context(closing(Source(path)))
            self.journal = None if path == "-" else opened.enter_context(closing(Journal(folder, path)))
            if resume and self.journal:
                recorded = self.journal.load(self.source.agreeing)
                _refuse_changes(given, recorded.options)
                self._go_on(recorded, say)
            else:
                self._begin(self._options(given, request_rows, say), say)
            self.close = opened.pop_all().close

    def chunks(self) -> Iterator[Chunk]:
        return self._chunker.chunks(self._cuts)

    def rewind(self) -> None:
        """Send the file from its first line again, in the same chunks: the journal was set back to the beginning."""
        assert self.journal
        assert self.journal.progress
        self._say("the ledger was restored from a backup: what it has lost is sent again, and nothing is stored twice")
        self.source.rewind()
        self._go_on(self.journal.progress, self._say)

    def _go_on(self, recorded: Progress, say: Callable[[str], None]) -> None:
        self.resumed, self.run = True, recorded.run
        self._cuts = recorded.cuts()
        make = self._parser_maker(recorded.options)
        is_untouched = not recorded.done.bytes and not self._cuts
        if recorded.years and not is_untouched:
            lines, size = self._last()
            recorded.years = years.followed(years.needed(recorded.years, recorded.done.bytes), make, lines, size)
        else:
            recorded.years = self._years(make, recorded.options)
        self._prepare(recorded.options, self._parser_at(make, recorded.years))
        self.source.skip(recorded.done)
        said = f"resuming after line {recorded.done.lines}, format {recorded.options.format or 'of --pattern'}"
        if self.journal and self.journal.former_path:
            said += f"; the file was {self.journal.former_path} before"
        if not recorded.ledger:
            said += "; the record does not name its ledger and is bound to the one that ingest writes to now"
        if recorded.years and (since := recorded.years[-1].window.since):
            said += f"; times without a year go on from {since.astimezone(_zone(recorded.options.timezone)):%Y-%m-%d}"
        say(said)

    def _begin(self, options: Options, say: Callable[[str], None]) -> None:
        self.resumed, self._cuts = False, []
        make = self._parser_maker(options)
        stretches = self._years(make, options)
        self._prepare(options, self._parser_at(make, stretches))
        if self.journal and self.journal.was_interrupted():
            say("an earlier send of this file was interrupted: this one starts over (--resume would go on with it)")
        self.run = self.journal.start(options, stretches).run if self.journal else uuid4().hex

    def _prepare(self, options: Options, parser_at: ParserAt) -> None:
        self.dataset = find(options.dataset)
        self._chunker = Chunker(self.source, parser_at, RowCodec(self.dataset), options.request_rows)

    def _options(self, given: Given, request_rows: int, say: Callable[[str], None]) -> Options:
        if given.pattern and given.format:
            raise Invalid("--pattern and --format exclude each other")
        if given.time_format and not given.pattern:
            raise Invalid("--time-format goes with --pattern")
        dataset = find(given.dataset or LOGS)
        _refuse_options_of_logs(given, dataset)
        timezone = given.timezone or "UTC"
        name = given.format or ""
        if not given.pattern and not name:
            defaults = Defaults(standard_level(given.level or ""), given.service or "", given.host or "")
            name = self._detected(dataset, _zone(timezone), defaults, say)
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
            self._origin(),
            dataset.name,
        )

    def _detected(self, dataset: Dataset, zone: tzinfo, defaults: Defaults, say: Callable[[str], None]) -> str:
        lines = self._first()
        if dataset.name == LOGS:
            name, count = parse.detect(lines, zone, self.source.modified(), defaults)
        else:
            name, count = requests.detect(dataset, lines, zone, defaults)
        if lines and not name:
            reason = f"none of the first {len(lines)} lines is surely of a known format"
            if lines[0].startswith("{"):
                why = parse.why_no_row(NdjsonParser(defaults), lines[0], dataset.name)
                reason += f" (as a row of the ingest API: {why})"
            if dataset.name != LOGS:
                raise Invalid(f"{reason}; rows of {dataset.name} are made of {', '.join(requests.formats_of(dataset))}")
            raise Invalid(f"{reason}; name one by --format, or describe it by --pattern and --time-format (see --help)")
        if lines:
            say(f"format {name}: {count} of the first {len(lines)} lines parse")
        return name or NDJSON

    def _parser_maker(self, options: Options) -> MakeParser:
        form: Format | str = options.format
        if options.pattern:
            form = parse.custom(options.pattern, options.time_format)
        elif options.format not in JSON_FORMATS:
            if options.format not in FORMATS:
                raise NeedsOperator(f"this release does not know the format {options.format!r} of the run to resume")
            form = FORMATS[options.format]
        zone = _zone(options.timezone)
        defaults = Defaults(options.level, options.service, options.host)
        origin = options.origin or self._origin()
        if options.dataset != LOGS and isinstance(form, Format):
            return lambda window: RequestParser(form, zone, window, defaults, origin)
        return lambda window: parse.make(form, zone, window, defaults, origin)

    def _origin(self) -> str:
        return self.source.name.partition(".")[0]

    def _years(self, make: MakeParser, options: Options) -> list[Stretch]:
        """Return the years; empty if the times have a year, and for a pipe without a given year."""
        if not make(Window()).yearless or (self.journal is None and options.year is None):
            return []
        lines, size = self._last() if self.journal else ([], 0)
        zone, now = _zone(options.timezone), self.source.modified()
        return years.decided(make, self._first(), lines, size, options.year, zone, now)

    def _parser_at(self, make: MakeParser, stretches: list[Stretch]) -> ParserAt:
        if stretches:
            return years.of_file(make, stretches)
        parser = make(Window())
        return years.of_pipe(make, self.source.modified) if parser.yearless else lambda offset: parser

    def _last(self) -> tuple[list[str], int]:
        lines, size = self.source.last()
        return [decode(line)[0] for line in lines], size

    def _first(self) -> list[str]:
        return [decode(line)[0] for line in self.source.first(_DETECTION_LINES)]


def _refuse_options_of_logs(given: Given, dataset: Dataset) -> None:
    """Raise Invalid if an option makes rows that the dataset does not have."""
    if dataset.name == LOGS:
        return
    if given.pattern or given.level or given.host:
        raise Invalid(f"--pattern, --level and --host are for the dataset logs, not for {dataset.name}")
    if given.service and "service" not in dataset.by_name:
        raise Invalid(f"{dataset.name} has no service: leave --service out")
    formats = requests.formats_of(dataset)
    if given.format and given.format not in formats:
        raise Invalid(f"rows of {dataset.name} are made of the formats {', '.join(formats)}, not of {given.format}")


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
