"""Reading a request body: bounded in size, in time, in all bytes in flight, and after decompression.

A body may take as long as it needs on a slow link, if it keeps coming: the time that it has grows with each byte.
"""

import asyncio
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from backports.zstd import ZstdDecompressor, ZstdError
from fastapi import Request

from services.core import metric_names
from services.core.errors import Backpressure, Malformed, RequestTimeout, TooLarge, UnsupportedMedia
from services.runtime import metrics

BODY_SECONDS = 30
"""A body may take this long, and a second more for each BODY_BYTES_PER_SECOND that have arrived."""
BODY_BYTES_PER_SECOND = 1024
_MEMBERS = 1000  # of a compressed body: each is found by copying all that follows
_ASIDE_BYTES = 1 << 20  # larger bodies are decompressed in a thread, so that other requests go on

Take = Callable[[int], None]


class InFlight:
    """Counts the body bytes being worked on; refuses early and cheaply beyond a bound."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._gauge = metrics.gauge(metric_names.BYTES_IN_FLIGHT)

    def check(self, count: int) -> None:
        """Raises Backpressure when `count` bytes more would be too many; one request alone never is."""
        if self._bytes and self._bytes + count > self._limit:
            raise Backpressure(f"{self._bytes} bytes are being worked on; at most {self._limit} at once")

    @contextmanager
    def reserve(self) -> Iterator[Take]:
        """Yields `take(n)`, which claims n bytes more or raises Backpressure; all are given back at the end."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._bytes > mine:
                self.check(count)
            mine += count
            self._bytes += count
            self._gauge.set(self._bytes)

        try:
            yield take
        finally:
            self._bytes -= mine
            self._gauge.set(self._bytes)


async def read(request: Request, take: Take, limit: int) -> bytes:
    """The decoded body. Raises TooLarge, RequestTimeout, Backpressure, UnsupportedMedia or Malformed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_DECOMPRESSORS):
        raise UnsupportedMedia(f"Content-Encoding {encoding!r} is not known; send identity, gzip or zstd")
    chunks, size = [], 0
    try:
        started = asyncio.get_running_loop().time()
        async with asyncio.timeout(BODY_SECONDS) as deadline:
            async for chunk in request.stream():
                size += len(chunk)
                deadline.reschedule(started + BODY_SECONDS + size / BODY_BYTES_PER_SECOND)
                if size > limit:
                    raise TooLarge(f"the body has more than {limit} bytes: send several requests")
                take(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise RequestTimeout(
            f"{size} bytes of the body arrived in time; at least {BODY_BYTES_PER_SECOND} a second are expected after"
            f" the first {BODY_SECONDS} s"
        ) from error
    body = b"".join(chunks)
    if encoding == "identity":
        return body
    if size < _ASIDE_BYTES:
        decoded = _decompress(body, limit, encoding)
    else:
        decoded = await asyncio.to_thread(_decompress, body, limit, encoding)
    take(len(decoded))
    return decoded


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": lambda: zlib.decompressobj(wbits=31),
    "zstd": ZstdDecompressor,
}


def _decompress(body: bytes, limit: int, encoding: str) -> bytes:
    decoded = bytearray()
    for _ in range(_MEMBERS):
        member = _DECOMPRESSORS[encoding]()
        try:
            decoded += member.decompress(body, limit + 1 - len(decoded))
        except (zlib.error, ZstdError) as error:
            raise Malformed(f"the body is not valid {encoding}: {error}") from error
        if len(decoded) > limit:
            raise TooLarge(f"the decompressed body has more than {limit} bytes: send several requests")
        if not member.eof:
            raise Malformed(f"the {encoding} body ends too early")
        body = member.unused_data
        if not body:
            return bytes(decoded)
    raise Malformed(f"the {encoding} body has more than {_MEMBERS} members")
