"""What `logpipe verify` found is in the metrics of the query API after the command has ended."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import Process, free_port
from tests.waiting import until

ROWS = 1_000
ROW = {"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "s", "message": "m"}


@pytest.fixture
def environment(own_postgres_url: str) -> dict[str, str]:
    """PostgreSQL holds 1,000 logs in four batches. There is no Kafka, which `verify` of PostgreSQL does not need."""
    port = free_port()
    environment = {
        "LOGPIPE_POSTGRES_URL": own_postgres_url,
        "LOGPIPE_KAFKA_URL": f"127.0.0.1:{free_port()}",
        "LOGPIPE_INGEST_PORT": str(port),
        "LOGPIPE_INGEST_DISK_FLOOR": "0",
    }
    with Process("ingest-api", environment, port) as ingest:
        for _ in range(4):
            sent = httpx.post(f"{ingest.url}/api/collect/logs", json=[ROW] * (ROWS // 4), timeout=30)
            assert sent.status_code == 200, sent.text
    return environment


@pytest.fixture
def query_api(environment: dict[str, str]) -> Iterator[Process]:
    port = free_port()
    with Process("query-api", {**environment, "LOGPIPE_QUERY_PORT": str(port)}, port) as process:
        yield process


def verify(environment: dict[str, str], *arguments: str) -> int:
    command = [sys.executable, "-m", "services", "verify", "--store", "postgres", "--dataset", "logs", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=60).returncode


def served(process: Process) -> dict[str, float]:
    """The metrics of the last verification of logs in PostgreSQL."""
    families = text_string_to_metric_families(httpx.get(f"{process.url}/metrics", timeout=10).text)
    samples = [sample for family in families for sample in family.samples]
    return {
        sample.name.removeprefix("logpipe_verify_").removeprefix("rows_"): sample.value
        for sample in samples
        if sample.name.startswith("logpipe_verify_") and sample.labels == {"store": "postgres", "dataset": "logs"}
    }


def wait_for(process: Process, **expected: float) -> dict[str, float]:
    until(lambda: expected.items() <= served(process).items(), about=lambda: str(served(process)))
    return served(process)


def test_a_planted_loss_is_in_the_metrics_after_the_command_has_ended(
    environment: dict[str, str], query_api: Process
) -> None:
    assert not served(query_api)
    assert verify(environment, "--all") == 0
    found = wait_for(query_api, missing=0, extra=0, duplicated=0, altered=0, batches_checked=4)
    assert 0 <= found["age_seconds"] < 30
    with closing(psycopg.connect(environment["LOGPIPE_POSTGRES_URL"], autocommit=True)) as connection:
        connection.execute("CREATE TABLE kept AS SELECT * FROM logs ORDER BY id LIMIT 2")
        connection.execute("DELETE FROM logs WHERE id IN (SELECT id FROM kept)")
        assert verify(environment, "--sample", "10") == 1
        wait_for(query_api, missing=2, extra=0, duplicated=0, altered=0, batches_checked=4)
        connection.execute("INSERT INTO logs SELECT * FROM kept")
        assert verify(environment, "--sample", "1", "--seed", "1") == 0
        wait_for(query_api, missing=2, batches_checked=1)  # a sample does not prove that the rows are back
        assert verify(environment) == 0
        wait_for(query_api, missing=0, batches_checked=4)
        connection.execute("UPDATE logs SET message = 'another' WHERE id = (SELECT max(id) FROM logs)")
        assert verify(environment, "--all") == 1
        wait_for(query_api, missing=0, altered=ROWS // 4)
