"""The middleware of request footprints in an app, with a producer in memory."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from prometheus_client import REGISTRY
from request_footprints import Counts, FootprintMiddleware, counting, counts
from request_footprints.producer import ProducerFailed
from request_footprints.sender import LOG_INTERVAL
from request_footprints.settings import Settings
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, Response

from tests.footprint_apps import Client, Recorded, respond
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def service(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name of the test's own, by which it finds its counts. Its thread ends with the test."""
    name = request.node.name
    yield name
    for each in list(_recorders(name)):
        each.close()


def _recorders(service: str) -> Iterator[Any]:
    return (each for each in list(counting._all) if each.service == service)


@pytest.fixture
def app(recorded: Recorded, service: str) -> FastAPI:
    app = FastAPI()
    app.add_middleware(FootprintMiddleware, service=service, open_producer=recorded)
    router = APIRouter()

    @router.get("/items/{item}")
    async def item(item: str) -> str:
        return item

    @app.get("/fails")
    async def fails() -> None:
        raise RuntimeError("a bug")

    @app.get("/stream")
    async def stream(fail: bool = False) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x"
            if fail:
                raise RuntimeError("a bug in a stream")

        return StreamingResponse(chunks())

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await request.body())

    app.include_router(router, prefix="/api")
    mounted = FastAPI()
    mounted.include_router(router)
    app.mount("/mounted", mounted)
    return app


async def test_a_request_becomes_one_message(app: FastAPI, recorded: Recorded, service: str) -> None:
    before = datetime.now().astimezone()
    assert await Client(app).get("/api/items/7", method="HEAD") == 405
    assert await Client(app).get("/api/items/7") == 200
    _, footprint = recorded.wait_for(2)
    at = datetime.fromisoformat(footprint.pop("footprint_time"))
    assert at.utcoffset() == timedelta(hours=9)
    assert before <= at <= datetime.now().astimezone()
    assert 0 < footprint.pop("duration_ms") < 240_000
    assert footprint == {
        "method": "GET",
        "link": "/api/items/7",
        "status": 200,
        "route": "/api/items/{item}",
        "service": service,
    }
    assert [key for key, _ in recorded.messages] == [b"/api/items/7"] * 2


async def test_query_strings_headers_and_addresses_are_not_recorded(app: FastAPI, recorded: Recorded) -> None:
    await Client(app).get("/api/items/7")
    recorded.wait_for_one()
    assert not any(secret in repr(recorded.messages) for secret in ("secret", "192.0.2.7", "1234"))


@pytest.mark.parametrize(
    ("path", "status", "route"),
    [
        ("/mounted/items/7", 200, "/mounted/items/{item}"),
        ("/nothing/here", 404, None),
        ("/body", 405, "/body"),
    ],
)
async def test_the_route_is_the_template(
    app: FastAPI, recorded: Recorded, path: str, status: int, route: str | None
) -> None:
    assert await Client(app).get(path) == status
    footprint = recorded.wait_for_one()
    assert (footprint["link"], footprint["status"], footprint.get("route")) == (path, status, route)


async def test_an_exception_goes_on_and_is_recorded_as_500(app: FastAPI, recorded: Recorded) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        await Client(app).get("/fails")
    assert recorded.wait_for_one()["status"] == 500


async def test_a_stream_reaches_the_client_whole(app: FastAPI, recorded: Recorded) -> None:
    client = Client(app)
    assert await client.get("/stream") == 200
    assert b"".join(message.get("body", b"") for message in client.sent) == b"x" * 100
    assert recorded.wait_for_one()["status"] == 200


async def test_a_stream_that_fails_is_recorded_as_500(app: FastAPI, recorded: Recorded) -> None:
    client = Client(app)
    with pytest.raises(RuntimeError, match="a bug in a stream"):
        await client.get("/stream", query_string=b"fail=1")
    assert client.sent[0]["status"] == 200
    assert recorded.wait_for_one()["status"] == 500


