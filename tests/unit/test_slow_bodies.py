"""A body on a slow link is taken while it keeps coming; a body that trickles is not."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import Request

from services.core.errors import RequestTimeout
from services.ingest_api import bodies
from services.ingest_api.bodies import InFlight

ALLOWED = 0.2  # seconds of a body without bytes, in these tests


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", ALLOWED)


def request(pieces: list[bytes], pause: float, paused: list[float]) -> Request:
    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            await asyncio.sleep(pause)
            paused.append(pause)
            yield piece

    return cast(Request, SimpleNamespace(headers={}, stream=stream))


def read(pieces: list[bytes], pause: float, paused: list[float]) -> Any:
    with InFlight(1 << 20).reserve() as claim:
        return asyncio.run(bodies.read(request(pieces, pause, paused), claim, 1 << 20))


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
