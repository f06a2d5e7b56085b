"""Bodies of requests to the embedded ClickHouse: every encoding, and the bound."""

import gzip
from collections.abc import AsyncIterator, Callable

import lz4.frame
import pytest
import zstandard
from starlette.requests import Request
from starlette.types import Message

from services.local import clickhouse_bodies
from services.local.clickhouse_bodies import decoded, read
from services.local.clickhouse_errors import QueryError

BOUND = 100_000
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "lz4": lz4.frame.compress,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.fixture(autouse=True)
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clickhouse_bodies, "MAX_BODY_BYTES", BOUND)


def request(size: int, announced: bytes | None) -> tuple[Request, list[int]]:
    """A request whose body comes in chunks of 1,000 bytes, and the numbers of bytes that were received of it."""
    received: list[int] = []

    async def chunks() -> AsyncIterator[Message]:
        for start in range(0, size, 1000):
            received.append(min(1000, size - start))
            yield {"type": "http.request", "body": bytes(received[-1]), "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    headers = [] if announced is None else [(b"content-length", announced)]
    return Request({"type": "http", "headers": headers}, chunks().__anext__), received


async def test_a_body_is_read_up_to_the_bound() -> None:
    body = await read(request(BOUND, None)[0])
    assert len(body) == BOUND
    endless, received = request(50 * BOUND, None)
    with pytest.raises(QueryError, match="more than 100000 bytes") as raised:
        await read(endless)
    assert (raised.value.code, raised.value.status) == (307, 413)
    assert sum(received) == BOUND + 1000
    announced, received = request(BOUND + 1, b"%d" % (BOUND + 1))
    with pytest.raises(QueryError):
        await read(announced)
    assert not received


def test_a_damaged_gzip_body_is_refused() -> None:
    damaged = bytearray(COMPRESS["gzip"](b"hello"))
    damaged[10] = 0xFF  # the type of the first deflate block
    with pytest.raises(QueryError, match="cannot decompress the body") as raised:
        decoded(bytes(damaged), "gzip")
    assert raised.value.status == 400


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_body_is_decompressed_up_to_the_bound(encoding: str) -> None:
    frames = COMPRESS[encoding](bytes(BOUND - 5)) + COMPRESS[encoding](b"hello")
    assert decoded(frames, encoding) == bytes(BOUND - 5) + b"hello"


@pytest.mark.parametrize("encoding", ["lz4", "gzip", "zstd"])
def test_a_body_that_grows_beyond_the_bound_is_refused(encoding: str) -> None:
    with pytest.raises(QueryError, match="more than 100000 bytes"):
        decoded(COMPRESS[encoding](bytes(BOUND + 1)), encoding)


@pytest.mark.parametrize("encoding", ["lz4", "gzip", "zstd"])
def test_a_body_that_is_no_compressed_data_is_refused(encoding: str) -> None:
    for body in (b"no compressed data", COMPRESS[encoding](bytes(999))[:-9]):
        with pytest.raises(QueryError, match="cannot decompress") as raised:
            decoded(body, encoding)
        assert raised.value.status == 400


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(QueryError, match="unknown Content-Encoding 'br'"):
        decoded(b"", "br")