async def test_what_happens_after_the_response_does_not_count(app: FastAPI, recorded: Recorded) -> None:
    @app.get("/later")
    async def later() -> Response:
        async def task() -> None:
            await asyncio.sleep(0.3)
            raise RuntimeError("a bug after the response")

        return PlainTextResponse("soon", background=BackgroundTask(task))

    with pytest.raises(RuntimeError, match="after the response"):
        await Client(app).get("/later")
    footprint = recorded.wait_for_one()
    assert footprint["status"] == 200
    assert footprint["duration_ms"] < 300


async def test_web_sockets_pass_and_are_not_recorded(app: FastAPI, recorded: Recorded, service: str) -> None:
    @app.websocket("/socket")
    async def socket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    sent: list[Any] = []

    async def connect() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/socket", "headers": [], "query_string": b"", "root_path": ""}
    async with Client(app).running():
        await app(scope, connect, send)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert recorded.messages == []
    assert counts(service) == Counts()


async def test_a_client_that_left_before_the_response_is_recorded_as_499(recorded: Recorded, service: str) -> None:
    async def reads_the_body(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()

    async def leave() -> Any:
        return {"type": "http.disconnect"}

    middleware = FootprintMiddleware(reads_the_body, service=service, open_producer=recorded)
    with pytest.raises(Exception, match=r"^$") as raised:
        await Client(middleware).get("/body", leave)
    assert type(raised.value).__name__ == "ClientDisconnect"
    assert recorded.wait_for_one()["status"] == 499


@pytest.mark.parametrize(("began", "status"), [(False, 499), (True, 200)])
async def test_a_cancelled_request_is_recorded(recorded: Recorded, service: str, began: bool, status: int) -> None:
    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        if began:
            await send({"type": "http.response.start", "status": 200})
        await asyncio.sleep(3600)

    request = asyncio.create_task(
        Client(FootprintMiddleware(hangs, service=service, open_producer=recorded)).get("/slow")
    )
    await asyncio.sleep(0.05)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert recorded.wait_for_one()["status"] == status


async def test_long_paths_are_cut_and_marked(recorded: Recorded, service: str) -> None:
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded, max_link=10))
    for path in ("/123456789", "/1234567890", "/" + "가" * 64_000, "/" + "a" * 300_000):
        await client.get(path)
    links = [footprint["link"] for footprint in recorded.wait_for(4)]
    assert links == ["/123456789", "/12345678…", "/가가가가가가가가…", "/aaaaaaaa…"]
    assert [key.decode() for key, _ in recorded.messages] == links


async def test_a_long_path_does_not_stay_in_the_queue(service: str) -> None:
    """A path of 300 KB for each of 10,000 waiting requests would be 3 GB."""
    recorded = Recorded(is_reachable=False)
    middleware = FootprintMiddleware(respond, service=service, open_producer=recorded, queue=1, flush_seconds=0)
    await Client(middleware).get("/" + "a" * 300_000)
    note = middleware._recorder._notes[0]
    assert sum(len(part) for part in note if isinstance(part, str)) < 3000


async def test_the_prefix_of_a_mount_is_its_template(recorded: Recorded, service: str) -> None:
    app, outer, inner = FastAPI(), FastAPI(), FastAPI()
    app.add_middleware(FootprintMiddleware, service=service, open_producer=recorded)

    @inner.get("/x")
    @outer.get("/x")
    @outer.get("/" + "y" * 300)
    async def x() -> None:
        pass

    outer.mount("/in/{part}", inner)
    app.mount("/{tenant}", outer)
    paths = ("/a/x", "/a/in/b/x", "/" + "T" * 60_000 + "/x", "/a/" + "y" * 300)
    for path in paths:
        assert await Client(app).get(path) == 200
    found = [each["route"] for each in recorded.wait_for(4)]
    assert found == ["/{tenant}/x", "/{tenant}/in/{part}/x", "…/x", "/{tenant}/" + "y" * 245 + "…"]
    assert max(len(value) for _, value in recorded.messages) < 2_000


