"""PostgreSQL's clock decides about rows, however wrong the clock of a process is."""

import time
from collections.abc import Iterator
from contextlib import closing
from uuid import uuid4

import pytest

from services import datasets
from services.core.instants import DAY
from services.core.rows import RowCodec
from services.ingest_api.committer import Accepted, Committer, Submission
from services.ingest_api.upkeep import DAYS_AHEAD, Upkeep
from services.ledger import slots
from services.postgres.clock import now_microseconds
from services.postgres.connection import Connection, connect
from services.stores import postgres

DATASET = datasets.find("logs")
CODEC = RowCodec(DATASET)
ROW = b'{"timestamp": "2026-01-31T12:00:00Z", "level": "INFO", "service": "auth"}'
YEAR = 365 * 86_400


@pytest.fixture
def connection(postgres_url: str) -> Iterator[Connection]:
    with closing(connect(postgres_url)) as opened:
        yield opened


@pytest.fixture(params=[-YEAR, YEAR], ids=["a year behind", "a year ahead"])
def wrong_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, nanoseconds = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: seconds() + request.param)
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds() + request.param * 10**9)


def partitions(connection: Connection) -> set[str]:
    query = (
        "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'logs'::regclass"
    )
    return {name for (name,) in connection.execute(query)}


@pytest.mark.usefixtures("wrong_clock")
def test_rows_partitions_and_leases_follow_postgres(postgres_url: str, connection: Connection) -> None:
    upkeep = Upkeep(postgres_url, (DATASET,), 24)
    upkeep._prepare(connection)
    for name in partitions(connection):
        connection.execute(f"DROP TABLE {name}")
    before = now_microseconds(connection)
    with closing(Committer(postgres_url, {"logs": CODEC}, lambda: 500_000, lambda *_: None, 100, 4)) as committer:
        [outcome] = committer.commit(DATASET, [Submission(CODEC.decode_lines(ROW))])  # it makes its own partition
    assert isinstance(outcome, Accepted)
    upkeep._once(connection)
    after = now_microseconds(connection)
    days = range(before // DAY, after // DAY + DAYS_AHEAD)
    assert partitions(connection) == {postgres.copy_target(DATASET, day) for day in days}
    row = connection.execute("SELECT created_at FROM batches WHERE batch_id = %s", (outcome.batch_id,)).fetchone()
    assert row is not None
    assert before <= row[0] <= after
    query = "SELECT count(*) FROM logs WHERE id >> 17 = %s AND created_at = to_timestamp(%s::numeric / 1000000)"
    assert connection.execute(query, (outcome.batch_id, row[0])).fetchone() == (1,)

    owner = uuid4()
    lease = slots.acquire(connection, owner)
    assert slots.renew(connection, owner) == {lease}
    assert slots.acquire(connection, uuid4()).slot != lease.slot
    connection.execute("DELETE FROM batches WHERE batch_id = %s", (outcome.batch_id,))
    connection.execute("DELETE FROM logs WHERE id >> 17 = %s", (outcome.batch_id,))


def test_a_lease_from_a_clock_that_was_ahead_before_a_crash_is_lapsed(
    connection: Connection, postgres_url: str
) -> None:
    Upkeep(postgres_url, (DATASET,), 24)._prepare(connection)
    owner = uuid4()
    lease = slots.acquire(connection, owner)
    connection.execute("UPDATE slots SET renewed_at = now() + interval '1 hour' WHERE slot = %s", (lease.slot,))
    heir = uuid4()
    taken = slots.take_over(connection, heir, lease.slot)
    assert (taken.slot, taken.epoch) == (lease.slot, lease.epoch + 1)
    assert slots.renew(connection, owner) == set()
