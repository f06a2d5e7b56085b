"""Several ingest processes on one port, the death of one of them, and an ingest process on a full disk."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import psutil
import psycopg
import pytest

from services import datasets
from tests.e2e.load import under_load
from tests.processes import Process, free_port
from tests.waiting import until

LOG = {"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "auth", "message": "ok"}


@pytest.fixture
def environment(postgres_url: str, kafka_url: str) -> dict[str, str]:
    return {
        "LOGPIPE_POSTGRES_URL": postgres_url,
        "LOGPIPE_KAFKA_URL": kafka_url,
        "LOGPIPE_INGEST_PORT": str(free_port()),
        "LOGPIPE_INGEST_DISK_FLOOR": "0",
    }


@pytest.fixture
def port(environment: dict[str, str]) -> int:
    return int(environment["LOGPIPE_INGEST_PORT"])


@pytest.fixture
def pair(environment: dict[str, str], port: int) -> Iterator[tuple[Process, Process]]:
    """Two processes that serve one port; connections have reached both."""
    command = "ingest-api --share-port"
    with Process(command, environment, port) as first, Process(command, environment, port) as second:
        started: set[str] = set()

        def both_serve() -> bool:
            started.add(served_by(first.url))
            return len(started) == 2

        until(both_serve)
        yield first, second


@pytest.fixture
def ledger(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        yield connection


def served_by(url: str) -> str:
    """Return what tells the processes apart, by a new connection: the time at which a process was started."""
    text = httpx.get(f"{url}/metrics", timeout=30).text
    return next(line for line in text.splitlines() if line.startswith("process_start_time_seconds "))


def connected(process: Process, port: int) -> bool:
    """Whether a client has a connection to the process."""
    found = psutil.Process(process.pid).net_connections("tcp")
    return any(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in found)


def rows(ledger: psycopg.Connection[Any]) -> dict[str, int]:
    counts = {}
    for dataset in datasets.all_datasets():
        row = ledger.execute(f"SELECT count(*) FROM {dataset.name}").fetchone()
        assert row
        counts[dataset.name] = row[0]
    return counts


def last_batch(ledger: psycopg.Connection[Any]) -> int:
    row = ledger.execute("SELECT coalesce(max(batch_id), 0) FROM batches").fetchone()
    assert row
    return int(row[0])


def unpublished(ledger: psycopg.Connection[Any], after: int) -> int:
    """Return the number of batches after batch `after` that are not in Kafka. Other tests left batches before it."""
    query = "SELECT count(*) FROM batches WHERE published_at IS NULL AND batch_id > %s"
    row = ledger.execute(query, (after,)).fetchone()
    assert row
    return int(row[0])


def test_processes_share_a_port_and_one_that_does_not_share_is_refused(
    pair: tuple[Process, Process], environment: dict[str, str], port: int
) -> None:
    for process in pair:
        listening = [each.laddr.port for each in psutil.Process(process.pid).net_connections("tcp") if not each.raddr]
        assert port in listening
    alone = Process("ingest-api", environment, port)
    alone.launch()
    try:
        assert alone.wait() != 0
        assert "address already in use" in alone.output()
    finally:
        alone.stop()
    assert httpx.post(f"{pair[0].url}/api/collect/log", json=LOG, timeout=30).status_code == 200


def test_the_survivor_serves_and_publishes_what_a_dead_process_accepted(
    pair: tuple[Process, Process], ledger: psycopg.Connection[Any], port: int
) -> None:
    before, mark = rows(ledger), last_batch(ledger)
    with under_load(pair[0].url, seconds=6) as reports:
        time.sleep(2)
        victim = next(process for process in pair if connected(process, port))
        survivor = next(process for process in pair if process is not victim)
        victim.kill()
        until(lambda: connected(survivor, port))
    acked = {report.dataset: report.acked for report in reports}
    assert all(acked.values())
    after = rows(ledger)
    assert {name: after[name] - before[name] for name in acked} == acked
    assert last_batch(ledger) > mark
    until(lambda: unpublished(ledger, mark) == 0)  # the survivor adopts the slot once the lease has lapsed
    victim.start()
    assert served_by(survivor.url)


def test_nothing_is_accepted_while_the_disk_is_below_its_floor(
    environment: dict[str, str], port: int, ledger: psycopg.Connection[Any]
) -> None:
    before = rows(ledger)
    process = Process("ingest-api", environment | {"LOGPIPE_INGEST_DISK_FLOOR": str(1 << 60)}, port)
    process.launch()
    try:
        until(lambda: not_ready(process.url) == {"disk"})
        reply = httpx.post(f"{process.url}/api/collect/log", json=LOG, timeout=30)
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "30")
        assert "free space or add a disk" in reply.json()["detail"]
    finally:
        process.stop()
    assert rows(ledger) == before
    with Process("ingest-api", environment, port) as roomy:
        assert httpx.post(f"{roomy.url}/api/collect/log", json=LOG, timeout=30).status_code == 200


def not_ready(url: str) -> set[str]:
    """Return the names of the checks that say that the process is not ready."""
    try:
        reply = httpx.get(f"{url}/readyz", timeout=30)
    except httpx.HTTPError:
        return set()
    return set(reply.json().get("checks", ()))
