"""The index of PostgreSQL for text search: on closed days only, and only where the server has pg_trgm.

The PostgreSQL of the wheel has no pg_trgm; Debian's package has it.
"""

from dataclasses import replace

import pytest

from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.postgres.connection import connect
from services.stores import postgres
from services.stores.postgres import tables
from services.stores.postgres.tables import SEARCH_LOCK, midnight

DAY = 20_778
SEARCHED = replace(LOGS, name="searched")


def test_closed_days_are_indexed_once(debian_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(debian_postgres_url) as connection, connect(debian_postgres_url) as other:
        postgres.prepare(connection, SEARCHED)
        postgres.ensure_partitions(connection, SEARCHED, DAY, 4)
        other.execute("SELECT pg_advisory_lock(%s)", (SEARCH_LOCK,))
        assert postgres.index_search(connection, SEARCHED, DAY + 2) == []  # another process holds the lock
        other.execute("SELECT pg_advisory_unlock_all()")
        closed = [postgres.partition_name(SEARCHED, day) for day in (DAY, DAY + 1)]
        connection.execute(
            "INSERT INTO searched (id, created_at, timestamp, level, service)"
            " SELECT n, %s, now(), 'INFO', 'api' FROM generate_series(1, 100) AS n",
            (midnight(DAY),),
        )
        connection.execute("ANALYZE searched")
        monkeypatch.setattr(tables, "SEARCHED_ROWS", 99)
        assert postgres.index_search(connection, SEARCHED, DAY + 2) == [closed[1]]
        monkeypatch.setattr(tables, "SEARCHED_ROWS", 100)
        assert postgres.index_search(connection, SEARCHED, DAY + 2) == [closed[0]]
        assert postgres.index_search(connection, SEARCHED, DAY + 2) == []
        assert postgres.index_search(connection, EVENTS, DAY + 2) == []
        query = "SELECT tablename FROM pg_indexes WHERE indexdef LIKE '%gin_trgm_ops%' ORDER BY 1"
        assert connection.execute(query).fetchall() == [(name,) for name in closed]
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(
            "EXPLAIN SELECT count(*) FROM searched WHERE message LIKE '%%zebra%%' AND created_at < %s",
            (midnight(DAY + 1),),
        ).fetchall()
        assert any("_message_trgm" in line for (line,) in plan), plan


def test_a_server_without_pg_trgm_does_without(postgres_url: str) -> None:
    with connect(postgres_url) as connection:
        postgres.prepare(connection, SEARCHED)
        postgres.ensure_partitions(connection, SEARCHED, DAY, 1)
        assert postgres.index_search(connection, SEARCHED, DAY + 1) == []
