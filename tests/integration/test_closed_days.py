"""With hundreds of day partitions in PostgreSQL, a query plans those alone that can hold what it asks for."""

import json
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from psycopg import sql

from services.core.instants import DAY
from services.core.queries import AggregateQuestion, Filters, ListQuestion, Question
from services.core.rows import Row
from services.datasets.logs import DATASET
from services.postgres.connection import connect
from services.stores import postgres
from services.stores.postgres import closed_days, questions
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


class Planned(questions.Asked):
    """Counts the day partitions that each statement's plan names."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection, time.monotonic() + 60)
        self.partitions: list[int] = []

    def fetch(self, query: sql.Composed, parameters: Sequence[Any]) -> list[Row]:
        plan = self._connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) ") + query, parameters).fetchone()
        named = json.dumps(plan[0] if plan else "").split('"Relation Name": "logs_y')
        self.partitions.append(len({name[:10] for name in named[1:]}))
        return super().fetch(query, parameters)


def ask(own_postgres_url: str, question: Question) -> tuple[list[Row], int]:
    """The rows, and the most partitions that a statement was planned for."""
    reader = postgres.PostgresReader(own_postgres_url)
    with reader._pool.connection() as connection, connection.transaction():
        asked = Planned(connection)
        answer = questions.answer(asked, question, AS_OF)
    reader.close()
    return answer.rows, max(asked.partitions)


NEWEST = ListQuestion(DATASET, limit=15, count=False)


def of(number: int) -> int:
    """Midnight of a day of the history, in microseconds."""
    return (TODAY - DAYS + number) * DAY


ONE_DAY = Filters(start=of(5), end=of(6))
ASKED: list[tuple[Question, int]] = [
    (NEWEST, 3),
    (ListQuestion(DATASET, order_by="created_at", limit=15, count=False), 3),
    (ListQuestion(DATASET, ONE_DAY), 2),
    (ListQuestion(DATASET, Filters(end=of(10)), limit=15, count=False), 3),
    (ListQuestion(DATASET, limit=5, count=False, after=(of(20), 20 << 17)), 3),
    (AggregateQuestion(DATASET, "level", ONE_DAY), 2),
    (ListQuestion(DATASET, limit=35, count=False), 5),
    (ListQuestion(DATASET, Filters((("service", "nobody"),)), limit=15, count=False), DAYS + 1),
]


@pytest.mark.parametrize(("question", "most"), ASKED, ids=range(len(ASKED)))
def test_few_partitions_are_planned(connection: Any, own_postgres_url: str, question: Question, most: int) -> None:
    before, planned = ask(own_postgres_url, question)
    assert planned == DAYS + 1
    assert postgres.close_days(connection, DATASET) == DAYS
    assert postgres.close_days(connection, DATASET) == 0
    after, planned = ask(own_postgres_url, question)
    assert after == before
    assert planned <= most or len(before) > 30


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
    found, planned = ask(own_postgres_url, ListQuestion(DATASET, Filters(start=0), limit=1000, count=False))
    assert (len(found), planned) == (110, 11)


def test_the_note_of_a_dropped_day_is_dropped(
    connection: Any, own_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", own_postgres_url)
    postgres.close_days(connection, DATASET)
    assert postgres.drop_days(DATASET, TODAY - 20) == DAYS - 20
    assert connection.execute("SELECT min(day) FROM closed_days").fetchone() == (TODAY - 20,)


def test_ranges_of_consecutive_days_are_left_out_together() -> None:
    days = [closed_days.ClosedDay(day, 0, 0, 0) for day in (7, 3, 4, 5, 9)]
    assert closed_days._ranges(sorted(day.day for day in days)) == [(3, 5), (7, 7), (9, 9)]
    assert midnight(5) + timedelta(days=1) == midnight(6)
