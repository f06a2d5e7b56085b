"""The bytes of a log file as lines: plain, gzip or zstd, a file or a pipe; and the mark that says how far one came."""

import gzip
import io
import os
import re
import select
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import xxhash
import zstandard

from services.core.errors import Malformed, NeedsOperator

MAX_LINE = 1 << 20
_BUFFER = 1 << 20
_PAUSE_SECONDS = 1.0
_TAIL_BYTES = 64 << 10
_BOM = b"\xef\xbb\xbf"
_COLOUR = re.compile(r"\x1b\[[0-9;:]*[mK]")  # what terminals take for colours and for clearing a line
_GZIP, _ZSTD, _UTF16 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"\xff\xfe", b"\xfe\xff")


class Mark(msgspec.Struct, frozen=True):
    """A point of the decompressed file: so many lines and bytes, with this xxh3 hash, lie before it."""

    lines: int = 0
    bytes: int = 0
    digest: int = xxhash.xxh3_64_intdigest(b"")


class Source:
    """A file, or standard input ('-'). Its methods raise Malformed when it is broken gzip or zstd, or UTF-16."""

    def __init__(self, path: str) -> None:
        self.name = "stdin" if path == "-" else Path(path).name
        self._path = Path(path)
        self.size = None if path == "-" else self._path.stat().st_size
        self._pipe = _Pipe(sys.stdin.fileno()) if path == "-" else None
        self._file: BinaryIO = cast(BinaryIO, io.BufferedReader(self._pipe)) if self._pipe else self._path.open("rb")
        self.line_start = 0
        """Where the line begins that `lines` gave last, in bytes of the decompressed file."""
        try:
            self._begin(self._pipe.head if self._pipe else _peek(self._file))
        except Malformed:
            self._file.close()
            raise
        if self._pipe:
            self._pipe.pauses = self._stream is self._file  # a decompressor would take a pause for the end

    def _begin(self, head: bytes) -> None:
        self._stream = _decompressed(self._file, head)
        self._lines = self._bytes = self.line_start = 0
        self._torn = False  # what was read ended within a line
        self._hash = xxhash.xxh3_64()

    def rewind(self) -> None:
        """Go back to the beginning. Not for a pipe."""
        self._file.seek(0)
        self._begin(_peek(self._file))

    def modified(self) -> datetime:
        """When the file was last written; a pipe: now."""
        return datetime.now(UTC) if self._pipe else datetime.fromtimestamp(self._path.stat().st_mtime, UTC)

    def offset(self) -> int:
        """Return how far the file was read, in bytes of the file as it lies there."""
        return self._bytes if self._pipe else self._file.tell()

    def mark(self) -> Mark:
        return Mark(self._lines, self._bytes, self._hash.intdigest())

    def skip(self, mark: Mark) -> None:
        """Go to a mark made earlier; raises NeedsOperator when the text before it is no longer the same."""
        with _translated():
            while block := self._stream.read(min(mark.bytes - self._bytes, _BUFFER)):
                self._hash.update(block)
                self._bytes += len(block)
                self._torn = block[-1:] != b"\n"
        self._lines = mark.lines
        if self.mark() != mark:
            raise NeedsOperator(another_file(mark.lines))

    def agreeing(self, marks: Sequence[Mark]) -> Mark | None:
        """The last of the marks, in the order of their bytes, before which the file has the same text; read apart."""
        found, size, hashed = None, 0, xxhash.xxh3_64()
        with (
            suppress(Malformed),
            _translated(),
            self._path.open("rb") as file,
            _decompressed(file, _peek(file)) as stream,
        ):
            for mark in marks:
                while block := stream.read(min(mark.bytes - size, _BUFFER)):
                    hashed.update(block)
                    size += len(block)
                if (size, hashed.intdigest()) == (mark.bytes, mark.digest):
                    found = mark
        return found

    def lines(self, cuts: Sequence[int] = ()) -> Iterator[bytes | None]:
        """Yield each line with its newline, cut at MAX_LINE bytes; of a pipe, about every second None.

        NUL characters in front of a line do not count: they are the hole that a writer leaves whose file was truncated.
        `cuts`: bytes of the file, in order, where it once ended: a line ends there too, whatever was added since.
        """
        readline, update, pipe = self._stream.readline, self._hash.update, self._pipe
        kept, paused = b"", time.monotonic()  # kept: the start of a line whose rest has not come yet
        ahead = deque(cuts)
        with _translated():
            while True:
                if not kept:
                    start = self._bytes
                block = readline(min(MAX_LINE, ahead[0] - self._bytes) if ahead else MAX_LINE)
                update(block)
                self._bytes += len(block)
                text = block if kept else block.lstrip(b"\x00")
                if pipe and time.monotonic() - paused > _PAUSE_SECONDS:
                    yield None
                    paused = time.monotonic()
                whole = block[-1:] == b"\n"
                if ahead and self._bytes == ahead[0]:
                    ahead.popleft()
                elif not whole and (len(block) == MAX_LINE or (pipe and not pipe.ended)):
                    kept = (kept + text)[:MAX_LINE]
                    continue
                torn, self._torn = self._torn, not whole
                if torn and text in (b"\n", b"\r\n"):
                    continue  # it ends the line before, which went out without it
                if kept:
                    text, kept = (kept + text)[:MAX_LINE], b""
                if not block and not text:
                    return
                self._lines += 1
                self.line_start = start
                yield text

    def first(self, count: int) -> list[bytes]:
        """Return the first lines that are not blank, read apart; of a pipe those that its first bytes hold."""
        found: list[bytes] = []
        file: BinaryIO = io.BytesIO(self._pipe.head) if self._pipe else self._path.open("rb")
        try:
            with file, _decompressed(file, _peek(file)) as stream:
                while len(found) < count and (line := stream.readline(MAX_LINE)):
                    if decode(line)[0]:
                        found.append(line)
        except (EOFError, OSError, zlib.error, zstandard.ZstdError):
            pass  # a pipe's first bytes end anywhere; a broken file is reported when it is read in earnest
        return found

    def last(self) -> tuple[list[bytes], int]:
        """Return the last lines of a file, and its bytes, decompressed: a compressed file is read whole for them."""
        with _translated(), self._path.open("rb") as file, _decompressed(file, _peek(file)) as stream:
            size, blocks = 0, deque[bytes](maxlen=2)
            if stream is file:
                size = file.seek(-min(_TAIL_BYTES, self._path.stat().st_size), os.SEEK_END)
            while block := stream.read(_TAIL_BYTES):
                size += len(block)
                blocks.append(block)
        return b"".join(blocks).splitlines(), size

    def note(self) -> str:
        """Return what to tell about the file once it was read; '' when there is nothing."""
        raw = getattr(self._stream, "raw", None)
        if isinstance(raw, _Gzip) and raw.has_garbage:
            return "what follows the compressed data in the file is no gzip: left out"
        return ""

    def close(self) -> None:
        self._file.close()


