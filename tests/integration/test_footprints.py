"""Request footprints of a served app with a real Kafka, which may come late and may be away."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from request_footprints import Counts, FootprintMiddleware, counts

from services.core.rows import RowCodec
from services.datasets.footprints import DATASET
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.streams.kafka import KafkaPartitionReader
from services.streams.topics import ensure_topics
from tests.processes import Process, free_port
from tests.waiting import until

CODEC = RowCodec(DATASET)
Footprint = dict[str, Any]


def app_of(service: str, kafka: str, topic: str, **settings: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(FootprintMiddleware, service=service, kafka=kafka, topic=topic, **settings)

    @app.get("/items/{item}")
    async def item(item: str) -> str:
        return item

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 1000
                await asyncio.sleep(0.01)

        return StreamingResponse(chunks())

    return app


@contextmanager
def served(app: FastAPI, **config: Any) -> Iterator[int]:
    """Serve in a thread, and yield the port. At the end the server shuts down in order."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="warning", **config))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield port
    finally:
        server.should_exit = True
        thread.join(240)
        assert not thread.is_alive()


def footprints(kafka: str, topic: str) -> list[Footprint]:
    """All messages of a topic with one partition; each key is the link. The pipeline takes each as a row."""
    with closing(KafkaPartitionReader(kafka, topic)) as reader:
        reader.assign({0: 0})
        end = reader.bounds()[0][1]
        found: list[Footprint] = []
        while len(found) < end:
            for message in reader.poll(0.1):
                found.append(json.loads(message.value))
                assert CODEC.decode_object(message.value).count == 1
                assert message.key.decode() == found[-1]["link"]
        return found


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    return f"footprints-{abs(hash(request.node.name))}"


@pytest.fixture
def own_topic(kafka_url: str, topic: str) -> str:
    ensure_topics(kafka_url, {topic: 1}, 1)
    return topic


def request_by_hand(port: int, target: bytes) -> bytes:
    """Send a request that no client library would, and return the first line of the response."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        return connection.makefile("rb").readline()


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_strange_requests_to_a_real_server(kafka_url: str, own_topic: str, http: str) -> None:
    with served(app_of(http, kafka_url, own_topic), http=http) as port:
        for target in (b"/items/7?token=secret", b"/%ff%fe", b"/a%00b", b"/" + b"a" * 60_000):
            assert request_by_hand(port, target).startswith(b"HTTP/1.1 ")
        with socket.create_connection(("127.0.0.1", port)) as leaving:
            leaving.sendall(b"GET /endless HTTP/1.1\r\nHost: test\r\n\r\n")
            assert leaving.recv(15) == b"HTTP/1.1 200 OK"[:15]
    found = footprints(kafka_url, own_topic)
    assert [(each["link"], each["status"], each.get("route")) for each in found] == [
        ("/items/7", 200, "/items/{item}"),
        ("/\ufffd\ufffd", 404, None),
        ("/a\ufffdb", 404, None),
        ("/" + "a" * 254 + "…", 404, None),
        ("/endless", 200, "/endless"),
    ]
    assert {each["service"] for each in found} == {http}


def test_an_app_without_lifespan(kafka_url: str, own_topic: str) -> None:
    with served(app_of("no-lifespan", kafka_url, own_topic), lifespan="off") as port:
        assert httpx.get(f"http://127.0.0.1:{port}/items/1").status_code == 200
        until(lambda: counts("no-lifespan") == Counts(delivered=1))
    assert len(footprints(kafka_url, own_topic)) == 1


@pytest.fixture
def stack(stack_folder: Path) -> Iterator[Stack]:
    """A Kafka of the test's own, not started yet."""
    stack = Stack(LocalSettings.on_free_ports(stack_folder), ("kafka",))
    yield stack
    stack.down()


def test_kafka_comes_late_and_is_away_in_between(stack: Stack, topic: str, capfd: pytest.CaptureFixture[str]) -> None:
    kafka = stack.settings.urls()["LOGPIPE_KAFKA_URL"]
    app = app_of(
        "late", kafka, topic, delivery_seconds=240.0, queue=50, kafka_config={"reconnect.backoff.max.ms": "100"}
    )
    sent = 0

    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:

        def request(number: int) -> None:
            nonlocal sent
            for _ in range(number):
                assert client.get(f"/items/{sent}").status_code == 200
                sent += 1

        def settled(condition: Callable[[Counts], bool]) -> None:
            until(lambda: condition(counts("late")), about=lambda: counts("late"))

        request(10)
        settled(lambda found: found == Counts(waiting=10))

        stack.up()
        ensure_topics(kafka, {topic: 1}, 1)
        settled(lambda found: found == Counts(delivered=10))
        assert [each["link"] for each in footprints(kafka, topic)] == [f"/items/{number}" for number in range(10)]

        stack.supervisor.stop("kafka")
        request(200)  # 50 fit into the client, 50 into the queue; a batch on its way is in neither
        settled(lambda found: found.waiting >= 100 and found.queue_full > 0)
        dropped = counts("late").queue_full
        assert counts("late").delivered == 10

        stack.supervisor.start("kafka")
        settled(lambda found: found == Counts(delivered=sent - dropped, queue_full=dropped))
        request(5)
    assert counts("late") == Counts(delivered=sent - dropped, queue_full=dropped)
    links = [each["link"] for each in footprints(kafka, topic)]
    assert len(set(links)) == sent - dropped
    assert links[-5:] == [f"/items/{number}" for number in range(sent - 5, sent)]
    assert "Connect to" not in capfd.readouterr().err, "librdkafka writes 20 lines a second"


def test_a_process_of_ours_records_its_requests(kafka_url: str, own_topic: str) -> None:
    port = free_port()
    environment = {
        "LOGPIPE_FOOTPRINTS": "true",
        "LOGPIPE_KAFKA_URL": kafka_url,
        "LOGPIPE_DISK_SPACE_PORT": str(port),
        "FOOTPRINTS_TOPIC": own_topic,
    }
    with Process("disk-space --folder .", environment, port) as process:  # asked whether it is ready, without a record
        assert httpx.get(f"{process.url}/nothing").status_code == 404
        assert httpx.get(f"{process.url}/disk?token=secret").status_code == 200
        assert "request_footprints_total" in httpx.get(f"{process.url}/metrics").text
    (footprint,) = footprints(kafka_url, own_topic)
    assert (footprint["link"], footprint["status"], footprint["service"]) == ("/disk", 200, "disk-space")
