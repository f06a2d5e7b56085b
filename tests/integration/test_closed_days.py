"""With hundreds of day partitions in PostgreSQL, a query plans those alone that can hold what it asks for."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from psycopg import sql

from services.core.dataset import Dataset
from services.core.instants import DAY
from services.core.ledger import Batch
from services.core.queries import AggregateQuery, Filters, ListQuery, Query
from services.core.rows import Row
from services.datasets.logs import DATASET
from services.postgres.connection import connect
from services.stores import postgres
from services.stores.postgres import closed_days, queries, retention, schema
from services.stores.postgres import reader as reader_module
from services.stores.postgres.tables import midnight

TODAY = time.time_ns() // 1000 // DAY
DAYS = 30
AS_OF = 1000


@pytest.fixture
def connection(own_postgres_url: str) -> Iterator[Any]:
    """Ten rows a day, each with the time of its acceptance; the batch has the number of the day in the history."""
    with connect(own_postgres_url) as found:
        postgres.prepare(found, DATASET)
        postgres.ensure_partitions(found, DATASET, TODAY - DAYS, DAYS + 1)
        for number in range(DAYS + 1):
            insert(found, TODAY - DAYS + number, number + 1)
        yield found


def insert(connection: Any, day: int, batch: int, hours: int = 0) -> None:
    """Ten rows accepted on a day; their times are `hours` later."""
    values = (batch, midnight(day), midnight(day), hours)
    connection.execute(
        "INSERT INTO logs (id, created_at, timestamp, level, service, message)"
        " SELECT (%s::bigint << 17) + n, %s::timestamptz, %s::timestamptz + make_interval(hours => %s, secs => n),"
        " 'INFO', 'api', 'm' FROM generate_series(0, 9) AS n",
        values,
    )


class Planned(queries.Execution):
    """Counts the day partitions that each statement's plan names."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection, time.monotonic() + 60)
        self.partitions: list[int] = []

    def fetch(self, query: sql.Composed, parameters: Sequence[Any]) -> list[Row]:
        plan = self._connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) ") + query, parameters).fetchone()
        named = json.dumps(plan[0] if plan else "").split('"Relation Name": "logs_y')
        self.partitions.append(len({name[:10] for name in named[1:]}))
        return super().fetch(query, parameters)


def ask(own_postgres_url: str, query: Query) -> tuple[list[Row], int]:
    """The rows, and the most partitions that a statement was planned for."""
    reader = postgres.PostgresReader(own_postgres_url)
    with reader._pool.connection() as connection, connection.transaction():
        execution = Planned(connection)
        result = queries.run(execution, query, AS_OF)
    reader.close()
    return result.rows, max(execution.partitions)


NEWEST = ListQuery(DATASET, limit=15, count=False)


def of(number: int) -> int:
    """Midnight of a day of the history, in microseconds."""
    return (TODAY - DAYS + number) * DAY


ONE_DAY = Filters(start=of(5), end=of(6))
ASKED: list[tuple[Query, int]] = [
    (NEWEST, 3),
    (ListQuery(DATASET, order_by="created_at", limit=15, count=False), 3),
    (ListQuery(DATASET, ONE_DAY), 2),
    (ListQuery(DATASET, Filters(end=of(10)), limit=15, count=False), 3),
    (ListQuery(DATASET, limit=5, count=False, after=(of(20), 20 << 17)), 3),
    (AggregateQuery(DATASET, "level", ONE_DAY), 2),
    (ListQuery(DATASET, limit=35, count=False), 5),
    (ListQuery(DATASET, Filters((("service", "nobody"),)), limit=15, count=False), DAYS + 1),
]


@pytest.mark.parametrize(("query", "most"), ASKED, ids=range(len(ASKED)))
def test_few_partitions_are_planned(connection: Any, own_postgres_url: str, query: Query, most: int) -> None:
    before, planned = ask(own_postgres_url, query)
    assert planned == DAYS + 1
    assert postgres.close_days(connection, DATASET) == DAYS
    assert postgres.close_days(connection, DATASET) == 0
    after, planned = ask(own_postgres_url, query)
    assert after == before
    assert planned <= most or len(before) > 30


