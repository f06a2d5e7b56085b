"""From a request body to its rows. A large body is decompressed and decoded off the event loop, a chunk at a time.

Every chunk is a step of its own in one thread, so that other requests are answered meanwhile, and no more memory is
taken than was claimed before. The chunks are never joined: one call that copies or frees a million rows stops the
whole process for a third of a second.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import xxhash

from services.core.row_chunks import Decode
from services.core.rows import Rows
from services.ingest_api.bodies import CHUNK_BYTES, Claim, chunks_of

INLINE_BYTES = 1 << 20
"""A decompressed body of at most this size is decoded on the event loop: it takes some milliseconds."""

ROW_BYTES = 160
"""What a decoded row counts besides its text: a full body of the shortest rows then fits into what may be in flight."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows lie in a body: `decode` reads a small body, and `decode_chunks` a large one by means of it."""

    decode: Decode
    decode_chunks: Callable[[Iterator[bytes], Decode], Iterator[tuple[Rows, int]]]


@dataclass(frozen=True, slots=True)
class Decoded:
    """`body_hash` is that of the decompressed body, b"" when it was not asked for; `size` is its bytes.

    Each of `chunks` has rows. The consumer of the rows of a large body removes them one by one (see `free`).
    """

    chunks: list[Rows]
    size: int
    body_hash: bytes

    @property
    def count(self) -> int:
        return sum(rows.count for rows in self.chunks)


class Decoder:
    """Decodes one large body after the other in its thread; belongs to one event loop.

    A second large body at the same time would gain nothing, and hold twice the memory for twice the time.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._turn = asyncio.Lock()

    async def decode(
        self, body: bytes, encoding: str, layout: Layout, claim: Claim, limit: int, *, hashed: bool
    ) -> Decoded:
        """The rows of a body whose bytes `claim` has; afterwards `claim` has what the rows take.

        Raises TooLarge, Malformed, InvalidRow or Backpressure.
        """
        if encoding == "identity" and len(body) <= INLINE_BYTES:  # what most requests are
            rows = layout.decode(body)
            claim.take(rows.count * ROW_BYTES)
            return Decoded(_some(rows), len(body), xxhash.xxh3_128_digest(body) if hashed else b"")
        hasher = xxhash.xxh3_128() if hashed else None
        chunks = _hashing(chunks_of(body, encoding, limit), hasher)
        begun, ended = _begin(body, encoding, chunks, claim)
        if ended:
            text = b"".join(begun)
            decoded, size = _some(layout.decode(text)), len(text)
        else:
            async with self._turn:
                decoded, size = await self._decode_large(layout, chain(begun, chunks), claim)
        found = Decoded(decoded, size, hasher.digest() if hasher else b"")
        claim.resize(size + found.count * ROW_BYTES)
        return found

    async def _decode_large(self, layout: Layout, chunks: Iterator[bytes], claim: Claim) -> tuple[list[Rows], int]:
        """The rows in chunks, and the bytes of their text."""
        loop = asyncio.get_running_loop()
        received, decoded, size, count = claim.bytes, list[Rows](), 0, 0
        steps = layout.decode_chunks(chunks, layout.decode)
        try:
            while True:
                claim.resize(received + size + count * ROW_BYTES + CHUNK_BYTES)
                step = await loop.run_in_executor(self.thread, _next, steps)
                if step is None:
                    return decoded, size
                size += step[1]
                count += step[0].count
                decoded += _some(step[0])
        except BaseException:
            self.thread.submit(free, decoded)
            raise


def _begin(body: bytes, encoding: str, chunks: Iterator[bytes], claim: Claim) -> tuple[list[bytes], bool]:
    """The chunks of a body that is small once it is decompressed, and True; else the first chunks, and False."""
    if encoding == "identity" or len(body) > INLINE_BYTES:
        return [], False
    claim.take(INLINE_BYTES + CHUNK_BYTES)
    begun, size = [], 0
    for chunk in chunks:
        begun.append(chunk)
        size += len(chunk)
        if size > INLINE_BYTES:
            return begun, False
    return begun, True


def free(chunks: list[Rows]) -> None:
    """Free one chunk after the other: nothing else runs in the process while a million rows are freed at once."""
    while chunks:
        chunks.pop()


def _next(steps: Iterator[tuple[Rows, int]]) -> tuple[Rows, int] | None:
    step = next(steps, None)
    return step and (step[0].unvisited(), step[1])


def _some(rows: Rows) -> list[Rows]:
    return [rows] if rows.count else []


def _hashing(chunks: Iterator[bytes], hasher: xxhash.xxh3_128 | None) -> Iterator[bytes]:
    for chunk in chunks:
        if hasher is not None:
            hasher.update(chunk)
        yield chunk