async def test_ten_thousand_waiting_notes_take_less_than_100_mb(service: str) -> None:
    app, mounted = FastAPI(), FastAPI()
    app.mount("/{tenant}", mounted)
    recorded = Recorded(is_reachable=False)
    middleware = FootprintMiddleware(app, service=service, open_producer=recorded, flush_seconds=0)
    notes: list[Any] = []
    middleware._recorder.record = notes.append  # type: ignore[method-assign, assignment]
    for number in range(100):
        tenant = f"/{number}" + "😀" * 2_100
        await Client(middleware).get(tenant + "/x", method="M" * 50_000, root_path="")
        await Client(middleware).get("/" + "가" * 2_100, root_path="/r" * 2_000)
    shared = (type(None), type(app.router), dict, FastAPI)
    size = sum(
        sys.getsizeof(note) + sum(sys.getsizeof(part) for part in note if not isinstance(part, shared))
        for note in notes
    )
    assert size / len(notes) * 10_000 < 100_000_000


@pytest.mark.parametrize("path", ["/\udcff\udc80", "/a\x00b", "/\x1b[31m"])
async def test_a_path_that_no_store_can_hold_is_replaced_where_it_must_be(
    recorded: Recorded, service: str, path: str
) -> None:
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded))
    await client.get(path)
    link = recorded.wait_for_one()["link"]
    assert link.startswith("/")
    assert "\N{REPLACEMENT CHARACTER}" in link
    assert link.encode().decode().replace("\N{REPLACEMENT CHARACTER}", "").isprintable()


async def test_a_request_without_some_fields_passes(recorded: Recorded, service: str) -> None:
    async def send(message: Any) -> None:
        pass

    middleware = FootprintMiddleware(respond, service=service, open_producer=recorded)
    await middleware({"type": "http"}, respond, send)  # type: ignore[arg-type]
    footprint = recorded.wait_for_one()
    assert (footprint["method"], footprint["link"], footprint["status"]) == ("", "", 200)


async def test_health_and_metrics_are_left_out(recorded: Recorded, service: str) -> None:
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded))
    for path in ("/health", "/healthz", "/readyz", "/metrics", "/metrics/app", "/healthy"):
        await client.get(path)
    assert recorded.wait_for_one()["link"] == "/healthy"
    until(lambda: counts(service) == Counts(delivered=1, excluded=5))


async def test_patterns_choose_paths(recorded: Recorded, service: str) -> None:
    middleware = FootprintMiddleware(
        respond, service=service, open_producer=recorded, include=["/api/*", "/v?"], exclude=["*/private/*"]
    )
    for path in ("/api/a", "/api/private/b", "/v1", "/v10", "/", "/api/a\nb"):
        await Client(middleware).get(path)
    assert [each["link"] for each in recorded.wait_for(3)] == ["/api/a", "/v1", "/api/a\N{REPLACEMENT CHARACTER}b"]


async def test_patterns_see_more_of_a_path_than_its_link(recorded: Recorded, service: str) -> None:
    start = "/files/" + "a" * 243
    middleware = FootprintMiddleware(
        respond, service=service, open_producer=recorded, include=["*.pdf", "/files/*"], exclude=["*/health", "*/b.pdf"]
    )
    for path in (start + "/health/secret/payroll.pdf", "/" + "x" * 300 + ".pdf"):
        await Client(middleware).get(path)
    for path in (start + "/health", start + "/b.pdf", "/" + "x" * 300 + ".txt"):
        await Client(middleware).get(path)
    links = [each["link"] for each in recorded.wait_for(2)]
    assert links == [start + "/heal…", "/" + "x" * 254 + "…"]
    until(lambda: counts(service) == Counts(delivered=2, excluded=3))


