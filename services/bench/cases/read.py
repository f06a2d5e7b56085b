"""The same queries to every store and engine on the same rows, before and after the lake's files are compacted.

All by the query API, with `method=scan` and as of one batch: what is compared is the time each engine needs to read the
rows themselves. A cell whose result differs from the others' is void.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from services import datasets, stores
from services.bench.cases.figures import Figure, Matrix
from services.generator.load import Load
from services.ingest_client.client import IngestClient
from services.lake.schema import writer_properties
from services.lake.snapshot import Snapshot
from services.lake.table import table_uri
from services.local.maintenance import maintain_once
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.local.verification import verify
from services.runtime.settings import LakeSettings
from services.stores import clickhouse, lake, postgres
from services.stores.postgres.rollup_chunks import CHUNK_ROWS

# Without maintain, which would compact the small files before they are read.
_PROGRAMS = (
    *("postgres", "kafka", "namenode", "datanode", "clickhouse", "redis", "spark-connect"),
    *("ingest-api", "ingest-api-2", "stream-to-store", "stream-to-lake", "query-api"),
)
_REQUEST_ROWS = 10_000
_SMALL_FILE_ROWS = 8000
_SHATTERERS = 6
_LOAD_RATE = 1_000_000 / 60  # rows/s under which the newest rows are read
_LOAD_SECONDS = 60
_ASK_SECONDS = 0.2
_ROLLUP_SECONDS = 600

_QUERIES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "count": ("stats", {}),
    "group by level": ("logs/aggregate", {"group_by": "level"}),
    "ERROR by service": ("logs/aggregate", {"group_by": "service", "level": "ERROR"}),
    "newest 100 of a service": ("logs", {"service": "auth-service", "count": "none"}),
}

Say = Callable[[str], None]


def measure(folder: Path, rows: int, runs: int, say: Say) -> tuple[list[Figure], list[Matrix]]:
    """Loads `rows` logs, runs each query `runs` times, the engines in turn; compacts, and queries the lake again."""
    settings = LocalSettings.on_free_ports(folder).model_copy(update={"lake_writer": "embedded"})
    with (
        Stack(settings, _PROGRAMS) as stack,
        httpx.Client(base_url=f"http://127.0.0.1:{settings.query_port}", timeout=300) as client,
    ):
        say(f"loading {rows:,} rows")
        _load(stack, rows)
        say(f"writing the lake again in files of about {_SMALL_FILE_ROWS:,} rows")
        _shatter(stack)
        before = _ask_all(client, f"{rows:,} logs, the lake in small files", runs, say)
        say("compacting")
        started = time.monotonic()
        maintain_once(settings)
        say(f"compacted in {time.monotonic() - started:.0f} s")
        after = _ask_all(client, f"{rows:,} logs, the lake compacted", runs, say)
        gains = [
            Figure(
                f"count by scan, {engine}: gain by compaction",
                "x",
                [
                    slow / fast
                    for slow, fast in zip(before.cells["count", engine], after.cells["count", engine], strict=True)
                ],
                9,
                9,
            )
            for engine in _engines()
            if engine.startswith(lake.STORE.label)
            and ("count", engine) in before.cells
            and ("count", engine) in after.cells
        ]
        say("keeping the lake and the rollups from now on")
        Stack(settings, ("maintain",)).up()
        _await_rollups(settings, rows)
        return [*gains, *_newest_under_load(stack, client, say)], [before, after]


def _load(stack: Stack, rows: int) -> None:
    async def send() -> None:
        async with IngestClient(f"http://127.0.0.1:{stack.settings.ingest_port}") as client:
            report = await Load(client, datasets.find("logs"), _REQUEST_ROWS, 0, rows, seed=1).run()
            if report.acked != rows:
                raise RuntimeError(f"{report.acked} of {rows} rows were acknowledged: {report.problem}")

    asyncio.run(send())
    report = verify(stack.settings, 1800)
    if not report["ok"]:
        raise RuntimeError(f"not everything arrived: {report}")


def _shatter(stack: Stack) -> None:
    """Leave the lake as a writer does that commits every second for an hour: a file for each few thousand rows.

    Several write at once, for HDFS takes half a second to close a file.
    """
    uri = table_uri(LakeSettings(hdfs_url=stack.settings.urls()["LOGPIPE_HDFS_URL"]), "logs")
    table = DeltaTable(uri)
    written = Snapshot.of(table)
    last = max(written.files["max.id"].to_pylist())
    row_bytes = sum(written.files["size_bytes"].to_pylist()) / sum(written.files["num_records"].to_pylist())
    table.delete()
    bounds = [last * n // _SHATTERERS for n in range(_SHATTERERS)] + [last + 1]

    def rewrite(bounds: tuple[int, int]) -> None:
        some = f"SELECT * FROM t WHERE id >= {bounds[0]:d} AND id < {bounds[1]:d} ORDER BY id"  # noqa: S608 - integers
        write_deltalake(
            uri,
            pa.RecordBatchReader.from_stream(written.engine.execute(some)),
            mode="append",
            target_file_size=int(4 * row_bytes * _SMALL_FILE_ROWS),  # it counts them before they are compressed
            writer_properties=writer_properties(datasets.find("logs")),
        )

    with ThreadPoolExecutor(_SHATTERERS) as pool:
        list(pool.map(rewrite, pairwise(bounds)))


def _await_rollups(settings: LocalSettings, rows: int) -> None:
    """Until what was loaded before is counted: it is no part of the load that the newest rows are read under."""
    deadline = time.monotonic() + _ROLLUP_SECONDS
    with psycopg.connect(settings.urls()["LOGPIPE_POSTGRES_URL"], autocommit=True) as connection:
        while True:
            counted = connection.execute("SELECT sum(row_count) FROM rollup_chunks").fetchone()
            if counted and counted[0] and rows - counted[0] < CHUNK_ROWS:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the rollups of {rows} rows were not made within {_ROLLUP_SECONDS} s: {counted}")
            time.sleep(0.5)


def _ask_all(client: httpx.Client, title: str, runs: int, say: Say) -> Matrix:
    say(title)
    as_of = _as_of(client)
    matrix = Matrix(title, "ms")
    for query, (path, parameters) in _QUERIES.items():
        results: dict[str, Any] = {}
        for run in range(runs + 1):  # the first warms caches and is not counted
            for engine, (route, chosen) in _engines().items():
                wanted = {**parameters, **chosen, "as_of": str(as_of), "method": "scan", "cache": "off"}
                reply = client.get(f"/api/query/{route}/{path}", params=wanted)
                if reply.status_code != 200:
                    matrix.notes[query, engine] = reply.json()["detail"]
                    continue
                body = reply.json()
                results[engine] = body.get("data", body.get("logs_count"))
                matrix.notes[query, engine] = _read(body["scanned"].get("logs", body["scanned"]))
                if run:
                    matrix.cells.setdefault((query, engine), []).append(body["query_time_ms"])
        first = next(iter(results.values()))
        for engine, result in results.items():
            if result != first:
                matrix.cells.pop((query, engine), None)
                matrix.notes[query, engine] = "void: another result"
    return matrix


def _engines() -> Mapping[str, tuple[str, Mapping[str, str]]]:
    """Return for each engine of each store the store's route, and the query parameters that choose the engine."""
    found: dict[str, tuple[str, Mapping[str, str]]] = {}
    for store in stores.readable():
        if not store.engine:
            found[store.label] = (store.route, {})
        for name in filter(None, (store.engine, *store.other_engines)):
            found[f"{store.label}, {name}"] = (store.route, {"engine": name})
    return found


