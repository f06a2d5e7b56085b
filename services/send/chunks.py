"""Lines -> chunks: the rows of one request, what was rejected among its lines, and the mark where it ends.

The same file from the same mark gives the same chunks again, if the options are the same: an Idempotency-Key that names
a chunk then stands for the same body.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from services.core.errors import InvalidRow, Malformed
from services.core.rows import RowCodec
from services.send.parse import Parser, Unparsed
from services.send.source import MAX_LINE, Mark, Source, decode

CHUNK_BYTES = 1 << 20  # of the file; as rows they are a few times that
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Reject:
    line: int
    reason: str
    raw: bytes


@dataclass(slots=True)
class Chunk:
    """`rows[i]` is line `numbers[i]` of the file, `raw[i]` as it stood there."""

    first: int
    end: Mark
    offset: int
    numbers: list[int] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    blank: int = 0
    not_utf8: int = 0

    @property
    def lines(self) -> int:
        return self.end.lines - self.first + 1

    def reject(self, index: int, reason: str) -> None:
        """Row `index` is not to be sent."""
        self.rejects.append(Reject(self.numbers.pop(index), reason, self.raw.pop(index)))
        del self.rows[index]


class Chunker:
    def __init__(self, source: Source, parser: Parser, codec: RowCodec, rows: int) -> None:
        self._source = source
        self._parse = parser.row
        self._validate: Callable[[bytes], object] = codec.decode_lines
        self._limit = rows

    def chunks(self, cuts: Sequence[Mark] = ()) -> Iterator[Chunk]:
        """From where the source stands. `cuts`: where an earlier run ended its chunks.

        Raises Malformed when the source does, after the lines before that place.
        """
        ends = {cut.lines for cut in cuts}
        lines: list[bytes] = []
        size, start = 0, self._source.mark()
        broken = None
        try:
            for line in self._source.lines([cut.bytes for cut in cuts]):
                if line is not None:
                    lines.append(line)
                    size += len(line)
                    if len(lines) < self._limit and size < CHUNK_BYTES and start.lines + len(lines) not in ends:
                        continue
                if lines:
                    yield self._chunk(start, lines)
                    lines, size, start = [], 0, self._source.mark()
        except Malformed as error:
            broken = error
        if lines:
            yield self._chunk(start, lines)
        if broken:
            raise broken

    def _chunk(self, start: Mark, lines: list[bytes]) -> Chunk:
        chunk = Chunk(start.lines + 1, self._source.mark(), self._source.offset())
        parse = self._parse
        for number, raw in enumerate(lines, chunk.first):
            text, is_utf8 = decode(raw.removeprefix(_BOM) if number == 1 else raw)
            chunk.not_utf8 += not is_utf8
            if not text:
                chunk.blank += 1
                continue
            try:
                if len(raw) >= MAX_LINE:
                    raise Unparsed(f"the line has {MAX_LINE} bytes or more")
                row = parse(text)
            except Unparsed as error:
                chunk.rejects.append(Reject(number, str(error), raw))
                continue
            chunk.numbers.append(number)
            chunk.raw.append(raw)
            chunk.rows.append(row)
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
