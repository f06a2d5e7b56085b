"""The panels of the dashboard of requests by every store, and what the footprints cost to load and to keep.

Each number of footprints has a stack of its own. The footprints are those of the generator: the traffic of a shop in
the days before now. A time is that of a request to the query API, as a page sees it. A cell whose result differs from
the others' is void.
"""

import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import httpx
import psycopg
from deltalake import DeltaTable

from services import stores
from services.bench.cases import footprint_inserts
from services.bench.cases.figures import Matrix, Table
from services.bench.cases.metering import Meter
from services.core.queries import Panel
from services.datasets.footprints import DATASET
from services.lake.snapshot import Snapshot
from services.lake.table import table_uri
from services.local import unprivileged, usage
from services.local.maintenance import maintain_once
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.runtime.settings import LakeSettings
from services.stores import clickhouse, lake, postgres
from services.stores.clickhouse.client import connect

# Without maintain, which would work while the queries are measured: its tasks run once, before the queries.
_PROGRAMS = (
    *("postgres", "kafka", "namenode", "datanode", "clickhouse", "redis", "generator"),
    *("ingest-api", "ingest-api-2", "stream-to-store", "stream-to-lake", "query-api"),
)
_RESTARTED = ("query-api", "clickhouse", "postgres")  # the lake's engine is a part of the query API
_FILES = ("postgres", "clickhouse", "datanode")
_DAYS = 14
_ZONE = "Asia/Seoul"
_COLD_RUNS = 3
_SETTLE_SECONDS = 1800.0
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.1
_VARIANTS: Mapping[str, Mapping[str, str]] = {
    "hot, the rows are read": {"method": "scan", "cache": "off"},
    "hot, with rollups": {"method": "auto", "cache": "off"},
    "hot, from the cache": {"method": "auto"},
}

Say = Callable[[str], None]


def measure(folder: Path, sizes: Sequence[int], runs: int, say: Say) -> tuple[list[Matrix], list[Table]]:
    """Measure each number of footprints, and then inserts one by one against inserts of blocks."""
    loads = Table("Loading, until the footprints are visible", ("footprints", "store", "s", "rows/s"))
    disk = Table(
        "Bytes on disk",
        ("footprints", "store", "bytes", "bytes a row"),
        notes=["of the tables with their indexes, after one run of the maintenance tasks; without rollups"],
    )
    used = Table(
        "CPU time and memory",
        ("footprints", "program", "CPU s, loading", "CPU s, hot queries", "peak MB"),
        notes=[
            "memory: the proportional share (PSS) of all processes of a program, sampled while loading and querying"
        ],
    )
    matrices: list[Matrix] = []
    inserts: list[Table] = []
    for rows in sizes:
        say(f"{rows:,} footprints")
        settings = LocalSettings.on_free_ports(folder / str(rows)).model_copy(update={"lake_writer": "embedded"})
        stack = Stack(settings, _PROGRAMS)
        try:
            stack.up()
            with _Dashboard(stack) as dashboard:
                with Meter(stack) as loading:
                    loaded = dashboard.load(rows)
                loads.rows.extend((rows, name, seconds, rows / seconds) for name, seconds in loaded.items())
                say(f"visible after {', '.join(f'{name} {seconds:.1f} s' for name, seconds in loaded.items())}")
                maintain_once(settings)
                with Meter(stack) as querying:
                    matrices += [dashboard.hot(rows, variant, runs, say) for variant in _VARIANTS]
                used.rows.extend(_usage(rows, loading, querying))
                disk.rows.extend((rows, name, size, size / rows) for name, size in _disk(settings).items())
                matrices.append(dashboard.cold(rows, say))
            if rows == sizes[-1]:
                inserts.append(footprint_inserts.measure(settings, say))
        finally:
            stack.down(wipe=True)
    return matrices, [loads, disk, used, *inserts]


