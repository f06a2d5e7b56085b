"""What replies of the ingest API mean, and which of them the client repeats."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from services.core.backoff import Backoff
from services.core.errors import (
    Backpressure,
    Conflict,
    Invalid,
    InvalidRow,
    KeyReused,
    LogpipeError,
    Malformed,
    NeedsOperator,
    NotFound,
    OtherLedger,
    RequestTimeout,
    StoreDown,
    TooLarge,
    Unauthorized,
    Undelivered,
    Unreachable,
    UnsupportedMedia,
)
from services.datasets import find
from services.ingest_client import client, retrying
from services.ingest_client.client import IngestClient
from services.ingest_client.replies import Accepted, accepted, error_of
from services.ingest_client.retrying import retried

ROW = InvalidRow(3, "level", "is not one of the levels")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "BACKOFF", Backoff(0.001, 2.0))


def reply(error: LogpipeError, **extra: object) -> bytes:
    """The problem document that the ingest API sends for `error`."""
    return msgspec.json.encode({"title": error.title, "status": error.status, "detail": str(error), **extra})


@pytest.mark.parametrize(
    "error",
    [
        Malformed("not JSON"),
        Unauthorized("send the header"),
        NotFound("no such route"),
        RequestTimeout("too slow"),
        Conflict("still running"),
        OtherLedger("another ledger"),
        TooLarge("too many bytes"),
        UnsupportedMedia("not known"),
        Invalid("no rows"),
        KeyReused("another body"),
        StoreDown("ledger", "not reachable"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_ingest_is_the_same_error_in_the_client(error: LogpipeError) -> None:
    translated = error_of(error.status, None, reply(error))
    assert type(translated) is type(error)
    assert str(error) in str(translated)


def test_a_refused_row_is_named() -> None:
    translated = error_of(422, None, reply(ROW, index=ROW.index, field=ROW.field))
    assert isinstance(translated, InvalidRow)
    assert (translated.index, translated.field, translated.reason) == (ROW.index, ROW.field, ROW.reason)


@pytest.mark.parametrize(
    ("status", "retry_after", "kind"),
    [(503, "2.5", Backpressure), (429, None, Backpressure), (503, None, StoreDown), (500, None, StoreDown)],
)
def test_the_pause_that_ingest_names(status: int, retry_after: str | None, kind: type[LogpipeError]) -> None:
    translated = error_of(status, retry_after, b"<html>a proxy's page</html>")
    assert type(translated) is kind
    assert "a proxy's page" in str(translated)
    if isinstance(translated, Backpressure):
        assert translated.retry_after == float(retry_after or 1)


def test_a_pause_that_is_a_date_is_a_second() -> None:
    translated = error_of(503, "Wed, 21 Oct 2026 07:28:00 GMT", b"")
    assert isinstance(translated, Backpressure)
    assert translated.retry_after == 1


def test_a_reply_that_is_not_from_ingest() -> None:
    assert accepted(b'{"status":"accepted","duplicate":true,"batch_id":7}') == Accepted(True, 7)
    assert accepted(b'{"status":"accepted"}') == Accepted(False, 0)
    for content in (b"<html>", b"[]", b'{"duplicate":"no"}'):
        with pytest.raises(LogpipeError, match="not a reply of the ingest API"):
            accepted(content)
    assert type(error_of(302, None, b"")) is LogpipeError


async def attempts(*outcomes: LogpipeError | bool, patience: float = 5) -> tuple[Any, list[LogpipeError]]:
    """The result or the error, and the failures that were repeated."""
    script: Iterator[LogpipeError | bool] = iter(outcomes)
    repeated: list[LogpipeError] = []

    async def attempt() -> bool:
        outcome = next(script)
        if isinstance(outcome, LogpipeError):
            raise outcome
        return outcome

    try:
        return await retried(attempt, patience, repeated.append), repeated
    except LogpipeError as error:
        return error, repeated


@pytest.mark.parametrize(
    ("failure", "in_doubt"),
    [
        (Unreachable("ingest", "refused"), False),
        (RequestTimeout("too slow"), False),
        (Backpressure("full", 0), False),
        (Conflict("still running"), True),
        (StoreDown("ingest", "connection lost"), True),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_is_repeated_and_what_it_leaves_in_doubt(failure: LogpipeError, in_doubt: bool) -> None:
    assert await attempts(failure, failure, True) == (True, [failure, failure])
    error, repeated = await attempts(failure, patience=0)
    assert isinstance(error, Undelivered)
    assert (error.in_doubt, repeated) == (in_doubt, [])


@pytest.mark.parametrize("failure", [ROW, KeyReused("another body"), TooLarge("many"), NeedsOperator("stop")])
async def test_what_is_not_repeated(failure: LogpipeError) -> None:
    assert await attempts(failure) == (failure, [])


async def test_patience_counts_from_the_first_failure() -> None:
    started: list[float] = []

    async def slow() -> bool:
        started.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.3)
        if len(started) == 1:
            raise StoreDown("ingest", "connection lost")
        return True

    assert await retried(slow, patience=0.2)
    assert len(started) == 2


Reader = Callable[[asyncio.StreamReader], Coroutine[Any, Any, None]]
BODY = b"x" * (2 << 20)


@asynccontextmanager
async def listening(read: Reader, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The URL of a server that takes bodies as `read` does, with small buffers between it and the client."""
    monkeypatch.setattr(client, "_SEND_BUFFER", 16 << 10)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await read(reader)
        content = b'{"status":"accepted"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
        await writer.drain()
        writer.close()

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        listener.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(serve, sock=listener, limit=32 << 10)
        async with server:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_body_that_moves_may_take_longer_than_the_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly(reader: asyncio.StreamReader) -> None:
        for _ in range(64):
            await asyncio.sleep(0.02)
            await reader.readexactly(len(BODY) // 64)

    async with listening(slowly, monkeypatch) as url, IngestClient(url, patience=0, stall=0.5) as sender:
        started = time.monotonic()
        assert not (await sender.send(find("logs"), BODY, "k")).duplicate
        assert time.monotonic() - started > 1


async def test_a_body_that_moved_and_stands_still_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    held = asyncio.Event()

    async def in_part(reader: asyncio.StreamReader) -> None:
        await reader.readexactly(len(BODY) // 2)
        await held.wait()

    async with listening(in_part, monkeypatch) as url, IngestClient(url, patience=0, stall=0.4) as sender:
        with pytest.raises(Undelivered, match=r"no progress for 0\.4 s") as given_up:
            await asyncio.wait_for(sender.send(find("logs"), BODY, "k"), 20)
        held.set()
    assert given_up.value.in_doubt
