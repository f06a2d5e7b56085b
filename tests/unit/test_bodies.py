"""Bodies of requests: what a small compressed body may cost, and that no chunk is taken before it is claimed."""

import asyncio
import gc
import gzip
import json
import random
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import cast

import pytest
import zstandard
from fastapi import Request

from services.core import row_chunks
from services.core.errors import Backpressure, InvalidRow, Malformed, TooLarge
from services.core.rows import RowCodec
from services.datasets import find
from services.ingest_api import bodies, decoding, memory_trimmer
from services.ingest_api.bodies import CHUNK_BYTES, chunks_of
from services.ingest_api.decoding import INLINE_BYTES, MOST_WAITING, ROW_BYTES, TURNS_BYTES, BodyFormat, Decoder
from services.runtime import request_bodies
from services.runtime.request_bodies import InFlight, Reservation

CODEC = RowCodec(find("logs"))
LINES = BodyFormat(CODEC.decode_lines, row_chunks.decode_lines)
LINE = json.dumps({"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "auth"}).encode() + b"\n"
MANY = LINE * (4 * INLINE_BYTES // len(LINE))
LIMIT = 64 << 20
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress, "identity": bytes}


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_body_comes_back_in_chunks(encoding: str, size: int) -> None:
    body = random.Random(size).randbytes(size)
    chunks = list(chunks_of(PACK[encoding](body), encoding, LIMIT))
    assert b"".join(chunks) == body
    assert max(map(len, chunks), default=0) <= CHUNK_BYTES


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_members_are_read_one_after_the_other_and_a_cut_one_is_refused(encoding: str) -> None:
    pack = PACK[encoding]
    members = b"".join(pack(b"%d," % n) for n in range(bodies._MOST_MEMBERS))
    assert list(chunks_of(members, encoding, LIMIT)) == [b"".join(b"%d," % n for n in range(bodies._MOST_MEMBERS))]
    with pytest.raises(Malformed, match="members"):
        list(chunks_of(members + pack(b"x"), encoding, LIMIT))
    for cut in (b"", pack(MANY)[:-3], members[:-3]):
        with pytest.raises(Malformed, match="too early"):
            list(chunks_of(cut, encoding, LIMIT))


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_decompression_ends_at_the_limit(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = PACK[encoding](bytes(64 << 20))
    made = 0
    original = bodies._decompressed

    def counted(body: bytes, encoding: str) -> Iterator[bytes]:
        nonlocal made
        for chunk in original(body, encoding):
            made += len(chunk)
            yield chunk

    monkeypatch.setattr(bodies, "_decompressed", counted)
    with pytest.raises(TooLarge, match="decompressed"):
        list(chunks_of(bomb, encoding, 1 << 20))
    assert made <= (1 << 20) + CHUNK_BYTES


async def decoded(body: bytes, encoding: str, reservation: Reservation, *, hashed: bool = False) -> decoding.Decoded:
    reservation.add(len(body))
    return await Decoder().decode(body, encoding, LINES, reservation, LIMIT, hashed=hashed)


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("body", [LINE * 3, MANY], ids=["small", "large"])
async def test_the_claim_ends_as_what_the_rows_take(encoding: str, body: bytes) -> None:
    reservation = Reservation(InFlight(LIMIT * 4))
    found = await decoded(PACK[encoding](body), encoding, reservation, hashed=True)
    assert (found.count, found.size) == (body.count(b"\n"), len(body))
    assert found.body_hash == (await decoded(body, "identity", Reservation(InFlight(LIMIT * 4)), hashed=True)).body_hash
    assert reservation.bytes == len(body) + found.count * ROW_BYTES


async def test_a_bomb_beside_others_is_refused_before_it_is_decompressed() -> None:
    in_flight = InFlight(8 << 20)
    with in_flight.reserve() as other:
        other.add(5 << 20)
        with in_flight.reserve() as reservation, pytest.raises(Backpressure):
            await decoded(gzip.compress(MANY), "gzip", reservation)
        assert reservation.bytes == 0
    in_flight.refuse_if_full(8 << 20)  # all was given back


async def test_a_bomb_of_white_space_is_refused_after_the_bytes_of_one_row() -> None:
    reservation = Reservation(InFlight(LIMIT * 4))
    with pytest.raises(InvalidRow):
        await decoded(gzip.compress(b" " * LIMIT), "gzip", reservation)
    assert reservation.peak < row_chunks.MAX_WIRE_ROW


async def test_an_error_late_in_a_large_body_names_its_row() -> None:
    body = zlib.compress(MANY + b"{}\n", wbits=31)
    with pytest.raises(InvalidRow) as refused:
        await decoded(body, "gzip", Reservation(InFlight(LIMIT * 4)))
    assert refused.value.index == MANY.count(b"\n")


async def test_a_body_does_not_wait_for_the_whole_of_larger_bodies() -> None:
    decoder, in_flight, ended = Decoder(), InFlight(LIMIT * 4), list[str]()
    bomb = gzip.compress(LINE * (6 * TURNS_BYTES // len(LINE)) + b"{}\n")

    async def decode(name: str, body: bytes, encoding: str) -> None:
        with in_flight.reserve() as reservation, suppress(InvalidRow):
            await decoder.decode(body, encoding, LINES, reservation, LIMIT, hashed=False)
        ended.append(name)

    await asyncio.gather(*[decode("bomb", bomb, "gzip") for _ in range(4)], decode("body", MANY, "identity"))
    assert ended == ["body", *["bomb"] * 4]


async def test_one_body_at_a_time_goes_beyond_its_turns() -> None:
    decoder, in_flight = Decoder(), InFlight(LIMIT * 4)
    body = LINE * (8 * TURNS_BYTES // len(LINE))
    peaks = list[int]()

    async def decode() -> None:
        with in_flight.reserve() as reservation:
            await decoder.decode(gzip.compress(body), "gzip", LINES, reservation, LIMIT, hashed=False)
            peaks.append(in_flight.bytes - reservation.bytes)  # of the other body

    await asyncio.gather(decode(), decode())
    assert min(peaks) == 0
    assert max(peaks) < len(body)


async def test_too_many_bodies_that_wait_for_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "TURNS_BYTES", 2 * CHUNK_BYTES)
    decoder, body = Decoder(), gzip.compress(MANY)

    async def decode() -> int:
        with InFlight(LIMIT).reserve() as reservation:
            return (await decoder.decode(body, "gzip", LINES, reservation, LIMIT, hashed=False)).count

    found = await asyncio.gather(*[decode() for _ in range(MOST_WAITING + 3)], return_exceptions=True)
    refused = [error for error in found if isinstance(error, Backpressure)]
    assert len(refused) == 2
    assert "wait to be decoded" in str(refused[0])
    assert [count for count in found if count not in refused] == [MANY.count(b"\n")] * (MOST_WAITING + 1)
    assert await decode() == MANY.count(b"\n")


async def test_a_large_body_is_held_in_chunks_that_are_freed_one_by_one() -> None:
    found = await decoded(MANY, "identity", Reservation(InFlight(LIMIT * 4)))
    assert found.count == MANY.count(b"\n")
    assert max(rows.count for rows in found.chunks) <= CHUNK_BYTES // len(LINE) + 1
    assert not [column for rows in found.chunks for column in rows.columns if gc.is_tracked(column)]


async def test_memory_is_given_back_while_no_large_request_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back, waits = asyncio.Queue[None](), asyncio.Queue[float]()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(memory_trimmer, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(memory_trimmer, "_LAST_SECONDS", 0.04)
    monkeypatch.setattr(
        memory_trimmer.Trimmer, "_give_back", lambda self: loop.call_soon_threadsafe(given_back.put_nowait, None)
    )

    class Watched(memory_trimmer.Trimmer):
        def _schedule(self, seconds: float) -> None:
            waits.put_nowait(seconds)
            super()._schedule(seconds)

    with ThreadPoolExecutor(1) as thread:
        in_flight = InFlight(LIMIT)
        in_flight.request_ended = Watched(thread, in_flight).request_ended
        for size in (1, memory_trimmer.TRIM_BYTES - 1):
            with in_flight.reserve() as reservation:
                reservation.add(size)
        assert waits.empty()
        async with asyncio.timeout(60):
            with in_flight.reserve() as other:
                other.add(memory_trimmer.TRIM_BYTES)
                for _ in range(3):
                    with in_flight.reserve() as reservation:
                        reservation.add(memory_trimmer.TRIM_BYTES)
                        reservation.resize(1)
                assert [await waits.get() for _ in range(9)] == [0.01] * 9
                assert given_back.empty()
            while await waits.get() < 0.04:
                await given_back.get()
            await given_back.get()
        await asyncio.sleep(0.1)
    assert given_back.empty()
    assert waits.empty()


class Slow:
    """A request whose body sends a chunk whenever the test says so."""

    def __init__(self) -> None:
        self.chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self.was_read = asyncio.Event()

    async def stream(self) -> AsyncIterator[bytes]:
        while True:
            yield await self.chunks.get()
            self.was_read.set()


@pytest.fixture
async def slow_body(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[InFlight, Slow, asyncio.Task[bytes]]]:
    """A body that came too slowly, with the only bytes in flight: the next request ends it."""
    monkeypatch.setattr(request_bodies, "GRACE_SECONDS", -1.0)
    in_flight, slow = InFlight(1000), Slow()
    with in_flight.reserve() as reservation:
        reading = asyncio.create_task(request_bodies.read(cast(Request, slow), reservation, LIMIT))
        slow.chunks.put_nowait(b"x" * 900)
        await slow.was_read.wait()
        yield in_flight, slow, reading


async def test_two_requests_that_are_refused_at_once_get_backpressure(
    slow_body: tuple[InFlight, Slow, asyncio.Task[bytes]],
) -> None:
    in_flight, _, reading = slow_body
    for _ in range(2):
        with pytest.raises(Backpressure):
            in_flight.refuse_if_full(200)
        await asyncio.sleep(0)  # the time limit of the slow body takes effect, and its task has not run yet
    with pytest.raises(Backpressure, match="needed its place"):
        await reading


async def test_a_body_that_was_ended_does_not_go_on_with_a_chunk_that_was_there(
    slow_body: tuple[InFlight, Slow, asyncio.Task[bytes]],
) -> None:
    in_flight, slow, reading = slow_body
    slow.chunks.put_nowait(b"x")
    with pytest.raises(Backpressure):
        in_flight.refuse_if_full(200)
    with pytest.raises(Backpressure, match="needed its place"):
        await asyncio.wait_for(reading, 5)
