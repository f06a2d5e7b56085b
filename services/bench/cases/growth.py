"""What a year of history costs: the same start-ups, queries and checks of an empty pipeline and of one that is full.

The history is planted into a stack of its own, not loaded: see `planting`.
"""

import asyncio
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from services import datasets, stores
from services.bench.cases import planting
from services.bench.cases.figures import Figure
from services.bench.cases.planting import History
from services.core.errors import NeedsOperator
from services.core.instants import DAY
from services.generator.load import Load
from services.ingest_client.client import IngestClient
from services.local.maintenance import maintain_once
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.local.verification import verify
from services.postgres.connection import connect
from services.runtime.settings import LakeSettings
from services.stores import postgres

_PROGRAMS = (
    *("postgres", "kafka", "namenode", "datanode", "clickhouse"),
    *("ingest-api", "stream-to-store", "stream-to-lake", "query-api"),
)
_RESTARTED = ("ingest-api", "query-api", "stream-to-store", "stream-to-lake")
_BYTES = 600  # on disk, of a batch in the ledger while it is planted, its indexes and the write-ahead log included
_ROWS = 200_000
_REQUEST_ROWS = 10_000
_SAMPLE = 100
_START_SECONDS, _FIRST_SECONDS, _VERIFY_SECONDS, _GROWTH = 5.0, 1.0, 10.0, 1.5

Say = Callable[[str], None]


def measure(folder: Path, batches: int, days: int, log_files: int, runs: int, say: Say) -> list[Figure]:
    """A ledger of `batches` over `days` day partitions, and `log_files` files in the log of the lake's table."""
    _check_disk(folder, batches)
    settings = LocalSettings.on_free_ports(folder).model_copy(update={"lake_writer": "embedded"})
    urls = settings.urls()
    dataset, lake = datasets.find("logs"), LakeSettings(hdfs_url=urls["LOGPIPE_HDFS_URL"])
    history = History(batches, days, log_files, time.time_ns() // 1000 // DAY)
    with (
        Stack(settings, _PROGRAMS) as stack,
        httpx.Client(base_url=f"http://127.0.0.1:{settings.query_port}", timeout=300) as client,
    ):
        planting.reserve_ids(urls["LOGPIPE_POSTGRES_URL"], batches)
        _load(settings)
        routes = {store.label: store.route for store in stores.readable()}
        empty = {store: _newest(client, route, runs) for store, route in routes.items()}
        for name in _RESTARTED:
            stack.supervisor.stop(name)
        say(f"planting {batches:,} batches, {days} days and {log_files:,} log files")
        started = time.monotonic()
        planting.plant_batches(urls["LOGPIPE_POSTGRES_URL"], dataset, history)
        planting.plant_days(urls["LOGPIPE_POSTGRES_URL"], urls["LOGPIPE_CLICKHOUSE_URL"], lake, dataset, history)
        planting.plant_log(lake, dataset, log_files)
        say(f"planted in {time.monotonic() - started:.0f} s")
        maintained = _seconds(lambda: maintain_once(settings, "--dataset", dataset.name))
        say(f"`maintain --once` took {maintained:.0f} s")
        with connect(urls["LOGPIPE_POSTGRES_URL"]) as connection:
            while postgres.close_days(connection, dataset):  # each run of `maintain` closes some of them
                pass
        starts = {name: _seconds(Stack(settings, (name,)).up) for name in _RESTARTED}
        first = {store: _seconds(lambda route=route: _ask(client, route)) for store, route in routes.items()}  # type: ignore[misc]
        full = {store: _newest(client, route, runs) for store, route in routes.items()}
        report: dict[str, Any] = {}
        sample = _seconds(lambda: report.update(verify(settings, 0, "--sample", str(_SAMPLE))))
        if not report["ok"]:
            raise RuntimeError(f"verify found differences: {json.dumps(report)}")
    note = f"{batches:,} batches, {days} day partitions, {log_files:,} log files cleaned up in {maintained:.0f} s"
    return [
        *(_at_most(f"start of {name} until it is ready", "s", [s], _START_SECONDS, note) for name, s in starts.items()),
        *(_at_most(f"first query of {store} after it", "s", [s], _FIRST_SECONDS, note) for store, s in first.items()),
        _at_most(f"verify --sample {_SAMPLE}", "s", [sample], _VERIFY_SECONDS, note),
        *(_against_empty(store, empty[store], full[store]) for store in routes),
    ]


def _at_most(name: str, unit: str, values: list[float], most: float, note: str) -> Figure:
    return Figure(name, unit, values, most, most, better="less", notes=[note])


def _against_empty(store: str, empty: list[float], full: list[float]) -> Figure:
    before, after = statistics.median(empty), statistics.median(full)
    told = f"median of {len(full)} queries {after:.1f} ms, of an empty history {before:.1f} ms"
    return _at_most(f"newest 100 of {store} against an empty history", "x", [after / before], _GROWTH, told)


def _load(settings: LocalSettings) -> None:
    """Some rows of now, in every store."""

    async def send() -> None:
        async with IngestClient(f"http://127.0.0.1:{settings.ingest_port}") as client:
            await Load(client, datasets.find("logs"), _REQUEST_ROWS, 0, _ROWS, seed=1).run()

    asyncio.run(send())
    if not (report := verify(settings, 120))["ok"]:
        raise RuntimeError(f"not everything arrived: {json.dumps(report)}")


def _newest(client: httpx.Client, route: str, runs: int) -> list[float]:
    """Milliseconds of each of `runs` queries, after some that are not counted."""
    for _ in range(3):
        _ask(client, route)
    return [_seconds(lambda: _ask(client, route)) * 1e3 for _ in range(runs)]


def _ask(client: httpx.Client, route: str) -> None:
    reply = client.get(f"/api/query/{route}/logs", params={"limit": "100", "count": "none", "cache": "off"})
    reply.raise_for_status()
    if len(reply.json()["data"]) != 100:
        raise RuntimeError(f"{route} did not give 100 rows")


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _check_disk(folder: Path, batches: int) -> None:
    free, needed = shutil.disk_usage(folder).free, batches * _BYTES + (4 << 30)
    if free < needed:
        raise NeedsOperator(
            f"{folder} has {free >> 30} GiB left and this takes {needed >> 30}: set TMPDIR to a folder with more room,"
            " or plant less with `logpipe bench figures --only growth --batches N`"
        )