@pytest.mark.parametrize(
    ("include", "exclude", "is_recorded"),
    [
        ("*", "*/health", True),
        ("*", "/files/*", False),
        ("*", "/files/*a", True),
        ("*", "/files/[*]", True),
        ("*.pdf", "", True),
        ("/files/*.pdf", "", True),
        ("/[f]iles/*.pdf", "", True),
        ("/other/*.pdf", "", False),
        ("/files/[*]", "", False),
        ("/files/?", "", False),
    ],
)
async def test_a_path_beyond_the_bound_is_decided_by_its_beginning(
    recorded: Recorded, service: str, include: str, exclude: str, is_recorded: bool
) -> None:
    middleware = FootprintMiddleware(
        respond, service=service, open_producer=recorded, include=[include], exclude=[exclude]
    )
    await Client(middleware).get("/files/" + "a" * 2034 + "/health" + "/b.pdf")
    until(lambda: counts(service) == (Counts(delivered=1) if is_recorded else Counts(excluded=1)))


async def test_a_sample_is_recorded(recorded: Recorded, service: str) -> None:
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded, sample=0.5))
    for _ in range(1000):
        assert await client.get("/") == 200
    until(lambda: counts(service).delivered > 0 and counts(service).waiting == 0)
    assert 350 < counts(service).delivered < 650  # 9 standard deviations


async def test_switched_off_it_does_nothing(recorded: Recorded, service: str) -> None:
    threads = threading.active_count()
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded, enabled=False))
    assert await client.get("/") == 200
    assert threading.active_count() == threads
    assert recorded.producers == []


async def test_what_does_not_fit_into_the_queue_is_dropped_and_counted(service: str) -> None:
    recorded = Recorded(is_reachable=False)
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded, queue=10, flush_seconds=0))
    for _ in range(200):
        assert await client.get("/") == 200
        await asyncio.sleep(0.002)
    found = counts(service)
    assert found.queue_full > 0
    assert found.queue_full + found.waiting == 200
    recorded.producers[0].is_reachable = True
    until(lambda: counts(service).delivered + counts(service).queue_full == 200)
    assert len(recorded.messages) == counts(service).delivered


async def test_what_kafka_does_not_take_in_time_is_dropped_and_counted(service: str) -> None:
    recorded = Recorded(is_reachable=False)
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded, delivery_seconds=0.2))
    await client.get("/")
    until(lambda: counts(service) == Counts(undelivered=1))


async def test_the_drops_are_logged_once_a_minute(
    service: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(is_reachable=False)
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded, delivery_seconds=0.01))
    with caplog.at_level(logging.WARNING, "request_footprints"):
        for number in range(1, 4):
            await client.get("/")
            until(lambda number=number: counts(service).undelivered == number)  # type: ignore[misc]
        assert len(caplog.records) == 1
        monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + LOG_INTERVAL)
        until(lambda: len(caplog.records) == 2)
    assert service in caplog.text
    assert "unreachable" in caplog.text or "timed out" in caplog.text


