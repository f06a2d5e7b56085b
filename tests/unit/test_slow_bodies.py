"""A body on a slow link is taken while it keeps coming; a body that trickles is not."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import Request

from services.core.errors import Backpressure, RequestTimeout
from services.runtime import request_bodies
from services.runtime.request_bodies import InFlight

ALLOWED = 0.8  # seconds of a body without bytes, in these tests


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_bodies, "BODY_SECONDS", ALLOWED)


def request(pieces: list[bytes], pause: float, paused: list[float]) -> Request:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            await asyncio.sleep(pause)
            paused.append(pause)
            yield piece

    return cast(Request, SimpleNamespace(headers={}, stream=stream))


def read(pieces: list[bytes], pause: float, paused: list[float]) -> Any:
    with InFlight(1 << 20).reserve() as reservation:
        return asyncio.run(request_bodies.read(request(pieces, pause, paused), reservation, 1 << 20))


def test_a_body_that_keeps_coming_may_take_longer_than_one_that_does_not() -> None:
    paused: list[float] = []
    assert read([b"x" * 1024] * 10, ALLOWED / 2, paused) == b"x" * 10_240
    assert sum(paused) > 4 * ALLOWED


def test_a_body_that_came_fast_may_not_pause_for_long() -> None:
    with pytest.raises(RequestTimeout, match="without a pause"):
        read([b"x" * 10_240, b"x"], ALLOWED * 1.5, [])


def test_a_body_that_trickles_is_refused() -> None:
    with pytest.raises(RequestTimeout, match="bytes of the body arrived in time; at least 1024 a second"):
        read([b"x"] * 100, ALLOWED / 4, [])


def test_the_slowest_body_is_ended_when_another_would_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_bodies, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(request_bodies, "BODY_SECONDS", 60)

    async def crowd() -> list[bytes | BaseException]:
        in_flight, go_on, begun = InFlight(30_000), asyncio.Event(), asyncio.Semaphore(0)

        async def one(begins: bytes, ends: bytes) -> bytes:
            async def stream() -> AsyncIterator[bytes]:
                yield begins
                begun.release()
                await go_on.wait()
                yield ends

            with in_flight.reserve() as reservation:
                return await request_bodies.read(cast(Request, SimpleNamespace(stream=stream)), reservation, 30_000)

        slow = asyncio.create_task(one(b"x" * 1000, b"x"))
        fast = asyncio.create_task(one(b"x" * 10_000, b"x" * 10_000))
        for _ in range(2):
            await begun.acquire()
        refused = asyncio.create_task(one(b"x" * 20_000, b""))
        await asyncio.wait([refused, slow])
        go_on.set()
        return list(await asyncio.gather(slow, fast, refused, return_exceptions=True))

    slow, fast, refused = asyncio.run(crowd())
    assert isinstance(slow, Backpressure)
    assert "slowly" in str(slow)
    assert fast == b"x" * 20_000
    assert isinstance(refused, Backpressure)
