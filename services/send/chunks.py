"""Lines -> chunks: the rows of one request, what was rejected among its lines, and the mark where it ends.

A line that is more of the one before it (a stack trace) is joined to its row, and so are the parts of a record that its
writer split, though lines of another stream lie between them. A chunk does not end within such a record, unless the
file or an earlier run did, a pipe falls silent, or the record is beyond all bounds.

The same file from the same mark gives the same chunks again, if the options are the same: an Idempotency-Key that names
a chunk then stands for the same body.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from services.core.errors import InvalidRow, Malformed
from services.core.rows import RowCodec
from services.send.parse import Parser, Part, Unparsed
from services.send.source import MAX_LINE, Mark, Source, decode
from services.send.years import ParserAt

CHUNK_BYTES = 1 << 20  # of the file; as rows they are a few times that
RECORD_BYTES = 64 << 10  # of a line and those joined to it
_CUT = f"\n[cut at {RECORD_BYTES >> 10} KiB]"

Line = tuple[int, bytes]
"""Its number in the file, and the line as it stood there."""


@dataclass(frozen=True, slots=True)
class Reject:
    line: int
    reason: str
    raw: bytes


@dataclass(slots=True)
class Chunk:
    """`rows[i]` is line `numbers[i]` of the file, as it stood there `raw[i]`; joined to it were `more[numbers[i]]`."""

    first: int
    end: Mark
    offset: int
    numbers: list[int] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    more: dict[int, list[Line]] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    blank: int = 0
    not_utf8: int = 0

    @property
    def lines(self) -> int:
        return self.end.lines - self.first + 1

    def reject(self, index: int, reason: str) -> None:
        """Row `index` is not to be sent, with all its lines."""
        number = self.numbers.pop(index)
        lines = [(number, self.raw.pop(index)), *self.more.pop(number, ())]
        self.rejects += [Reject(line, reason, raw) for line, raw in lines]
        del self.rows[index]


@dataclass(slots=True)
class _Section:
    """The lines that become one chunk, up to `end`.

    `full`: the size at which the section was large enough, 0 before; it then ends with its record. `starts`: where each
    line begins, in bytes of the file. `split`: streams whose last line does not end its record. `closed`: the section
    ends here, whatever line follows.
    """

    start: Mark
    end: Mark
    lines: list[bytes] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    split: set[str] = field(default_factory=set)
    size: int = 0
    full: int = 0
    closed: bool = False

    def add(self, line: bytes, start: int, part: Part | None) -> None:
        self.lines.append(line)
        self.starts.append(start)
        self.size += len(line)
        if part:
            if part.is_last:
                self.split.discard(part.stream)
            else:
                self.split.add(part.stream)

    def may_end(self, end: Mark) -> None:
        self.end = end
        self.full = self.full or self.size


@dataclass(slots=True)
class _Tail:
    """What is joined to row `index`, whose own line is `head`, of `parser`. `size`: bytes of all its lines."""

    index: int
    parser: Parser
    head: str
    size: int
    lines: list[Line] = field(default_factory=list)
    message: str = ""

    def add(self, number: int, raw: bytes, more: str) -> bool:
        """Return False when the record is long enough."""
        self.size += len(raw)
        if self.size > RECORD_BYTES:
            self.message += "" if self.message.endswith(_CUT) else _CUT
            return False
        self.lines.append((number, raw))
        self.message += more
        return True


class _Records:
    """Makes the rows and the rejects of a chunk from its lines, in their order."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._tails: list[_Tail] = []  # of each row
        self._last: _Tail | None = None  # of the last row; None when what was rejected came after it
        self._split: dict[str, _Tail] = {}  # stream -> of the row whose next part is still to come

    def add(self, number: int, raw: bytes, text: str, parser: Parser) -> None:
        part = parser.part(text)
        joined = self._split.pop(part.stream, None) if part else None
        if joined is None:
            try:
                self._begin(number, raw, text, parser)
            except Unparsed as error:
                if self._last is None or len(raw) >= MAX_LINE or not parser.continues(text):
                    self._last = None
                    self._chunk.rejects.append(Reject(number, str(error), raw))
                    return
                joined = self._last
        if part and not part.is_last:
            self._split[part.stream] = joined or self._tails[-1]
        if joined and not joined.add(number, raw, part.message if part else f"\n{text}"):
            reason = f"the row it belongs to has {RECORD_BYTES} bytes already"
            self._chunk.rejects.append(Reject(number, reason, raw))

    def join(self) -> None:
        """Make the rows of several lines, now that all of these are known."""
        for tail in self._tails:
            if tail.message or tail.lines:
                self._chunk.rows[tail.index] = tail.parser.row(tail.head, tail.message)
                self._chunk.more[self._chunk.numbers[tail.index]] = tail.lines

    def _begin(self, number: int, raw: bytes, text: str, parser: Parser) -> None:
        if len(raw) >= MAX_LINE:
            raise Unparsed(f"the line has {MAX_LINE} bytes or more")
        row = parser.row(text)
        self._last = _Tail(len(self._chunk.rows), parser, text, len(raw))
        self._tails.append(self._last)
        self._chunk.numbers.append(number)
        self._chunk.raw.append(raw)
        self._chunk.rows.append(row)


