"""The view `user_footprint` in PostgreSQL and ClickHouse: the names of the system before this one."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from services.acceptance.committer import Committer, Submission
from services.core.ids import first_id
from services.core.ports import Block
from services.core.rows import RowCodec
from services.datasets.footprints import DATASET
from services.postgres.connection import Connection, connect
from services.stores.clickhouse.client import connect as connect_clickhouse
from services.stores.clickhouse.writer import ClickHouseWriter

COLUMNS = ["id", "link", "request", "footprint_time", "execute_time", "status", "duration_ms", "route", "service"]
CODEC = RowCodec(DATASET)
ROWS = CODEC.decode_lines(
    b'{"method":"GET","link":"/a/1","footprint_time":"2026-01-31T21:00:00.5+09:00"}\n'
    b'{"method":"POST","link":"/b","footprint_time":"2026-01-31T12:00:01Z","status":201,"duration_ms":1.5,'
    b'"route":"/b","service":"shop"}'
)
NOON = datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)
WANTED: list[tuple[Any, ...]] = [
    ("/a/1", "GET", NOON, None, None, "", ""),
    ("/b", "POST", NOON.replace(second=1, microsecond=0), 201.0, 1.5, "/b", "shop"),
]


@pytest.fixture
def connection(own_postgres_url: str) -> Iterator[Connection]:
    with closing(connect(own_postgres_url)) as opened:
        yield opened


def test_postgres(connection: Connection, own_postgres_url: str) -> None:
    committer = Committer(own_postgres_url, {DATASET.name: CODEC}, lambda: 0, lambda batch, outgoing: None, 100, 4)
    with closing(committer):
        committer.commit(DATASET, [Submission([ROWS])])
    found = connection.execute("SELECT * FROM user_footprint ORDER BY id")
    assert [column.name for column in found.description or ()] == COLUMNS
    rows = found.fetchall()
    assert [(*row[1:4], *row[5:]) for row in rows] == WANTED
    [[now]] = connection.execute("SELECT clock_timestamp()").fetchall()
    assert all(abs((now - row[4]).total_seconds()) < 600 for row in rows)
    query = """SELECT attname, col_description(attrelid, attnum) FROM pg_attribute
               WHERE attrelid = 'user_footprint'::regclass AND attnum > 0"""
    assert all(comment for _, comment in connection.execute(query))


def test_clickhouse(clickhouse_url: str) -> None:
    writer = ClickHouseWriter(clickhouse_url)
    created_at = 20_000 * 86_400_000_000
    lines = CODEC.encode(ROWS.tuples(7, created_at))
    for _ in range(2):
        writer.prepare(DATASET)
    writer.write([Block(DATASET, "topic", 0, 0, 0, 20_000, 2, b"".join(line + b"\n" for line in lines))])
    with closing(connect_clickhouse(clickhouse_url, 30)) as client:
        found = client.query("SELECT * FROM user_footprint ORDER BY id")
        assert list(found.column_names) == COLUMNS
        rows = [tuple(row) for row in found.result_rows]
    assert [row[0] for row in rows] == [first_id(7), first_id(7) + 1]
    in_utc = [(*row[1:3], row[3].replace(tzinfo=UTC), *row[5:]) for row in rows]  # the driver leaves the zone out
    assert in_utc == WANTED
