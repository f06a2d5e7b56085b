"""Footprints that are inserted one by one, against footprints that are inserted as blocks.

Both go into an empty copy of the store's table, over one connection. Each insert is a transaction of its own. Two
things are measured: how many rows a second can be inserted, and how late rows are that come at a fixed rate. The lake
is left out: it has commits of files, and no insert of one row.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import psycopg
from psycopg.sql import SQL, Identifier, Placeholder

from services.bench.cases.figures import Table
from services.core.ids import first_id
from services.datasets.footprints import DATASET
from services.local.settings import LocalSettings
from services.stores import clickhouse, postgres

_COPY = "bench_footprints"
_SINGLE_ROWS = 1000
_BLOCK_ROWS = 10_000
_BLOCKS = 5
_RATE = 1000  # rows/s
_SECONDS = 10.0
_SAMPLE = 10_000  # rows of the dataset that are inserted again and again, under other ids

Insert = Callable[[Sequence[Any]], None]
Say = Callable[[str], None]


def measure(settings: LocalSettings, say: Say) -> Table:
    """The dataset must have rows."""
    title = f"Inserts of one row, and of blocks; {_RATE:,} rows/s for {_SECONDS:g} s"
    head = ("store", "insert", "rows/s, at most", "inserted of those that came", "lag, median ms", "lag, last ms")
    table = Table(title, head, notes=["lag: from the time when a row comes until the insert that has it ends"])
    for label, opened in ((postgres.STORE.label, _postgres), (clickhouse.STORE.label, _clickhouse)):
        with opened(settings) as (rows, one, block):
            for way, insert, most in (("one row", one, 1), (f"up to {_BLOCK_ROWS:,} rows", block, _BLOCK_ROWS)):
                say(f"{label}: inserts of {way}")
                rate = _fastest(insert, rows, most)
                lags, inserted = _lags(insert, rows, most)
                came = f"{inserted:,} of {_RATE * _SECONDS:,.0f}"
                table.rows.append((label, way, rate, came, statistics.median(lags) * 1000, lags[-1] * 1000))
    return table


def _fastest(insert: Insert, rows: Iterator[Any], most: int) -> float:
    blocks = [list(itertools.islice(rows, most)) for _ in range(_SINGLE_ROWS if most == 1 else _BLOCKS)]
    start = time.perf_counter()
    for block in blocks:
        insert(block)
    return sum(map(len, blocks)) / (time.perf_counter() - start)


def _lags(insert: Insert, rows: Iterator[Any], most: int) -> tuple[list[float], int]:
    """Return how late the oldest row of each insert was, and the number of rows inserted within the time."""
    coming, lags, done = list(itertools.islice(rows, int(_RATE * _SECONDS))), [], 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _SECONDS:
        due = min(int(elapsed * _RATE), done + most, len(coming))
        if due == done:
            time.sleep(0.0005)
            continue
        insert(coming[done:due])
        lags.append(time.perf_counter() - start - done / _RATE)
        done = due
    return lags, done


@contextmanager
def _postgres(settings: LocalSettings) -> Iterator[tuple[Iterator[Any], Insert, Insert]]:
    with psycopg.connect(settings.urls()["LOGPIPE_POSTGRES_URL"], autocommit=True) as connection:
        columns = [Identifier(name) for name in ("id", "created_at", *(column.name for column in DATASET.columns))]
        query = SQL("SELECT {} FROM {} LIMIT %s").format(SQL(", ").join(columns), Identifier(DATASET.name))
        sample = connection.execute(query, (_SAMPLE,)).fetchall()
        leaf = "SELECT relid::regclass::text FROM pg_partition_tree(%s) WHERE isleaf ORDER BY relid LIMIT 1"
        [partition] = connection.execute(leaf, (DATASET.name,)).fetchone() or [DATASET.name]
        names = SQL(", ").join(columns)
        insert = SQL("INSERT INTO {} ({}) VALUES ({})").format(
            Identifier(_COPY), names, SQL(", ").join(Placeholder() for _ in columns)
        )
        copy = SQL("COPY {} ({}) FROM STDIN").format(Identifier(_COPY), names)

        def one(rows: Sequence[Any]) -> None:
            connection.execute(insert, rows[0])

        def block(rows: Sequence[Any]) -> None:
            with connection.cursor() as cursor, cursor.copy(copy) as copying:
                for row in rows:
                    copying.write_row(row)

        connection.execute(SQL("DROP TABLE IF EXISTS {}").format(Identifier(_COPY)))
        like = SQL("CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING INDEXES)")
        connection.execute(like.format(Identifier(_COPY), Identifier(partition)))
        try:
            yield (((number, *row[1:]) for number, row in enumerate(itertools.cycle(sample), first_id(1)))), one, block
        finally:
            connection.execute(SQL("DROP TABLE {}").format(Identifier(_COPY)))


@contextmanager
def _clickhouse(settings: LocalSettings) -> Iterator[tuple[Iterator[Any], Insert, Insert]]:
    with httpx.Client(base_url=settings.urls()["LOGPIPE_CLICKHOUSE_URL"], timeout=300, trust_env=False) as client:

        def run(statement: str) -> str:
            return client.post("/", content=statement.encode()).raise_for_status().text

        def insert(rows: Sequence[Any]) -> None:
            run(f"INSERT INTO {_COPY} FORMAT JSONEachRow\n" + "\n".join(rows))

        sample = run(f"SELECT * FROM {DATASET.name} LIMIT {_SAMPLE} FORMAT JSONEachRow").splitlines()  # noqa: S608
        decoded = [json.loads(line) for line in sample]
        run(f"DROP TABLE IF EXISTS {_COPY}")
        run(f"CREATE TABLE {_COPY} AS {DATASET.name}")
        try:
            rows = ({**row, "id": number} for number, row in enumerate(itertools.cycle(decoded), first_id(1)))
            yield map(json.dumps, rows), insert, insert
        finally:
            run(f"DROP TABLE {_COPY}")
