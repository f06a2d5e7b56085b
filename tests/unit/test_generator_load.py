"""The client and the load against an ingest API that answers as told: every row's fate is counted, none sent twice."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import repeat

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services import datasets
from services.core.rows import RowCodec
from services.generator.fates import settle
from services.generator.load import MAX_REQUESTS, Load
from services.ingest_client.client import IngestClient

LOGS, EVENTS = datasets.find("logs"), datasets.find("events")
CODECS = {d.plural: RowCodec(d) for d in (LOGS, EVENTS)}
BODY = b'{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","service":"s"}\n'

Answer = Callable[["FakeIngest", web.Request, str, bytes], Awaitable[web.StreamResponse]]


class FakeIngest:
    """Stores by key as the real one does; `script` says how the next requests are answered, then all is well."""

    def __init__(self) -> None:
        self.url = ""
        self.script: Iterator[Answer] = iter(())
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, float]] = []  # key, when
        self.headers: list[dict[str, str]] = []
        self.rows = 0
        self.in_flight = 0
        self.max_in_flight = 0

    async def collect(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            body = await request.read()
            key = request.headers["Idempotency-Key"]
            self.requests.append((key, time.monotonic()))
            self.headers.append(dict(request.headers))
            return await next(self.script, store)(self, request, key, body)
        finally:
            self.in_flight -= 1


async def store(ingest: FakeIngest, request: web.Request, key: str, body: bytes) -> web.StreamResponse:
    rows = CODECS[request.match_info["plural"]].decode_lines(body).count
    duplicate = key in ingest.stored
    assert ingest.stored.setdefault(key, body) == body
    ingest.rows += 0 if duplicate else rows
    return web.json_response({"status": "accepted", "count": rows, "duplicate": duplicate})


def answer(status: int, **headers: str) -> Answer:
    async def refuse(ingest: FakeIngest, request: web.Request, key: str, body: bytes) -> web.StreamResponse:
        return web.json_response({"detail": "as told"}, status=status, headers=headers)

    return refuse


async def hang_up(ingest: FakeIngest, request: web.Request, key: str, body: bytes) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def store_and_hang_up(ingest: FakeIngest, request: web.Request, key: str, body: bytes) -> web.StreamResponse:
    await store(ingest, request, key, body)
    return await hang_up(ingest, request, key, body)


async def never(ingest: FakeIngest, request: web.Request, key: str, body: bytes) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.Response()


def slow(seconds: float) -> Answer:
    async def wait(ingest: FakeIngest, request: web.Request, key: str, body: bytes) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await store(ingest, request, key, body)

    return wait


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the fake has no event for each condition
            await asyncio.sleep(0.005)


@pytest.fixture
async def ingest() -> AsyncIterator[FakeIngest]:
    fake = FakeIngest()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/api/collect/{plural}", fake.collect)
    async with TestServer(app, shutdown_timeout=0.1) as server:
        fake.url = str(server.make_url(""))
        yield fake


@pytest.fixture
async def client(ingest: FakeIngest) -> AsyncIterator[IngestClient]:
    """Waits so long that a busy machine does not change an outcome."""
    async with IngestClient(ingest.url, token="secret", stall=2.0, patience=60.0) as client:
        yield client


@pytest.fixture
async def impatient(ingest: FakeIngest) -> AsyncIterator[IngestClient]:
    async with IngestClient(ingest.url, token="secret", stall=0.3, patience=1.0) as client:
        yield client


async def test_acked(ingest: FakeIngest, client: IngestClient) -> None:
    outcome = await settle(client, LOGS, BODY, "k1")
    assert (outcome.fate, outcome.attempts) == ("acked", 1)
    assert ingest.stored == {"k1": BODY}
    assert ingest.headers[0]["Content-Type"] == "application/x-ndjson"
    assert ingest.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [400, 401, 413, 422])
async def test_refused_at_once(ingest: FakeIngest, client: IngestClient, status: int) -> None:
    ingest.script = iter([answer(status)])
    outcome = await settle(client, LOGS, BODY, "k")
    assert (outcome.fate, outcome.attempts) == ("refused", 1)
    assert outcome.detail.startswith(f"{status}: ")
    assert "as told" in outcome.detail


@pytest.mark.parametrize(
    "first", [answer(503), answer(500), answer(409), hang_up, store_and_hang_up, never], ids=lambda a: a.__name__
)
async def test_in_doubt_is_settled_under_the_same_key(ingest: FakeIngest, client: IngestClient, first: Answer) -> None:
    ingest.script = iter([first, first])
    outcome = await settle(client, LOGS, BODY, "k")
    assert (outcome.fate, outcome.attempts) == ("acked", 3)
    assert [key for key, _ in ingest.requests] == ["k"] * 3
    assert ingest.rows == 1


async def test_retry_after_is_honoured(ingest: FakeIngest, client: IngestClient) -> None:
    ingest.script = iter([answer(503, **{"Retry-After": "0.4"})])
    assert (await settle(client, LOGS, BODY, "k")).fate == "acked"
    (_, first), (_, second) = ingest.requests
    assert 0.4 <= second - first < 30


async def test_overload_that_lasts_is_refused(ingest: FakeIngest, impatient: IngestClient) -> None:
    ingest.script = repeat(answer(503, **{"Retry-After": "0"}))
    outcome = await settle(impatient, LOGS, BODY, "k")
    assert outcome.fate == "refused"
    assert 2 < outcome.attempts < 25  # not as fast as it can


@pytest.mark.parametrize("always", [answer(503), answer(409), hang_up, never], ids=lambda a: a.__name__)
async def test_doubt_that_lasts_is_indeterminate(ingest: FakeIngest, impatient: IngestClient, always: Answer) -> None:
    ingest.script = repeat(always)
    assert (await settle(impatient, LOGS, BODY, "k")).fate == "indeterminate"


async def test_doubt_is_not_forgotten(ingest: FakeIngest, impatient: IngestClient) -> None:
    overloaded = answer(503, **{"Retry-After": "0.2"})
    ingest.script = iter([store_and_hang_up, *[overloaded] * 20])
    assert (await settle(impatient, LOGS, BODY, "k")).fate == "indeterminate"


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with IngestClient(f"http://127.0.0.1:{taken.getsockname()[1]}", patience=0.2) as client:
            outcome = await settle(client, LOGS, BODY, "k")
    assert outcome.fate == "refused"
    assert outcome.attempts > 1


async def test_large_bodies(ingest: FakeIngest, client: IngestClient) -> None:
    body = BODY * 40_000
    assert len(body) > 2 << 20
    ingest.script = iter([answer(503)])
    async with IngestClient(client.url) as patient:
        assert (await settle(patient, LOGS, body, "k")).fate == "acked"
    assert ingest.rows == 40_000


async def test_a_load_sends_what_was_asked(ingest: FakeIngest, client: IngestClient) -> None:
    load = Load.at_rate(client, EVENTS, rate=5000, seconds=0.5, request_rows=300, seed=9)
    started = time.monotonic()
    report = await load.run()
    assert time.monotonic() - started > 0.45  # the schedule, not as fast as it can
    assert (report.acked, report.refused, report.indeterminate, report.seed) == (2500, 0, 0, 9)
    assert ingest.rows == 2500
    assert len(ingest.stored) == 9  # 8 of 300, 1 of 100
    assert 0 <= report.p50_ms <= report.p99_ms
    assert load.behind() == 0.0


async def test_each_row_has_one_fate(ingest: FakeIngest, client: IngestClient) -> None:
    ingest.script = iter([answer(422), store, store_and_hang_up, *[answer(422)] * 2, hang_up])
    report = await Load(client, LOGS, 10, 0.0, rows=95).run()
    assert (report.acked, report.refused, report.indeterminate) == (ingest.rows, 95 - ingest.rows, 0)
    assert report.refused >= 25
    assert report.problem.startswith("422: ")


async def test_a_stall_is_caught_up_and_told(ingest: FakeIngest) -> None:
    ingest.script = iter([slow(2.0)] * (MAX_REQUESTS + 5))
    async with IngestClient(ingest.url) as client:
        load = Load(client, LOGS, 1, 0.002, rows=200)
        running = asyncio.create_task(load.run())
        await until(lambda: load.behind() >= 0.05 and ingest.max_in_flight == MAX_REQUESTS)
        report = await running
    assert ingest.max_in_flight == MAX_REQUESTS
    assert (report.acked, ingest.rows) == (200, 200)
    assert report.max_behind_ms >= 50
    assert report.p99_ms > 2000  # counts from when it was due


async def test_stop_settles_what_is_under_way(ingest: FakeIngest, client: IngestClient) -> None:
    ingest.script = iter([slow(0.1)] * 1000)
    load = Load(client, LOGS, 10, 0.01)
    running = asyncio.create_task(load.run())
    await until(lambda: len(ingest.requests) >= 5)
    load.stop()
    report = await running
    assert report.acked == ingest.rows >= 50
    assert report.refused == report.indeterminate == 0


async def test_stop_before_it_ran(client: IngestClient) -> None:
    load = Load(client, LOGS, 10, 0.01)
    load.stop()
    assert (await load.run()).acked == 0


async def test_cancelled_rows_are_indeterminate(ingest: FakeIngest) -> None:
    ingest.script = repeat(never)
    async with IngestClient(ingest.url) as client:
        load = Load(client, LOGS, 10, 0.0, rows=30)
        running = asyncio.create_task(load.run())
        await until(lambda: len(ingest.requests) >= 3)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (load.tally.acked, load.tally.indeterminate) == (0, 30)
