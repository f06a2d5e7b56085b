"""Reads and decompresses the body of a request to the embedded ClickHouse, within limits of size and of time."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lz4.frame
from backports import zstd
from starlette.requests import Request

from services.core.errors import Backpressure, RequestTimeout, TooLarge
from services.local.clickhouse_errors import (
    BAD_ARGUMENTS,
    SOCKET_TIMEOUT,
    TOO_MANY_BYTES,
    TOO_MANY_QUERIES,
    QueryError,
)
from services.runtime import request_bodies
from services.runtime.request_bodies import Reservation

MAX_BODY_BYTES = 256 << 20
"""Of one body, as it was sent and decompressed: eight times what stream_to_store sends at once by default."""

MAX_IN_FLIGHT_BYTES = 512 << 20
"""Of all bodies of the process, as they were sent and decompressed."""

_CHUNK_BYTES = 1 << 20  # decompressed at a time


async def read(request: Request, reservation: Reservation) -> bytes:
    """Return the body as it was sent. Raises QueryError as soon as the body is too large, too slow or too much."""
    with _translated():
        if int(request.headers.get("content-length", 0)) > MAX_BODY_BYTES:
            raise TooLarge
        return await request_bodies.read(request, reservation, MAX_BODY_BYTES)


def decoded(body: bytes, encoding: str, reserve: Callable[[int], None]) -> bytes:
    """Decompress all frames of the body: clickhouse-connect sends one frame per block of rows. Raises QueryError.

    `reserve` is called with the size of each chunk, and raises Backpressure if there is no room for the chunk.
    """
    if encoding in ("", "identity"):
        return body
    chunks, size = [], 0
    with _translated():
        try:
            with _opened(body, encoding) as frames:
                while chunk := frames.read(_CHUNK_BYTES):
                    size += len(chunk)
                    if size > MAX_BODY_BYTES:
                        raise TooLarge
                    reserve(len(chunk))
                    chunks.append(chunk)
        except (OSError, EOFError, RuntimeError, zlib.error, zstd.ZstdError) as error:
            raise QueryError(f"cannot decompress the body: {error}", BAD_ARGUMENTS) from error
    return b"".join(chunks)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TooLarge as error:
        raise QueryError(
            f"the body has more than {MAX_BODY_BYTES} bytes: send the rows in several inserts", TOO_MANY_BYTES
        ) from error
    except RequestTimeout as error:
        raise QueryError(str(error), SOCKET_TIMEOUT) from error
    except Backpressure as error:
        raise QueryError(str(error), TOO_MANY_QUERIES) from error


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
