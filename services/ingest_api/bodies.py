"""Reading a request body: bounded in size, in all bytes in flight, and after decompression."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zstandard
from fastapi import Request

from services.core import metric_names
from services.core.errors import Backpressure, Malformed, TooLarge, UnsupportedMedia
from services.runtime import metrics

_CHUNK = 1 << 20


class InFlight:
    """Counts the body bytes being worked on; refuses early and cheaply beyond a bound."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._gauge = metrics.gauge(metric_names.BYTES_IN_FLIGHT)

    @contextmanager
    def reserve(self) -> Iterator[Callable[[int], None]]:
        """Yields `take(n)`, which claims n bytes more or raises Backpressure; all are given back at the end."""
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self._bytes + count > self._limit and self._bytes > mine:
                raise Backpressure(f"{self._bytes} bytes are being worked on; at most {self._limit} at once")
            mine += count
            self._bytes += count
            self._gauge.set(self._bytes)

        try:
            yield take
        finally:
            self._bytes -= mine
            self._gauge.set(self._bytes)


async def read(request: Request, take: Callable[[int], None], limit: int) -> bytes:
    """The decoded body. Raises TooLarge, Backpressure, UnsupportedMedia or Malformed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in _DECODERS:
        raise UnsupportedMedia(f"Content-Encoding {encoding!r} is not known; send {', '.join(_DECODERS)}")
    announced = int(request.headers.get("content-length", 0))
    if announced > limit:
        raise TooLarge(f"the body has {announced} bytes; at most {limit} are accepted: send several requests")
    take(announced)
    chunks, size = [], 0
    async for chunk in request.stream():
        if not chunk:
            continue
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body has more than {limit} bytes: send several requests")
        if size > announced:
            take(size - max(announced, size - len(chunk)))
        chunks.append(chunk)
    body = b"".join(chunks)
    if encoding == "identity":
        return body
    decoded = _DECODERS[encoding](body, limit)
    take(len(decoded))
    return decoded


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the decompressed body has more than {limit} bytes: send several requests")


def _gunzip(body: bytes, limit: int) -> bytes:
    decoded = bytearray()
    while body:  # a gzip file may have several members
        member = zlib.decompressobj(wbits=31)
        try:
            decoded += member.decompress(body, limit + 1 - len(decoded))
        except zlib.error as error:
            raise Malformed(f"the body is not valid gzip: {error}") from error
        if len(decoded) > limit:
            raise _too_large(limit)
        if not member.eof:
            raise Malformed("the gzip body ends too early")
        body = member.unused_data
    return bytes(decoded)


def _unzstd(body: bytes, limit: int) -> bytes:
    decoded = bytearray()
    try:
        with zstandard.ZstdDecompressor().stream_reader(body, read_across_frames=True) as reader:
            while chunk := reader.read(_CHUNK):
                decoded += chunk
                if len(decoded) > limit:
                    raise _too_large(limit)
    except zstandard.ZstdError as error:
        raise Malformed(f"the body is not valid zstd: {error}") from error
    return bytes(decoded)


def _identity(body: bytes, limit: int) -> bytes:
    return body


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {"identity": _identity, "gzip": _gunzip, "zstd": _unzstd}
