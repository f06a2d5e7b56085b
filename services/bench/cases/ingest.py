r"""HTTP → PostgreSQL, publishing to Kafka meanwhile, against `psql \copy` of the same rows into the same table."""

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from services import datasets
from services.bench.cases.figures import Figure
from services.generator.synthesis import Synthesizer
from services.ingest_client.client import IngestClient
from services.local.postgres_files import binary
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.stores.postgres import partition_name

_ROWS = 500_000
_REQUEST_ROWS = 1000
_CLIENTS = 32
_COMPONENTS = ("postgres", "kafka", "ingest-api", "ingest-api-2")

Say = Callable[[str], None]


def measure(folder: Path, runs: int, say: Say) -> list[Figure]:
    """Pairs of one `\\copy` and one run by HTTP, each into the emptied table."""
    dataset = datasets.find("logs")
    table = Synthesizer(dataset, seed=1, start_us=time.time_ns() // 1000, step_us=100)
    bodies = [table.ndjson(first, _REQUEST_ROWS) for first in range(0, _ROWS, _REQUEST_ROWS)]
    copied, sent, published = [], [], []
    with Stack(LocalSettings.on_free_ports(folder), _COMPONENTS) as stack:
        url = stack.settings.urls()["LOGPIPE_POSTGRES_URL"]
        ingest = f"http://127.0.0.1:{stack.settings.ingest_port}"
        target = partition_name(dataset, int(time.time()) // 86_400)
        file = folder / "rows.copy"
        asyncio.run(_send(ingest, bodies))  # the warm-up, and the rows that \copy will be given
        _psql(url, f"\\copy {target} to '{file}'")
        for run in range(runs):
            _empty(url)
            started = time.perf_counter()
            _psql(url, f"\\copy {target} from '{file}'")
            copied.append(_ROWS / (time.perf_counter() - started))
            _empty(url)
            started = time.perf_counter()
            asyncio.run(_send(ingest, bodies))
            sent.append(_ROWS / (time.perf_counter() - started))
            published.append(_ROWS / (_await_published(url) - started))
            say(f"run {run + 1}: copy {copied[-1]:,.0f} rows/s, HTTP {sent[-1]:,.0f}, in Kafka {published[-1]:,.0f}")
    ratios = [100 * ours / limit for ours, limit in zip(sent, copied, strict=True)]
    notes = [
        rf"\copy {_spread(copied)} rows/s; HTTP → PostgreSQL {_spread(sent)}; until also in Kafka {_spread(published)}",
        f"{_ROWS:,} log rows in requests of {_REQUEST_ROWS:,} by {_CLIENTS} clients, two ingest processes on one port",
        "table with btree(timestamp) and BRIN(id), emptied before each run",
    ]
    return [Figure("ingest against \\copy", "%", ratios, 60, 90, notes=notes)]


def _spread(values: list[float]) -> str:
    return f"{min(values):,.0f} … {max(values):,.0f}"


async def _send(url: str, bodies: list[bytes]) -> None:
    dataset, waiting = datasets.find("logs"), iter(enumerate(bodies))
    run = os.urandom(8).hex()

    async def client(sender: IngestClient) -> None:
        for number, body in waiting:
            await sender.send(dataset, body, f"{run}-{number}")

    async with IngestClient(url) as sender, asyncio.TaskGroup() as group:
        for _ in range(_CLIENTS):
            group.create_task(client(sender))


def _await_published(url: str) -> float:
    """Return the moment when no batch was left to publish."""
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute("SELECT FROM batches WHERE published_at IS NULL LIMIT 1").fetchone():
            time.sleep(0.02)
    return time.perf_counter()


def _empty(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("TRUNCATE logs")
        connection.execute("CHECKPOINT")


def _psql(url: str, command: str) -> None:
    subprocess.run([binary("psql"), url, "--quiet", "--set=ON_ERROR_STOP=1", "-c", command], check=True)