def _as_of(client: httpx.Client) -> int:
    """Return the last batch that every store has."""
    return min(int(client.get(f"/api/query/{route}/stats").json()["as_of"]) for route, _ in _engines().values())


def _read(scanned: Mapping[str, int]) -> str:
    if "files_total" in scanned:
        return f"{scanned['files']:,} of {scanned['files_total']:,} files"
    return f"{scanned['rows']:,} rows" if "rows" in scanned else ""


def _newest_under_load(stack: Stack, client: httpx.Client, say: Say) -> list[Figure]:
    """Newest 100 of a service, read while rows come in; p95 of the store's own time."""
    say("newest 100 under load")
    before = _as_of(client)
    path, parameters = _QUERIES["newest 100 of a service"]
    goals = ((postgres.STORE, 5), (clickhouse.STORE, 20))
    times: dict[str, list[float]] = {store.name: [] for store, _ in goals}
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(_offer, stack.settings.ingest_port)
        while _as_of(client) <= before:  # until there are rows of it in every store that is read
            time.sleep(_ASK_SECONDS)
        while not loading.done():
            for store, _ in goals:
                reply = client.get(f"/api/query/{store.route}/{path}", params={**parameters, "cache": "off"})
                reply.raise_for_status()
                times[store.name].append(reply.json()["query_time_ms"])
            time.sleep(_ASK_SECONDS)
        loading.result()
    return [
        Figure(
            f"newest 100 with filter under {_LOAD_RATE * 60:,.0f} rows/min, p95, {store.label}",
            "ms",
            [sorted(values)[int(len(values) * 0.95)]],
            20,
            goal,
            better="less",
            notes=[f"{len(values)} times read, p50 {statistics.median(values):.1f} ms, slowest {max(values):.1f} ms"],
        )
        for store, goal in goals
        for values in [times[store.name]]
    ]


def _offer(port: int) -> None:
    async def send() -> None:
        async with IngestClient(f"http://127.0.0.1:{port}") as client:
            await Load.at_rate(client, datasets.find("logs"), _LOAD_RATE, _LOAD_SECONDS).run()

    asyncio.run(send())