def test_batches_are_read_from_the_partitions_of_their_days(
    connection: Any, own_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plans(monkeypatch)
    batches = [Batch(number, 0, "logs", 10, 0, of(number - 1)) for number in (6, 7, 20)]
    with closing(postgres.PostgresReader(own_postgres_url)) as reader:
        assert list(reader.counts_of(DATASET, batches)) == [(6, 10, 10), (7, 10, 10), (20, 10, 10)]
        assert sorted({row[0] >> 17 for row in reader.rows_of(DATASET, batches)}) == [6, 7, 20]
        assert planned == [1] * 6
        assert [*reader.counts(DATASET, 6, 7), len(list(reader.rows(DATASET, 6, 7)))] == [(6, 10, 10), (7, 10, 10), 20]
        assert planned[6:] == [DAYS + 1] * 2
        postgres.close_days(connection, DATASET)
        assert [*reader.counts(DATASET, 6, 7), len(list(reader.rows(DATASET, 6, 7)))] == [(6, 10, 10), (7, 10, 10), 20]
        assert planned[8:] == [3] * 2, "their two days, and the one that is not over"


def plans(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each later read by batches, how many day partitions its plan names."""
    planned: list[int] = []

    def noted(read: Any) -> Any:
        def explained(connection: Any, dataset: Dataset, where: sql.Composed) -> Any:
            plan = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM logs WHERE {}").format(where))
            planned.append(len(set(re.findall(r'"Relation Name": "(logs_y\w+)"', json.dumps(plan.fetchone()[0])))))
            return read(connection, dataset, where)

        return explained

    for name in ("_counts", "_copy"):
        monkeypatch.setattr(reader_module, name, noted(getattr(reader_module, name)))
    return planned


@pytest.mark.parametrize("day", [TODAY - 20, TODAY - 3])
def test_rows_that_nobody_accepted_are_found_on_closed_days(connection: Any, own_postgres_url: str, day: int) -> None:
    postgres.close_days(connection, DATASET)
    insert(connection, day, 500)
    insert(connection, day, 3)
    for _ in range(2):
        with closing(postgres.PostgresReader(own_postgres_url)) as reader:
            assert list(reader.counts(DATASET, 2, 3)) == [(2, 10, 10), (3, 20, 10)]
            assert list(reader.counts(DATASET, 400, 600)) == [(500, 10, 10)]
        assert postgres.close_days(connection, DATASET) in (0, 1)


def test_a_partition_that_was_put_in_place_of_a_closed_one_is_read(connection: Any, own_postgres_url: str) -> None:
    """The note of the former partition is still there, but the trigger that would delete it is not."""
    postgres.close_days(connection, DATASET)
    connection.execute(f"DROP TABLE {postgres.partition_name(DATASET, TODAY - 20)}")
    postgres.ensure_partitions(connection, DATASET, TODAY - 20, 1)
    insert(connection, TODAY - 20, 500)
    with closing(postgres.PostgresReader(own_postgres_url)) as reader:
        assert list(reader.counts(DATASET, 400, 600)) == [(500, 10, 10)]


def test_closing_a_day_reads_a_small_part_of_its_partition(connection: Any) -> None:
    """The least and the greatest id are in the middle of the table, where no order of the rows leads to them."""
    day = TODAY - 20
    partition = postgres.partition_name(DATASET, day)
    connection.execute(f"DELETE FROM {partition}")
    for first, rows in ((1_000_000, 30_000), (17, 1), (9_000_000, 1), (2_000_000, 30_000)):
        connection.execute(
            "INSERT INTO logs (id, created_at, timestamp, level, service, message)"
            " SELECT %s + n, %s, %s::timestamptz + make_interval(secs => n), 'INFO', 'api', repeat('m', 500)"
            " FROM generate_series(1, %s) AS n",
            (first, midnight(day), midnight(day), rows),
        )
    connection.execute(f"VACUUM {partition}")  # which brings the index of ids up to date
    before = rows_read(connection, partition)
    postgres.close_days(connection, DATASET)
    assert rows_read(connection, partition) - before < 12_000
    note = connection.execute("SELECT least, greatest, first_id, last_id FROM closed_days WHERE day = %s", (day,))
    assert note.fetchone() == (of(DAYS - 20) + 1_000_000, of(DAYS - 20) + 30_000_000_000, 18, 9_000_001)


def rows_read(connection: Any, table: str) -> int:
    """How many rows of a table PostgreSQL has read since its statistics began, by scans and through indexes."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    query = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_user_tables WHERE relname = %s"
    return int(connection.execute(query, (table,)).fetchone()[0])


def test_notes_of_an_earlier_release_are_completed(connection: Any, own_postgres_url: str) -> None:
    postgres.close_days(connection, DATASET)
    connection.execute("ALTER TABLE closed_days DROP COLUMN first_id")
    connection.execute((schema.MIGRATIONS.folder / "postgres-0001-rollups-and-closed-days.sql").read_bytes())
    with closing(postgres.PostgresReader(own_postgres_url)) as reader:
        assert list(reader.counts(DATASET, 6, 6)) == [(6, 10, 10)]
        assert postgres.close_days(connection, DATASET) == DAYS
        assert postgres.close_days(connection, DATASET) == 0
        assert list(reader.counts(DATASET, 6, 6)) == [(6, 10, 10)]


def test_a_row_that_comes_late_is_found(connection: Any, own_postgres_url: str) -> None:
    """A clock was put back: the day is over, and its note says that it holds nothing as new."""
    postgres.close_days(connection, DATASET)
    insert(connection, TODAY - 20, 500, hours=24 * 25)
    found, _ = ask(own_postgres_url, NEWEST)
    assert [row[0] >> 17 for row in found] == [500] * 10 + [DAYS + 1] * 5
    assert postgres.close_days(connection, DATASET) == 1
    again, planned = ask(own_postgres_url, NEWEST)
    assert again == found
    assert planned <= 4


def test_a_writer_that_has_not_committed_keeps_its_day_open(
    connection: Any, own_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_days, "_LOCK_TIMEOUT", "50ms")
    with connect(own_postgres_url, autocommit=False) as writer:
        insert(writer, TODAY - 20, 500, hours=24 * 25)
        assert postgres.close_days(connection, DATASET) == DAYS - 1
        writer.commit()
    assert [row[0] >> 17 for row in ask(own_postgres_url, NEWEST)[0]][:10] == [500] * 10
    assert postgres.close_days(connection, DATASET) == 1


def test_a_day_without_rows_is_left_out(connection: Any, own_postgres_url: str) -> None:
    connection.execute("DELETE FROM logs WHERE created_at < %s", (midnight(TODAY - 10),))
    assert postgres.close_days(connection, DATASET) == DAYS
    found, planned = ask(own_postgres_url, ListQuery(DATASET, Filters(start=0), limit=1000, count=False))
    assert (len(found), planned) == (110, 11)


def test_the_note_of_a_dropped_day_is_dropped(
    connection: Any, own_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", own_postgres_url)
    postgres.close_days(connection, DATASET)
    assert retention.drop_days(DATASET, TODAY - 20) == DAYS - 20
    assert connection.execute("SELECT min(day) FROM closed_days").fetchone() == (TODAY - 20,)


def test_ranges_of_consecutive_days_are_left_out_together() -> None:
    days = [closed_days.ClosedDay(day, 0, 0, 0) for day in (7, 3, 4, 5, 9)]
    assert closed_days._ranges(sorted(day.day for day in days)) == [(3, 5), (7, 7), (9, 9)]
    assert midnight(5) + timedelta(days=1) == midnight(6)
