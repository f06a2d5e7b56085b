"""Decodes request bodies into rows. A large body is decompressed and decoded in a thread, one chunk at a time.

Other requests are served between two chunks, and the memory for a chunk is claimed before it is decoded. The chunks
are never joined: one call that copies or frees a million rows stops the whole process for a third of a second.
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
"""A decompressed body of at most this size is decoded on the event loop, because it takes only some milliseconds."""

ROW_BYTES = 160
"""The bytes that a decoded row counts for beside its text. With this number, a full body of the shortest rows fits into
the limit of bytes in flight."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a body contains rows: `decode` decodes a small body, and `decode_chunks` a large one, with `decode`."""

    decode: Decode
    decode_chunks: Callable[[Iterator[bytes], Decode], Iterator[tuple[Rows, int]]]


@dataclass(frozen=True, slots=True)
class Decoded:
    """`size`: the bytes of the decompressed body. `body_hash`: the hash of these bytes, b"" if it was not asked for.

    Each of `chunks` has rows. The consumer of the rows of a large body removes them one by one (see `free`).
    """

    chunks: list[Rows]
    size: int
    body_hash: bytes

    @property
    def count(self) -> int:
        return sum(rows.count for rows in self.chunks)


class Decoder:
    """Decodes large bodies one after the other in its thread. Used by one event loop.

    Two large bodies at the same time would take twice the memory for twice the time.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._turn = asyncio.Lock()

    async def decode(
        self, body: bytes, encoding: str, layout: Layout, claim: Claim, limit: int, *, hashed: bool
    ) -> Decoded:
        """Return the rows of a body. `claim` has the bytes of the body, and afterwards the bytes of its rows.

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
        """Return the rows in chunks, and the number of bytes of their text."""
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
    """Return all chunks of the body and True if the decompressed body is small, else its first chunks and False."""
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
    """Free the chunks one by one, because nothing else runs in the process while a million rows are freed at once."""
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
