"""Decodes request bodies into rows. A large body is decompressed and decoded in a thread, one chunk at a time.

Other requests are served between two chunks, and the memory for a chunk is claimed before it is decoded.
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
    """`size`: the bytes of the decompressed body. `body_hash`: the hash of these bytes, b"" if it was not asked for."""

    rows: Rows
    size: int
    body_hash: bytes


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
            return Decoded(rows, len(body), xxhash.xxh3_128_digest(body) if hashed else b"")
        hasher = xxhash.xxh3_128() if hashed else None
        chunks = _hashing(chunks_of(body, encoding, limit), hasher)
        begun, ended = _begin(body, encoding, chunks, claim)
        if ended:
            text = b"".join(begun)
            rows, size = layout.decode(text), len(text)
        else:
            async with self._turn:
                rows, size = await self._decode_large(layout, chain(begun, chunks), claim)
        claim.resize(size + rows.count * ROW_BYTES)
        return Decoded(rows, size, hasher.digest() if hasher else b"")

    async def _decode_large(self, layout: Layout, chunks: Iterator[bytes], claim: Claim) -> tuple[Rows, int]:
        """Return the rows, and the number of bytes of their text."""
        loop = asyncio.get_running_loop()
        received, rows, size, count = claim.bytes, list[Rows](), 0, 0
        steps = layout.decode_chunks(chunks, layout.decode)
        try:
            while True:
                claim.resize(received + size + count * ROW_BYTES + CHUNK_BYTES)
                step = await loop.run_in_executor(self.thread, next, steps, None)
                if step is None:
                    break
                size += step[1]
                count += step[0].count
                if step[0].count:
                    rows.append(step[0])
            return (await loop.run_in_executor(self.thread, Rows.joined, rows) if rows else Rows(0, [])), size
        finally:
            self.thread.submit(_drop, rows)


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


def _drop(rows: list[Rows]) -> None:
    """Free the chunks one by one, because nothing else runs in the process while a million rows are freed at once."""
    while rows:
        rows.pop()


def _hashing(chunks: Iterator[bytes], hasher: xxhash.xxh3_128 | None) -> Iterator[bytes]:
    for chunk in chunks:
        if hasher is not None:
            hasher.update(chunk)
        yield chunk