def _usage(rows: int, loading: Meter, querying: Meter) -> list[tuple[str | float, ...]]:
    return [
        (rows, name, loading.cpu[name], querying.cpu.get(name, 0.0), max(loading.peak[name], querying.peak[name]) / 1e6)
        for name in loading.cpu
    ]


def _disk(settings: LocalSettings) -> dict[str, int]:
    """Return the bytes of the table in each store. The lake: its live files."""
    urls = settings.urls()
    with psycopg.connect(urls["LOGPIPE_POSTGRES_URL"]) as connection:
        query = "SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(%s)"
        [in_postgres] = connection.execute(query, (DATASET.name,)).fetchone() or [0]
    query = f"SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND table = '{DATASET.name}'"  # noqa: S608
    with closing(connect(urls["LOGPIPE_CLICKHOUSE_URL"], 60)) as client:
        in_clickhouse = client.command(query)
    table = DeltaTable(table_uri(LakeSettings(hdfs_url=urls["LOGPIPE_HDFS_URL"]), DATASET.name))
    in_lake = sum(Snapshot.of(table).files["size_bytes"].to_pylist())
    return {
        postgres.STORE.label: int(in_postgres),
        clickhouse.STORE.label: int(str(in_clickhouse)),
        lake.STORE.label: int(in_lake),
    }


@dataclass(frozen=True, slots=True)
class Answer:
    """`problem` says why there is no result."""

    milliseconds: float
    method: str
    data: Any
    problem: str = ""


Ask = Callable[[str, str], Answer]
"""Queries a store, by its route, for a panel."""


class _Dashboard:
    """Loads the footprints of a stack, and queries the panels. A query is as of the last batch of the load."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._client = httpx.Client(timeout=600, trust_env=False)
        self._query_url = f"http://127.0.0.1:{stack.settings.query_port}/api/query"
        self._as_of = 0
        now = datetime.now(UTC)
        self._period = {
            "start_time": (now - timedelta(days=_DAYS + 1)).isoformat(),
            "end_time": (now + timedelta(days=1)).isoformat(),
        }

    def __enter__(self) -> "_Dashboard":
        return self

    def __exit__(self, *ended: object) -> None:
        self._client.close()

    def load(self, rows: int) -> dict[str, float]:
        """Send the footprints; returns for each store the seconds until it has all of them."""
        start, seconds = time.monotonic(), dict[str, float]()
        url = f"http://127.0.0.1:{self._stack.settings.generator_port}/burst/{DATASET.name}"
        sent = self._client.post(url, params={"count": rows, "days": _DAYS}, timeout=None).raise_for_status().json()
        if sent["sent"] != rows:
            raise RuntimeError(f"{sent['sent']} of {rows} footprints were accepted: {sent['problem']}")
        first, *waited = stores.readable()  # PostgreSQL has each accepted batch, and the others get it from there
        while self._rows_as_of_now(first.route) < rows:
            _check_time(start)
        seconds[first.label] = time.monotonic() - start
        while waited:
            for store in list(waited):
                if self._as_of_of(store.route) >= self._as_of:
                    seconds[store.label] = time.monotonic() - start
                    waited.remove(store)
            _check_time(start)
        for store in stores.readable():
            if (found := self._rows(store.route)) != rows:
                raise RuntimeError(f"{store.label} has {found} rows of {rows} footprints")
        return seconds

    def _rows_as_of_now(self, route: str) -> int:
        self._as_of = self._as_of_of(route)
        return self._rows(route)

    def _rows(self, route: str) -> int:
        answer = self._ask(route, "total", {"method": "scan", "cache": "off"})
        if answer.problem:
            raise RuntimeError(f"{route} does not count the footprints: {answer.problem}")
        return int(answer.data["count"])

    def hot(self, rows: int, variant: str, runs: int, say: Say) -> Matrix:
        """Query each panel `runs` times, after one query that does not count."""
        say(variant)
        ask = partial(self._ask, parameters=_VARIANTS[variant])
        return _measured(f"{rows:,} footprints, {variant}", range(-1, runs), ask)

    def cold(self, rows: int, say: Say) -> Matrix:
        """Query each panel once after each new start of the stores. The kernel has dropped the stores' files."""
        say("cold")
        ask = partial(self._ask_when_ready, parameters={"method": "scan", "cache": "off"})
        note = "first query after a start, its files not in memory"
        return _measured(f"{rows:,} footprints, cold", range(_COLD_RUNS), ask, self._chill, note)

    def _ask(self, route: str, panel: str, parameters: Mapping[str, str]) -> Answer:
        query = {"panel": panel, "zone": _ZONE, **self._period, "as_of": str(self._as_of), **parameters}
        start = time.perf_counter()
        reply = self._client.get(f"{self._query_url}/{route}/{DATASET.name}/traffic", params=query)
        milliseconds = (time.perf_counter() - start) * 1000
        body = reply.json()
        if not reply.is_success:
            return Answer(milliseconds, "", None, str(body["detail"]))
        return Answer(milliseconds, body["method"], body["data"])

    def _ask_when_ready(self, route: str, panel: str, parameters: Mapping[str, str]) -> Answer:
        """Query a store that may not be reachable yet after its start. Only the query that succeeds is timed."""
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            answer = self._ask(route, panel, parameters)
            if not answer.problem or time.monotonic() > deadline:
                return answer
            time.sleep(_POLL_SECONDS)

    def _as_of_of(self, route: str) -> int:
        reply = self._client.get(f"{self._query_url}/{route}/stats", params={"cache": "off"})
        return int(reply.raise_for_status().json()["as_of"])

    def _chill(self) -> None:
        for name in _RESTARTED:
            self._stack.supervisor.stop(name)
        for name in _FILES:
            _drop_from_memory(unprivileged.data_folder(self._stack.program(name).folder))
        self._stack.up()


