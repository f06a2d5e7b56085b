"""Requests to an app, while the programs between the app and the stores are killed: each request is one row."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest

from services import stores
from services.datasets.footprints import DATASET
from services.ledger import source_progress
from services.local.settings import LocalSettings
from services.local.stack import NAMES, Stack
from services.postgres.connection import connect
from services.streams.kafka import KafkaPartitionReader
from tests.conftest import short_folder
from tests.e2e.counting_shop import COUNTS, ITEMS
from tests.e2e.load import verify
from tests.e2e.test_faults import kill
from tests.processes import free_port
from tests.waiting import until

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]

TOPIC = "shop.footprints"
VICTIMS = ("kafka-source", "postgres", "kafka", "clickhouse")
_PAUSE = (1.0, 6.0)  # seconds between a victim that runs again and the next kill
_CLIENTS = 8
_THINK_SECONDS = 0.04  # between two requests of a client: together at most 200 requests/s
_UNUSED = ("ingest-api", "ingest-api-2", "generator", "redis")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with short_folder() as folder:
        settings = LocalSettings.on_free_ports(folder).model_copy(
            update={"lake_writer": "embedded", "kafka_source_topic": TOPIC}
        )
        names = {*Stack(settings).names, "kafka-source"} - {*_UNUSED}
        with Stack(settings, tuple(name for name in NAMES if name in names)) as up:
            yield up


class Shop:
    """The app, in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def counts(self) -> dict[str, int]:
        reply = httpx.get(self.url + COUNTS, timeout=30, trust_env=False)
        found: dict[str, int] = reply.raise_for_status().json()
        return found

    @property
    def is_settled(self) -> bool:
        """Whether Kafka has the footprint of each request, or the middleware has dropped it."""
        found = self.counts()
        return found["delivered"] + found["dropped"] >= found["served"]


@contextmanager
def shop(kafka: str, service: str, log: Path) -> Iterator[Shop]:
    port = free_port()
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "FOOTPRINTS_KAFKA": kafka,
        "FOOTPRINTS_TOPIC": TOPIC,
        "FOOTPRINTS_SERVICE": service,
        # With the default of 60 s, a busy machine that starts Kafka slowly twice in a row would drop footprints.
        "FOOTPRINTS_DELIVERY_SECONDS": "300",
    }
    command = [sys.executable, "-m", "uvicorn", "tests.e2e.counting_shop:app", f"--port={port}", "--no-access-log"]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=output) as process,
    ):
        try:
            running = Shop(f"http://127.0.0.1:{port}")
            until(lambda: _replies(running, process), about=log.read_text)
            yield running
        finally:
            process.terminate()
            process.wait(30)


def _replies(running: Shop, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the app has ended"
    try:
        return bool(running.counts())
    except httpx.HTTPError:
        return False


class Visitors:
    """Clients that request an item each, with a number of its own. `replies` and `unknown` count the outcomes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = count()
        self._gone = False
        self.replies = 0
        self.unknown = 0

    @contextmanager
    def visiting(self) -> Iterator[None]:
        with ThreadPoolExecutor(_CLIENTS) as pool:
            clients = [pool.submit(self._visit) for _ in range(_CLIENTS)]
            try:
                yield
            finally:
                self._gone = True
            found = [client.result() for client in clients]
        self.replies, self.unknown = (sum(each) for each in zip(*found, strict=True))

    def _visit(self) -> tuple[int, int]:
        replies = unknown = 0
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            while not self._gone:
                try:
                    replies += client.get(f"{ITEMS}{next(self._numbers)}").is_success
                except httpx.HTTPError:
                    unknown += 1
                time.sleep(_THINK_SECONDS)
        return replies, unknown


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.long)])
def test_each_request_is_one_row_of_each_store(stack: Stack, seed: int, kills: int, tmp_path: Path) -> None:
    chance, began = random.Random(f"footprints {seed}"), time.monotonic()
    service, before = f"shop-{uuid4().hex[:8]}", _messages(stack)
    victims = [*VICTIMS, *chance.choices(VICTIMS, k=kills - len(VICTIMS))]
    chance.shuffle(victims)
    print(f"seed {seed}: {kills} kills", flush=True)
    with shop(stack.settings.urls()["LOGPIPE_KAFKA_URL"], service, tmp_path / "shop.log") as app:
        visitors = Visitors(app.url)
        with visitors.visiting():
            killed = set[int]()
            for victim in victims:
                time.sleep(chance.uniform(*_PAUSE))  # the seed chooses the moment of the crash
                _await_ready(stack, victim)
                killed.add(kill(stack, victim, killed))
                print(f"{time.monotonic() - began:6.1f} s: {victim} killed", flush=True)
            for victim in VICTIMS:
                _await_ready(stack, victim)
        until(lambda: app.is_settled, about=app.counts)
        counted = app.counts()
    print(f"{visitors.replies} replies, {visitors.unknown} requests of an unknown fate, counted by the app: {counted}")
    served = counted["served"]
    assert visitors.replies <= served <= visitors.replies + visitors.unknown
    assert (counted["dropped"], counted["delivered"]) == (0, served)
    assert _messages(stack) - before == served

    _await_taken(stack)
    assert _rows(stack, service) == (served, served)
    verify(stack)
    found = _found(stack, service)
    print(f"{served} requests; rows of the service: {found}; {time.monotonic() - began:.0f} s")
    assert found == dict.fromkeys(found, served)
    assert len(found) == len(stores.readable()) == 3


def _await_ready(stack: Stack, name: str) -> None:
    until(lambda: stack.program(name).ready() is None, about=lambda: f"{name} is not ready: {stack.states()[name]}")


def _messages(stack: Stack) -> int:
    """Return how many messages the foreign topic has. No message of it is deleted or part of a transaction."""
    with closing(KafkaPartitionReader(stack.settings.urls()["LOGPIPE_KAFKA_URL"], TOPIC)) as reader:
        return sum(end for _, end in reader.bounds().values())


def _await_taken(stack: Stack) -> None:
    """Wait until kafka-source has taken every message of the topic."""
    wanted = _messages(stack)
    with connect(stack.settings.urls()["LOGPIPE_POSTGRES_URL"]) as connection:

        def lines() -> int:
            return sum(each.lines for each in source_progress.counts(connection, DATASET.name) if each.topic == TOPIC)

        until(lambda: lines() >= wanted, about=lambda: f"{lines()} of {wanted} messages were taken")
        assert lines() == wanted


def _rows(stack: Stack, service: str) -> tuple[int, int]:
    """Return the rows of a service in PostgreSQL, and how many different requests they are of."""
    query = "SELECT count(*), count(DISTINCT link) FROM footprints WHERE service = %s"
    with psycopg.connect(stack.settings.urls()["LOGPIPE_POSTGRES_URL"]) as connection:
        found = connection.execute(query, (service,)).fetchone()
    assert found is not None
    return int(found[0]), int(found[1])


def _found(stack: Stack, service: str) -> Mapping[str, int]:
    """Return the rows of a service in each store, which is scanned."""
    parameters = {"group_by": "service", "service": service, "method": "scan", "cache": "off"}
    found: dict[str, int] = {}
    with httpx.Client(timeout=300, trust_env=False) as client:
        for store in stores.readable():
            url = f"http://127.0.0.1:{stack.settings.query_port}/api/query/{store.route}/footprints/aggregate"
            groups = client.get(url, params=parameters).raise_for_status().json()["data"]
            found[store.name] = sum(group["count"] for group in groups)
    return found
