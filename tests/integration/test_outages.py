"""A server that shuts down or is unreachable: sessions do not hold its shutdown, and processes wait for it."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from services.core.errors import StoreDown
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.migrate.service import migrate
from services.postgres.connection import connect
from services.postgres.pool import Pool
from tests.integration.test_ingest_api import LOG
from tests.processes import Process, free_port
from tests.waiting import until


@pytest.fixture
def own_settings(stack_folder: Path) -> LocalSettings:
    return LocalSettings.on_free_ports(stack_folder)


def started_at(url: str) -> Any:
    """When the server was started; None while it takes no sessions."""
    try:
        with psycopg.connect(url, connect_timeout=2) as session:
            return session.execute("SELECT pg_postmaster_start_time()").fetchone()
    except psycopg.Error:
        return None


def ask_to_shut_down(settings: LocalSettings) -> None:
    """SIGTERM to the server: it refuses new sessions, and ends when all sessions have ended; then it is restarted."""
    os.kill(int((settings.folder / "postgres/data/postmaster.pid").read_text().splitlines()[0]), signal.SIGTERM)


@pytest.fixture
def ingest(own_settings: LocalSettings) -> Iterator[Process]:
    """Without Kafka, for which accepted rows wait."""
    port = free_port()
    environment = {
        "LOGPIPE_POSTGRES_URL": own_settings.urls()["LOGPIPE_POSTGRES_URL"],
        "LOGPIPE_KAFKA_URL": f"127.0.0.1:{free_port()}",
        "LOGPIPE_INGEST_PORT": str(port),
        "LOGPIPE_INGEST_DISK_FLOOR": "0",
    }
    process = Process("ingest-api", environment, port)
    yield process
    process.stop()


def ready(process: Process) -> tuple[int, str]:
    try:
        reply = httpx.get(f"{process.url}/readyz", timeout=10)
    except httpx.HTTPError as error:
        return 0, str(error)
    return reply.status_code, reply.text


def post(process: Process) -> int:
    return httpx.post(f"{process.url}/api/collect/log", json=LOG, timeout=30).status_code


def test_a_smart_shutdown_ends_within_seconds_and_all_serve_again(own_settings: LocalSettings, ingest: Process) -> None:
    url = own_settings.urls()["LOGPIPE_POSTGRES_URL"]
    with Stack(own_settings, ("postgres",)):
        migrate(url)
        ingest.start()
        assert post(ingest) == 200
        busy, idle, pool = connect(url, autocommit=False), connect(url), Pool(url, 2, 5.0)
        with closing(pool), closing(idle), closing(busy):
            with pool.connection() as pooled:
                pooled.execute("SELECT 1")
            busy.execute("SELECT 1")
            before = started_at(url)
            ask_to_shut_down(own_settings)
            until(lambda: idle.closed)
            assert not busy.closed  # it is in a transaction, which the shutdown waits for
            busy.execute("SELECT 1")
            busy.commit()
            until(lambda: started_at(url) not in (None, before))
            with pool.connection() as pooled:
                pooled.execute("SELECT 1")
            until(lambda: post(ingest) == 200)
            until(lambda: ready(ingest)[0] == 200)


def test_a_session_whose_locks_must_last_is_left_open(own_settings: LocalSettings) -> None:
    url = own_settings.urls()["LOGPIPE_POSTGRES_URL"]
    with Stack(own_settings, ("postgres",)):
        with closing(connect(url, closed_when_idle=False)) as held, closing(connect(url)) as idle:
            held.execute("SELECT pg_advisory_lock(1)")
            ask_to_shut_down(own_settings)
            until(lambda: idle.closed)
            assert held.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(StoreDown):
            connect("postgresql://logpipe@127.0.0.1:1/logpipe")
        until(lambda: started_at(url))


def test_an_ingest_api_waits_for_postgres_at_its_start(own_settings: LocalSettings, ingest: Process) -> None:
    ingest.launch()
    until(lambda: ready(ingest)[0] == 503)
    assert "starting: " in ready(ingest)[1]
    assert post(ingest) == 503
    with Stack(own_settings, ("postgres",)):
        until(lambda: "logpipe migrate" in ready(ingest)[1])
        assert post(ingest) == 503
        migrate(own_settings.urls()["LOGPIPE_POSTGRES_URL"])
        ingest.await_ready()
        assert post(ingest) == 200
        status, said = ready(ingest)
        assert (status, "publishing" in said, "DEGRADED" in said) == (200, True, True)  # Kafka is unreachable
        assert 'logpipe_degraded{check="publishing"} 1.0' in httpx.get(f"{ingest.url}/metrics", timeout=60).text


@pytest.mark.parametrize(
    ("command", "setting"),
    [
        ("query-api", "LOGPIPE_QUERY_PORT"),
        ("alerting", "LOGPIPE_ALERTING_PORT"),
        ("maintain", "LOGPIPE_MAINTAIN_PORT"),
        ("stream-to-store --store clickhouse", "LOGPIPE_STREAM_TO_STORE_PORT"),
        ("stream-to-store --store lake", "LOGPIPE_STREAM_TO_STORE_PORT"),
        ("stream-to-lake", "LOGPIPE_STREAM_TO_LAKE_PORT"),
        ("realtime-aggregator", "LOGPIPE_REALTIME_PORT"),
    ],
)
def test_a_process_waits_for_what_is_unreachable_at_its_start(command: str, setting: str) -> None:
    nowhere = {
        "LOGPIPE_POSTGRES_URL": f"postgresql://logpipe@127.0.0.1:{free_port()}/logpipe",
        "LOGPIPE_KAFKA_URL": f"127.0.0.1:{free_port()}",
        "LOGPIPE_CLICKHOUSE_URL": f"http://127.0.0.1:{free_port()}",
        "LOGPIPE_HDFS_URL": f"hdfs://127.0.0.1:{free_port()}",
    }
    port = free_port()
    process = Process(command, nowhere | {setting: str(port)}, port)
    try:
        process.launch()
        until(lambda: ready(process)[0] == 503)
    finally:
        assert process.stop() == 0, process.output()