class _Pipe(io.RawIOBase):
    """Standard input. With `pauses` a read of it gives up after a second of silence."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.head = self._unread = os.read(descriptor, _BUFFER)
        self.ended = not self.head
        self.pauses = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._unread:
            count = min(len(buffer), len(self._unread))
            buffer[:count], self._unread = self._unread[:count], self._unread[count:]
            return count
        if self.pauses and not select.select([self._descriptor], [], [], _PAUSE_SECONDS)[0]:
            return None
        count = os.readv(self._descriptor, [buffer])
        self.ended = not count
        return count


class _Gzip(gzip.GzipFile):
    """Gives what there is before it fails; GzipFile's own readinto would keep back what a broken file still has.

    What follows the last member and is none is left out, as the gzip command does.
    """

    has_garbage = False

    def readinto(self, buffer: Any) -> int:
        try:
            return 0 if self.has_garbage else self.readinto1(buffer)
        except gzip.BadGzipFile as error:
            # The first member has a right head (_decompressed looks at it), so this is behind a whole member.
            if not str(error).startswith("Not a gzipped file"):
                raise
            self.has_garbage = True
            return 0


def another_file(lines: int) -> str:
    return (
        f"the first {lines} lines were sent before, and have changed since: this is another file; if the log was"
        " rotated, go on with the rotated file first (logpipe send --resume ROTATED), then with this one; else send it"
        " without --resume"
    )


def decode(line: bytes, *, keep_blanks: bool = False) -> tuple[str, bool]:
    """Return the text of a line, and whether it is UTF-8; what is not is taken for Latin-1.

    The text has no colours, no byte order mark, no NUL characters in front (the hole that a writer leaves whose file
    was truncated under it), and without `keep_blanks` no blanks at its end.
    """
    line = line.lstrip(b"\x00").removeprefix(_BOM)
    try:
        text, is_utf8 = line.decode(), True
    except UnicodeDecodeError:
        text, is_utf8 = line.decode("latin-1"), False
    return without_colours(text).rstrip("\r\n" if keep_blanks else " \t\r\n"), is_utf8


def without_colours(text: str) -> str:
    return _COLOUR.sub("", text) if "\x1b" in text else text


def _peek(file: BinaryIO) -> bytes:
    head = file.read(len(_ZSTD))
    file.seek(0)
    return head


def _decompressed(file: BinaryIO, head: bytes) -> BinaryIO:
    if head.startswith(_UTF16):
        raise Malformed("the file is UTF-16; send it by: iconv -f utf-16 -t utf-8 FILE | logpipe send -")
    raw: Any
    if head.startswith(_GZIP):
        raw = _Gzip(fileobj=file)
    elif head.startswith(_ZSTD):
        raw = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    else:
        return file
    return cast(BinaryIO, io.BufferedReader(raw, _BUFFER))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise Malformed(f"the compressed file is broken: {error}") from error
