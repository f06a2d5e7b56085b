"""Decodes request bodies into rows. A large body is decompressed and decoded in a thread, one chunk at a time.

Other requests are served between two chunks, and the memory for a chunk is reserved before it is decoded. The chunks
are never joined: one call that copies or frees a million rows stops the whole process for a third of a second.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import chain

import xxhash

from services.core.errors import Backpressure
from services.core.row_chunks import Decode
from services.core.rows import Rows
from services.ingest_api.bodies import CHUNK_BYTES, chunks_of
from services.runtime.request_bodies import Reservation

INLINE_BYTES = 1 << 20
"""A decompressed body of at most this size is decoded on the event loop, because it takes only some milliseconds."""

TURNS_BYTES = 4 << 20
"""The first bytes of a large body that are decoded in turns with other bodies, one chunk at a time.

Only one body at a time goes beyond them. So a body of up to this size never waits for the whole of a larger body.
"""

MOST_WAITING = 8
"""Bodies that wait until no other body is decoded beyond its TURNS_BYTES. Their decoded rows take memory meanwhile."""

ROW_BYTES = 160
"""The bytes that are reserved for a decoded row beside its text. With this number, a body of the greatest size with the
shortest rows fits into the limit of bytes in flight."""


@dataclass(frozen=True, slots=True)
class BodyFormat:
    """How rows are written in a body: `decode` decodes a small body, and `decode_chunks` a large one by `decode`."""

    decode: Decode
    decode_chunks: Callable[[Iterator[bytes], Decode], Iterator[tuple[Rows, int]]]


@dataclass(frozen=True, slots=True)
class Decoded:
    """The rows of a body. No chunk is empty. The caller removes the chunks of a large body one by one (see `free`).

    `size`: the bytes of the decompressed body. `body_hash`: the hash of these bytes, b"" if no hash was wanted.
    """

    chunks: list[Rows]
    size: int
    body_hash: bytes

    @property
    def count(self) -> int:
        return sum(rows.count for rows in self.chunks)


class Decoder:
    """Decodes large bodies in its thread, the first TURNS_BYTES of each in turns. Used by one event loop.

    What follows is decoded one body after the other: two bodies at the same time would take twice the memory for
    twice the time.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._one_at_a_time = asyncio.Lock()
        self._waiting = 0

    async def decode(
        self, body: bytes, encoding: str, body_format: BodyFormat, reservation: Reservation, limit: int, *, hashed: bool
    ) -> Decoded:
        """Return the rows of a body. `reservation` holds the bytes of the body, and afterwards those of the rows.

        Raises TooLarge, Malformed, InvalidRow or Backpressure.
        """
        if encoding == "identity" and len(body) <= INLINE_BYTES:  # most bodies
            rows = body_format.decode(body)
            reservation.add(rows.count * ROW_BYTES)
            return Decoded(_without_empty(rows), len(body), xxhash.xxh3_128_digest(body) if hashed else b"")
        hasher = xxhash.xxh3_128() if hashed else None
        chunks = _hashing(chunks_of(body, encoding, limit), hasher)
        first, is_small = _first_chunks(body, encoding, chunks, reservation)
        if is_small:
            text = b"".join(first)
            row_chunks, size = _without_empty(body_format.decode(text)), len(text)
        else:
            row_chunks, size = await self._decode_large(body_format, chain(first, chunks), reservation)
        decoded = Decoded(row_chunks, size, hasher.digest() if hasher else b"")
        reservation.resize(size + decoded.count * ROW_BYTES)
        return decoded

    async def _decode_large(
        self, body_format: BodyFormat, chunks: Iterator[bytes], reservation: Reservation
    ) -> tuple[list[Rows], int]:
        """Return the rows in chunks, and the number of bytes of their text."""
        loop = asyncio.get_running_loop()
        received, decoded, size, count = reservation.bytes, list[Rows](), 0, 0
        steps = body_format.decode_chunks(chunks, body_format.decode)
        async with AsyncExitStack() as alone:
            try:
                while True:
                    reservation.resize(received + size + count * ROW_BYTES + CHUNK_BYTES)
                    step = await loop.run_in_executor(self.thread, _next, steps)
                    if step is None:
                        return decoded, size
                    if size <= TURNS_BYTES < size + step[1]:
                        await alone.enter_async_context(self._alone())
                    size += step[1]
                    count += step[0].count
                    decoded += _without_empty(step[0])
            except BaseException:
                self.thread.submit(free, decoded)
                raise

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Wait until no other body is decoded beyond its turns. Raises Backpressure if too many bodies wait already."""
        if self._waiting >= MOST_WAITING:
            raise Backpressure(
                f"{self._waiting} bodies of more than {TURNS_BYTES} bytes wait to be decoded: send smaller bodies"
            )
        self._waiting += 1
        try:
            await self._one_at_a_time.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._one_at_a_time.release()


def _first_chunks(
    body: bytes, encoding: str, chunks: Iterator[bytes], reservation: Reservation
) -> tuple[list[bytes], bool]:
    """Return all chunks of the body and True if the decompressed body is small, else its first chunks and False."""
    if encoding == "identity" or len(body) > INLINE_BYTES:
        return [], False
    reservation.add(INLINE_BYTES + CHUNK_BYTES)
    first, size = [], 0
    for chunk in chunks:
        first.append(chunk)
        size += len(chunk)
        if size > INLINE_BYTES:
            return first, False
    return first, True


def free(chunks: list[Rows]) -> None:
    """Free the chunks one by one: to free a million rows at once would stop all other work of the process."""
    while chunks:
        chunks.pop()


def _next(steps: Iterator[tuple[Rows, int]]) -> tuple[Rows, int] | None:
    step = next(steps, None)
    return step and (step[0].hidden_from_gc(), step[1])


def _without_empty(rows: Rows) -> list[Rows]:
    return [rows] if rows.count else []


def _hashing(chunks: Iterator[bytes], hasher: xxhash.xxh3_128 | None) -> Iterator[bytes]:
    for chunk in chunks:
        if hasher is not None:
            hasher.update(chunk)
        yield chunk
