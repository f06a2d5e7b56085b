"""Decompresses request bodies in chunks."""

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from backports.zstd import ZstdDecompressor, ZstdError
from fastapi import Request

from services.core.errors import Malformed, TooLarge, UnsupportedMedia, shown

CHUNK_BYTES = 256 << 10
"""A body is decompressed this many bytes at a time."""

_MOST_MEMBERS = 1000  # of a compressed body: each needs a new decompressor
_INPUT_BYTES = 64 << 10  # passed to the decompressor at a time, because zlib copies the unread input after each chunk


def encoding_of(request: Request) -> str:
    """Return identity, gzip or zstd. Raises UnsupportedMedia."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_DECOMPRESSORS):
        raise UnsupportedMedia(f"Content-Encoding {shown(encoding)!r} is not known; send identity, gzip or zstd")
    return encoding


def chunks_of(body: bytes, encoding: str, limit: int) -> Iterator[bytes]:
    """Yield the decompressed body in chunks of at most CHUNK_BYTES, each decompressed when the caller takes it.

    Raises Malformed, or TooLarge once there are more than `limit` bytes.
    """
    chunks = _cut(body, CHUNK_BYTES) if encoding == "identity" else _decompressed(body, encoding)
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the decompressed body has more than {limit} bytes: send several requests")
        yield chunk


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


def _decompressed(body: bytes, encoding: str) -> Iterator[bytes]:
    make = _DECOMPRESSORS[encoding]
    member, members = make(), 1
    held, room = list[bytes](), CHUNK_BYTES
    try:
        for data in _cut(body, _INPUT_BYTES):
            rest, full = data, False
            while rest or full:
                if member.eof:
                    member, members = make(), members + 1
                    if members > _MOST_MEMBERS:
                        raise Malformed(f"the {encoding} body has more than {_MOST_MEMBERS} members")
                held.append(member.decompress(rest, room))
                room -= len(held[-1])
                full = not room and not member.eof  # then the decompressor may return more bytes without more input
                rest = member.unused_data if member.eof else getattr(member, "unconsumed_tail", b"")
                if not room:
                    yield b"".join(held)
                    held, room = [], CHUNK_BYTES
        yield b"".join(held)
    except (zlib.error, ZstdError) as error:
        raise Malformed(f"the body is not valid {encoding}: {error}") from error
    if not member.eof:
        raise Malformed(f"the {encoding} body ends too early")


def _cut(body: bytes, size: int) -> Iterator[bytes]:
    return (body[start : start + size] for start in range(0, len(body), size))