class Chunker:
    def __init__(self, source: Source, parser_at: ParserAt, codec: RowCodec, rows: int) -> None:
        self._source = source
        self._parser_at = parser_at
        self._validate: Callable[[bytes], object] = codec.decode_lines
        self._limit = rows

    def chunks(self, cuts: Sequence[Mark] = ()) -> Iterator[Chunk]:
        """Yield the chunks from the present place of the source on. `cuts`: where an earlier run ended its chunks.

        Raises Malformed when the source does, after the lines before that place.
        """
        return map(self._chunk, self._sections(cuts))

    def _sections(self, cuts: Sequence[Mark]) -> Iterator[_Section]:
        section = _Section(self._source.mark(), self._source.mark())
        ends = {cut.lines for cut in cuts}
        silent, broken = False, None
        try:
            for line in self._source.lines([cut.bytes for cut in cuts]):
                if section.full and (silent if line is None else not self._goes_on(section, line)):
                    yield section
                    section = _Section(section.end, section.end)
                silent = line is None  # a pipe: the rest of a record may be on its way, but not for long
                if line is not None:
                    section.add(line, self._source.line_start, self._part(section, line))
                section.closed = section.start.lines + len(section.lines) in ends
                if section.lines and (silent or section.closed or self._enough(section)):
                    section.may_end(self._source.mark())
        except Malformed as error:
            broken = error
        if section.lines:
            section.may_end(self._source.mark())
            yield section
        if broken:
            raise broken

    def _enough(self, section: _Section) -> bool:
        return section.full > 0 or len(section.lines) >= self._limit or section.size >= CHUNK_BYTES

    def _goes_on(self, section: _Section, line: bytes) -> bool:
        """Return whether the line belongs to what lies in a full section, as far as a record may reach."""
        if section.closed or section.size - section.full >= RECORD_BYTES:
            return False
        if section.split:
            return True
        text, _ = decode(line)
        return not text or self._parser_at(section.start.bytes).continues(text)

    def _part(self, section: _Section, line: bytes) -> Part | None:
        parser = self._parser_at(section.start.bytes)
        return parser.part(decode(line, keep_blanks=True)[0]) if parser.splits else None

    def _chunk(self, section: _Section) -> Chunk:
        chunk = Chunk(section.start.lines + 1, section.end, self._source.offset())
        records = _Records(chunk)
        for number, (raw, start) in enumerate(zip(section.lines, section.starts, strict=True), chunk.first):
            parser = self._parser_at(start)
            text, is_utf8 = decode(raw, keep_blanks=parser.splits)
            chunk.not_utf8 += not is_utf8
            if text:
                records.add(number, raw, text, parser)
            else:
                chunk.blank += 1
        records.join()
        self._reject_invalid(chunk)
        return chunk

    def _reject_invalid(self, chunk: Chunk) -> None:
        """Take out what ingest would refuse: all at once when all is well, line by line when not."""
        if self._reason(b"\n".join(chunk.rows)) is None:
            return
        for index in reversed(range(len(chunk.rows))):
            if reason := self._reason(chunk.rows[index]):
                chunk.reject(index, reason)

    def _reason(self, body: bytes) -> str | None:
        try:
            self._validate(body)
        except InvalidRow as error:
            return f"{error.field}: {error.reason}" if error.field else error.reason
        except Malformed as error:
            return str(error)
        return None