def _check_time(start: float) -> None:
    """Wait for the next look at a load that began at `start`. Raises RuntimeError if it takes too long."""
    if time.monotonic() - start > _SETTLE_SECONDS:
        raise RuntimeError(f"the stores have not loaded the footprints after {_SETTLE_SECONDS:g} s")
    time.sleep(_POLL_SECONDS)


def _measured(title: str, runs: range, ask: Ask, prepare: Callable[[], None] = lambda: None, note: str = "") -> Matrix:
    """Query the stores in a random order, in each run of each panel. Runs below 0 are not timed.

    `prepare` is called before each run. `note` is for every cell; without one, the method of the last answer is noted.
    """
    matrix, seen = Matrix(title, "ms"), defaultdict[str, list[tuple[str, Answer]]](list)
    for panel in get_args(Panel):
        for run in runs:
            prepare()
            order = list(stores.readable())
            random.Random(f"{title} {panel} {run}").shuffle(order)  # noqa: S311 - no secret depends on it
            for store in order:
                answer = ask(store.route, panel)
                matrix.notes[panel, store.label] = note or answer.method
                seen[panel].append((store.label, answer))
                if run >= 0:
                    matrix.cells.setdefault((panel, store.label), []).append(answer.milliseconds)
    void_differing(matrix, seen)
    return matrix


def void_differing(matrix: Matrix, seen: Mapping[str, Sequence[tuple[str, Answer]]]) -> None:
    """Drop the times of a store that once gave no result, or another one than the first store that gave one."""
    for panel, answers in seen.items():
        results = [answer.data for _, answer in answers if not answer.problem]
        for label, answer in answers:
            if answer.problem or answer.data != results[0]:
                matrix.cells.pop((panel, label), None)
                matrix.notes[panel, label] = f"void: {answer.problem or 'another result'}"


def _drop_from_memory(folder: Path) -> None:
    """Have the kernel forget the contents of all files below `folder`. Files that vanish meanwhile are left out."""
    for path in usage.files_below(folder):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                os.fsync(file)  # what is not on disk yet stays in memory
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