async def test_trouble_without_consequences_is_not_logged(
    recorded: Recorded, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a broker closes a connection that is idle."""
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded))
    await client.get("/")
    recorded.wait_for_one()
    producer = recorded.producers[0]
    producer._trouble = "disconnected"
    until(lambda: producer._trouble is None)
    producer.trouble = lambda: None  # type: ignore[method-assign]
    producer.is_reachable = False
    await client.get("/")
    until(lambda: producer.waiting() == 1)
    await asyncio.sleep(0.3)  # two turns of the thread
    assert caplog.records == []


async def test_a_wrong_configuration_of_kafka_lets_requests_through(
    service: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(settings: Settings) -> Any:
        raise ProducerFailed('No such configuration property: "sasl.user"')

    client = Client(FootprintMiddleware(respond, service=service, open_producer=fails))
    with caplog.at_level(logging.WARNING, "request_footprints"):
        assert await client.get("/") == 200
        until(lambda: counts(service) == Counts(failed=1))
        until(lambda: "sasl.user" in caplog.text)


async def test_a_bug_in_the_producer_does_not_end_the_thread(service: str, recorded: Recorded) -> None:
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded))
    await client.get("/")
    recorded.wait_for_one()
    send, recorded.producers[0].send = recorded.producers[0].send, lambda messages: 1 / 0  # type: ignore
    await client.get("/")
    until(lambda: counts(service) == Counts(delivered=1, failed=1))
    recorded.producers[0].send = send  # type: ignore[method-assign]
    await client.get("/")
    recorded.wait_for(2)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_producer_that_cannot_go_on_is_replaced(service: str, recorded: Recorded, waits: bool) -> None:
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded))
    await client.get("/")
    recorded.wait_for_one()
    first = recorded.producers[0]
    if waits:  # its fate is unknown, so it is not sent again
        first.is_reachable = False
        await client.get("/")
        until(lambda: first.waiting() == 1)
    first.fatal = "out of order"
    await client.get("/")
    until(lambda: counts(service) == Counts(delivered=2, undelivered=int(waits)))
    assert len(recorded.wait_for(2)) == 2
    assert len(recorded.producers) == 2


async def test_the_shutdown_delivers_what_waits(recorded: Recorded, service: str) -> None:
    app = FastAPI()
    app.add_middleware(FootprintMiddleware, service=service, open_producer=recorded)
    for _ in range(2):  # a second start works as the first
        client = Client(app)
        async with client.running():
            await client.get("/")
    assert len(recorded.messages) == 2
    assert counts(service) == Counts(delivered=2)
    assert not any(thread.name == "request-footprints" for thread in threading.enumerate())


async def test_the_shutdown_does_not_wait_longer_than_it_may(service: str, caplog: pytest.LogCaptureFixture) -> None:
    recorded = Recorded(is_reachable=False)
    app = FastAPI()
    app.add_middleware(FootprintMiddleware, service=service, open_producer=recorded, flush_seconds=0.3)
    client = Client(app)
    async with client.running():
        await client.get("/")
        start = time.monotonic()
    assert 0.3 <= time.monotonic() - start < 30
    assert counts(service) == Counts(undelivered=1)
    assert "1 not delivered before the shutdown" in caplog.text


async def test_an_app_without_lifespan_is_recorded(recorded: Recorded, service: str) -> None:
    async def only_http(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await respond(scope, receive, send)

    client = Client(FootprintMiddleware(only_http, service=service, open_producer=recorded))
    with pytest.raises(AssertionError):
        async with client.running():  # a server then goes on without a lifespan
            pass
    await client.get("/")
    recorded.wait_for_one()


def test_the_end_of_a_process_without_lifespan_delivers_what_waits() -> None:
    program = """
import asyncio, atexit
from request_footprints import FootprintMiddleware
from tests.footprint_apps import Client, Recorded, respond
recorded = Recorded()
atexit.register(lambda: print(recorded.messages))
asyncio.run(Client(FootprintMiddleware(respond, open_producer=recorded)).get("/here"))
"""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'footprints'}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "/here" in done.stdout


async def test_a_path_is_json_whatever_it_has(recorded: Recorded, service: str) -> None:
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded))
    for path in ('/"quoted"\\', "/한글", "/%00", "/😀"):
        await client.get(path)
    assert [each["link"] for each in recorded.wait_for(4)] == ['/"quoted"\\', "/한글", "/%00", "/😀"]


async def test_prometheus_reads_the_counts(recorded: Recorded, service: str) -> None:
    client = Client(FootprintMiddleware(respond, service=service, open_producer=recorded))
    await client.get("/")
    await client.get("/health")

    def sample(outcome: str) -> float | None:
        return REGISTRY.get_sample_value("request_footprints_total", {"service": service, "outcome": outcome})

    until(lambda: (sample("delivered"), sample("excluded"), sample("queue_full")) == (1, 1, 0))


async def test_requests_do_not_wait_for_the_producer(service: str) -> None:
    """Opening it hangs; a thousand requests are answered meanwhile."""
    opening = threading.Event()

    def hangs(settings: Settings) -> Any:
        opening.wait(240)
        return Recorded()(settings)

    client = Client(FootprintMiddleware(respond, service=service, open_producer=hangs))
    for _ in range(1000):
        assert await client.get("/") == 200
    assert counts(service).waiting == 1000
    opening.set()
    until(lambda: counts(service).delivered == 1000)
