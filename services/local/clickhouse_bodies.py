"""Reads and decompresses the body of a request to the embedded ClickHouse, up to a bound."""

import gzip
import io
import zlib
from typing import Any

import lz4.frame
from backports import zstd
from starlette.requests import Request

from services.local.clickhouse_errors import BAD_ARGUMENTS, TOO_MANY_BYTES, QueryError

MAX_BODY_BYTES = 256 << 20
"""Of one body, as it was sent and decompressed: eight times what stream_to_store sends at once by default."""


async def read(request: Request) -> bytes:
    """Return the body as it was sent. Raises QueryError as soon as the body is too large."""
    _check_size(int(request.headers.get("content-length", 0)))
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        _check_size(size)
        chunks.append(chunk)
    return b"".join(chunks)


def decoded(body: bytes, encoding: str) -> bytes:
    """Decompress all frames of the body: clickhouse-connect sends one frame per block of rows. Raises QueryError."""
    if encoding in ("", "identity"):
        return body
    try:
        with _opened(body, encoding) as frames:
            text: bytes = frames.read(MAX_BODY_BYTES + 1)
    except (OSError, EOFError, RuntimeError, zlib.error, zstd.ZstdError) as error:
        raise QueryError(f"cannot decompress the body: {error}", BAD_ARGUMENTS) from error
    _check_size(len(text))
    return text


def _opened(body: bytes, encoding: str) -> Any:
    compressed = io.BytesIO(body)
    match encoding:
        case "lz4":
            return lz4.frame.open(compressed)
        case "gzip":
            return gzip.open(compressed)
        case "zstd":
            return zstd.open(compressed)
    raise QueryError(f"unknown Content-Encoding {encoding!r}", BAD_ARGUMENTS)


def _check_size(size: int) -> None:
    if size > MAX_BODY_BYTES:
        raise QueryError(
            f"the body has more than {MAX_BODY_BYTES} bytes: send the rows in several inserts", TOO_MANY_BYTES
        )
