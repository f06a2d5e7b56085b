"""Bodies of requests to the embedded ClickHouse: every encoding, and the bound."""

import asyncio
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
from services.runtime import request_bodies
from services.runtime.request_bodies import InFlight, Reservation

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


def unlimited() -> Reservation:
    return Reservation(InFlight(1 << 30))


async def read_and_decoded(body: bytes, encoding: str, reservation: Reservation) -> bytes:
    await read(request(len(body), None)[0], reservation)
    return decoded(body, encoding, reservation.add)


def reserve(size: int) -> None:
    """There is always room."""


async def test_a_body_is_read_up_to_the_bound() -> None:
    body = await read(request(BOUND, None)[0], unlimited())
    assert len(body) == BOUND
    endless, received = request(50 * BOUND, None)
    with pytest.raises(QueryError, match="more than 100000 bytes") as raised:
        await read(endless, unlimited())
    assert (raised.value.code, raised.value.status) == (307, 413)
    assert sum(received) == BOUND + 1000
    announced, received = request(BOUND + 1, b"%d" % (BOUND + 1))
    with pytest.raises(QueryError):
        await read(announced, unlimited())
    assert not received


async def test_a_body_that_stops_arriving_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_bodies, "BODY_SECONDS", 0.05)

    async def nothing() -> Message:
        await asyncio.sleep(60)
        raise AssertionError

    with pytest.raises(QueryError, match="0 bytes of the body arrived in time") as raised:
        await read(Request({"type": "http", "headers": []}, nothing), unlimited())
    assert (raised.value.code, raised.value.status) == (209, 408)


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_bodies_in_flight_are_bounded_as_sent_and_decompressed(encoding: str) -> None:
    in_flight = InFlight(BOUND)
    body = COMPRESS[encoding](bytes(BOUND // 2))
    with in_flight.reserve() as other, in_flight.reserve() as reservation:
        other.add(BOUND // 2 + 1)
        with pytest.raises(QueryError, match="bytes are being worked on") as raised:
            await read_and_decoded(body, encoding, reservation)
        assert (raised.value.code, raised.value.status) == (202, 503)
    with in_flight.reserve() as reservation:
        assert await read_and_decoded(body, encoding, reservation) == bytes(BOUND // 2)
        assert reservation.bytes >= BOUND // 2
    assert in_flight.bytes == 0


def test_a_damaged_gzip_body_is_refused() -> None:
    damaged = bytearray(COMPRESS["gzip"](b"hello"))
    damaged[10] = 0xFF  # the type of the first deflate block
    with pytest.raises(QueryError, match="cannot decompress the body") as raised:
        decoded(bytes(damaged), "gzip", reserve)
    assert raised.value.status == 400


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_body_is_decompressed_up_to_the_bound(encoding: str) -> None:
    frames = COMPRESS[encoding](bytes(BOUND - 5)) + COMPRESS[encoding](b"hello")
    assert decoded(frames, encoding, reserve) == bytes(BOUND - 5) + b"hello"


@pytest.mark.parametrize("encoding", ["lz4", "gzip", "zstd"])
def test_a_body_that_grows_beyond_the_bound_is_refused(encoding: str) -> None:
    with pytest.raises(QueryError, match="more than 100000 bytes"):
        decoded(COMPRESS[encoding](bytes(BOUND + 1)), encoding, reserve)


@pytest.mark.parametrize("encoding", ["lz4", "gzip", "zstd"])
def test_a_body_that_is_no_compressed_data_is_refused(encoding: str) -> None:
    for body in (b"no compressed data", COMPRESS[encoding](bytes(999))[:-9]):
        with pytest.raises(QueryError, match="cannot decompress") as raised:
            decoded(body, encoding, reserve)
        assert raised.value.status == 400


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(QueryError, match="unknown Content-Encoding 'br'"):
        decoded(b"", "br", reserve)
