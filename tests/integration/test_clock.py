"""PostgreSQL's clock decides about rows, however wrong the clock of a process is."""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner

from services import datasets
from services.acceptance.committer import Accepted, Committer, Submission
from services.acceptance.postgres_maintenance import DAYS_AHEAD, PostgresMaintenance
from services.core.errors import NeedsOperator
from services.core.instants import DAY
from services.core.rows import RowCodec
from services.ledger import batches, floors, retention_clock, slots
from services.maintenance.main import main as maintain
from services.maintenance.tasks import MaintenanceTasks
from services.postgres.clock import now_microseconds
from services.postgres.connection import Connection, connect
from services.stores import postgres
from tests.waiting import until

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
    maintenance = PostgresMaintenance(postgres_url, (DATASET,), 24)
    maintenance._require_tables(connection)
    for name in partitions(connection):
        connection.execute(f"DROP TABLE {name}")
    before = now_microseconds(connection)
    with closing(Committer(postgres_url, {"logs": CODEC}, lambda: 500_000, lambda *_: None, 100, 4)) as committer:
        [outcome] = committer.commit(DATASET, [Submission([CODEC.decode_lines(ROW)])])  # it makes its own partition
    assert isinstance(outcome, Accepted)
    maintenance._maintain(connection)
    after = now_microseconds(connection)
    days = range(before // DAY, after // DAY + DAYS_AHEAD)
    assert partitions(connection) == {postgres.partition_name(DATASET, day) for day in days}
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
    PostgresMaintenance(postgres_url, (DATASET,), 24)._require_tables(connection)
    owner = uuid4()
    lease = slots.acquire(connection, owner)
    connection.execute("UPDATE slots SET renewed_at = now() + interval '1 hour' WHERE slot = %s", (lease.slot,))
    heir = uuid4()
    taken = slots.take_over(connection, heir, lease.slot)
    assert (taken.slot, taken.epoch) == (lease.slot, lease.epoch + 1)
    assert slots.renew(connection, owner) == set()


def put_keys(connection: Connection, hours: float, keys: int) -> None:
    """Keys of requests that were answered so many hours ago."""
    connection.execute(
        "INSERT INTO requests (idempotency_key, body_hash, dataset, first_batch, last_batch, rows, created_at)"
        " SELECT gen_random_uuid()::text, '', 'logs', 1, 1, 1, now() - make_interval(secs => %s)"
        " FROM generate_series(1, %s)",
        (hours * 3600, keys),
    )


def kept_keys(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM requests").fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.usefixtures("wrong_clock")
def test_keys_are_forgotten_in_chunks_by_postgres(own_postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_FORGOTTEN_AT_ONCE", 7)
    with closing(connect(own_postgres_url)) as connection:
        PostgresMaintenance(own_postgres_url, (DATASET,), 24)._require_tables(connection)
        put_keys(connection, 73, 20)
        put_keys(connection, 71, 5)  # 47 of these hours may be a jump of the clock that nobody noticed
        connection.execute(
            """CREATE TABLE pieces (keys int);
               CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN INSERT INTO pieces SELECT count(*) FROM gone; RETURN NULL; END $$;
               CREATE TRIGGER note AFTER DELETE ON requests REFERENCING OLD TABLE AS gone
               FOR EACH STATEMENT EXECUTE FUNCTION note()"""
        )
        assert batches.forget_requests(connection, 24) == 20
        assert kept_keys(connection) == 5
        assert [keys for (keys,) in connection.execute("SELECT keys FROM pieces")] == [7, 7, 6]


def test_keys_are_kept_while_the_clock_of_retention_has_jumped(own_postgres_url: str) -> None:
    with closing(connect(own_postgres_url)) as connection:
        maintenance = PostgresMaintenance(own_postgres_url, (DATASET,), 24)
        maintenance._require_tables(connection)
        put_keys(connection, 73, 3)
        connection.execute("INSERT INTO retention_clock (seen_at) VALUES (now() - interval '3 days')")
        worker = maintenance.worker()
        worker.start()
        until(lambda: "--trust-clock" in (maintenance.degraded() or ""), about=lambda: maintenance.degraded())
        worker.stop(10)
        assert maintenance.health() is None, "it serves all the same"
        assert partitions(connection)
        with pytest.raises(NeedsOperator, match="--trust-clock"):  # to have looked does not make the clock right
            floors.today(connection)
        assert kept_keys(connection) == 3
        retention_clock.now_microseconds(connection, trust_clock=True)
        maintenance._maintain(connection)
        assert kept_keys(connection) == 0
        assert maintenance.degraded() is None


def test_before_the_first_look_the_newest_batch_tells_the_time(own_postgres_url: str) -> None:
    with closing(connect(own_postgres_url)) as connection:
        maintenance = PostgresMaintenance(own_postgres_url, (DATASET,), 24)
        maintenance._require_tables(connection)
        put_keys(connection, 73, 3)
        connection.execute(
            "INSERT INTO batches (batch_id, slot, dataset, rows, checksum, xid, created_at) SELECT 1, 0, 'logs', 1, 0,"
            " pg_current_xact_id(), (extract(epoch FROM now() - interval '3 days') * 1000000)::bigint"
        )
        with pytest.raises(NeedsOperator, match="--trust-clock"):
            batches.forget_requests(connection, 24)
        assert kept_keys(connection) == 3


def test_the_ingest_api_keeps_the_last_time_that_was_seen(own_postgres_url: str) -> None:
    """Without `maintain`, too, a jump is a jump from the last time that keys were forgotten."""
    with closing(connect(own_postgres_url)) as connection:
        maintenance = PostgresMaintenance(own_postgres_url, (DATASET,), 24)
        maintenance._require_tables(connection)
        maintenance._maintain(connection)
        seen = connection.execute("SELECT now() - seen_at < interval '1 minute' FROM retention_clock").fetchone()
        assert seen == (True,)
        connection.execute("UPDATE retention_clock SET seen_at = now() - interval '47 hours'")  # a weekend
        maintenance._maintain(connection)
        assert (
            connection.execute("SELECT now() - seen_at < interval '1 minute' FROM retention_clock").fetchone() == seen
        )


@pytest.mark.parametrize("days", [None, "5"])
def test_an_operator_says_that_the_clock_is_right(
    own_postgres_url: str, days: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MaintenanceTasks, "run", lambda tasks: iter(()))
    monkeypatch.setenv("LOGPIPE_POSTGRES_URL", own_postgres_url)
    monkeypatch.setenv("LOGPIPE_HDFS_URL", tmp_path.as_uri())
    if days:
        monkeypatch.setenv("LOGPIPE_RETENTION_DAYS", days)
    with closing(connect(own_postgres_url)) as connection:
        connection.execute("INSERT INTO retention_clock (seen_at) VALUES (now() - interval '3 days')")
        refused = CliRunner().invoke(maintain, ["--trust-clock"])
        assert "--once" in refused.output
        done = CliRunner().invoke(maintain, ["--once", "--trust-clock"])
        assert done.exit_code == 0, done.output
        floors.today(connection)
