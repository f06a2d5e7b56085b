"""Watermarks over a real ledger: kept between processes, bound to the topic and the table, and cheap at any age."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import cast
from uuid import uuid4

import psycopg
import pytest

from services.core.errors import StoreDown
from services.core.ledger import StorePosition
from services.core.ports import StoreReader
from services.datasets.logs import DATASET
from services.ledger import floors, reading, saved_watermarks, schema, slots
from services.ledger.watermark import Watermarks
from services.postgres import migrations
from services.postgres.connection import connect
from services.postgres.pool import Pool
from tests.waiting import until

STORE = "test"


@pytest.fixture
def ledger(own_postgres_url: str) -> Iterator[Pool]:
    with closing(Pool(own_postgres_url, max_connections=1)) as opened:  # whose statistics are then told at once
        yield opened


class Reader:
    """As much of a StoreReader as a watermark needs."""

    def __init__(self, progress: str = "sink", table: str = "table") -> None:
        self.name = STORE
        self.progress = progress
        self.table = table
        self.own = StorePosition("", "", {})

    def table_id(self, dataset: object) -> str:
        return self.table

    def position(self, dataset: object) -> StorePosition:
        return self.own


def of(watermarks: Watermarks, reader: Reader) -> int:
    return watermarks.of(cast(StoreReader, reader), DATASET)


def accept(ledger: Pool, batches: int, topic: int | None = None, parts: str | None = "one") -> None:
    """Batches whose ids go on; batch n has its one part at offset n of partition 0, unless `parts` says otherwise."""
    with ledger.connection() as connection:
        connection.execute(
            """INSERT INTO batches
                   (batch_id, slot, dataset, rows, checksum, xid, created_at, published_at, topic, parts)
               SELECT id, 0, %s, 1, 0, '3', 0, now(), %s,
                      CASE WHEN %s = 'one' THEN jsonb_build_array(jsonb_build_array(0, id)) ELSE %s::jsonb END
               FROM (SELECT nextval('batch_ids') AS id FROM generate_series(1, %s)) AS drawn""",
            (DATASET.name, topic, parts, None if parts == "one" else parts, batches),
        )


def add_topic(ledger: Pool, topic_id: str) -> int:
    with ledger.connection() as connection:
        row = connection.execute(
            "INSERT INTO topics (name, topic_id) VALUES (%s, %s) RETURNING number", (DATASET.topic, topic_id)
        ).fetchone()
    assert row
    return int(row[0])


def stand(ledger: Pool, offsets: Mapping[int, int], topic_id: str = "topic", table_id: str = "table") -> None:
    with ledger.connection() as connection:
        connection.execute("DELETE FROM sink_progress")
        for partition, offset in offsets.items():
            connection.execute(
                "INSERT INTO sink_progress (store, dataset, topic_id, table_id, partition, next_offset)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                (STORE, DATASET.name, topic_id, table_id, partition, offset),
            )


def rows_read(ledger: Pool, table: str) -> int:
    """How many rows of a table PostgreSQL has read since its statistics began, by scans and through indexes."""
    with ledger.connection() as connection:
        connection.execute("SELECT pg_stat_force_next_flush()")
        row = connection.execute(
            "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes i"
            " WHERE i.relname = t.relname) FROM pg_stat_user_tables t WHERE relname = %s",
            (table,),
        ).fetchone()
    assert row
    return int(row[0])


def test_a_new_process_reads_only_what_is_new(ledger: Pool) -> None:
    accept(ledger, 20_000)
    with ledger.connection() as connection:
        connection.execute("VACUUM ANALYZE batches")  # so that the planner knows the history as it does in production
    stand(ledger, {0: 19_901})
    reader = Reader()
    assert of(Watermarks(ledger), reader) == 19_900
    stand(ledger, {0: 20_001})
    before = rows_read(ledger, "batches")
    assert of(Watermarks(ledger), reader) == 20_000
    assert rows_read(ledger, "batches") - before <= 2 * 2 * 100


def test_a_batch_that_is_not_published_is_waited_for(ledger: Pool) -> None:
    stand(ledger, {0: 100})
    accept(ledger, 2)
    accept(ledger, 1, parts=None)
    accept(ledger, 2)
    watermarks = Watermarks(ledger)
    assert of(watermarks, Reader()) == 2
    with ledger.connection() as connection:
        connection.execute("UPDATE batches SET parts = '[[0, 3]]' WHERE batch_id = 3")
    assert of(watermarks, Reader()) == 5


def test_an_offset_is_never_compared_with_that_of_another_topic(ledger: Pool) -> None:
    old, new = add_topic(ledger, "old"), add_topic(ledger, "new")
    accept(ledger, 3, old)
    accept(ledger, 3, new)
    stand(ledger, {0: 100}, "new")
    assert of(Watermarks(ledger), Reader()) == 0
    stand(ledger, {0: 100}, "old")
    assert of(Watermarks(ledger), Reader()) == 3
    stand(ledger, {0: 100}, "unknown")
    assert of(Watermarks(ledger), Reader()) == 0


def test_batches_of_an_earlier_release_belong_to_the_first_topic(ledger: Pool) -> None:
    accept(ledger, 3, None)
    stand(ledger, {0: 100}, "old")
    assert of(Watermarks(ledger), Reader()) == 3
    add_topic(ledger, "old")
    new = add_topic(ledger, "new")
    accept(ledger, 1, new)
    assert of(Watermarks(ledger), Reader()) == 3
    stand(ledger, {0: 100}, "new")
    assert of(Watermarks(ledger), Reader()) == 0


def test_a_store_with_transactions_of_its_own_passes_what_its_operator_gave_up(ledger: Pool) -> None:
    old, new = add_topic(ledger, "old"), add_topic(ledger, "new")
    accept(ledger, 3, old)
    accept(ledger, 1, new, parts="[]")
    accept(ledger, 2, new)
    reader = Reader("own")
    reader.own = StorePosition("table", "new", {0: 6})
    assert of(Watermarks(ledger), reader) == 5
    reader.own = StorePosition("table", "old", {0: 100})
    assert of(Watermarks(ledger), reader) == 3


def test_a_table_that_was_created_again_is_refused_until_it_is_replayed(
    ledger: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.ledger.watermark._TABLE_SECONDS", 0.0)
    accept(ledger, 3)
    stand(ledger, {0: 100})
    watermarks = Watermarks(ledger)
    assert of(watermarks, Reader()) == 3
    with pytest.raises(StoreDown, match="logpipe replay --store test --dataset logs"):
        of(watermarks, Reader(table="another"))


def test_a_position_of_an_earlier_release_names_no_table(ledger: Pool) -> None:
    accept(ledger, 3)
    stand(ledger, {0: 100}, table_id="")
    watermarks = Watermarks(ledger)
    assert of(watermarks, Reader()) == 3
    stand(ledger, {0: 100})
    assert of(watermarks, Reader()) == 3


@pytest.mark.parametrize("progress", ["sink", "own"])
@pytest.mark.parametrize("table", ["", "another"], ids=["no table", "another table"])
def test_a_store_that_was_wiped_is_not_vouched_for_by_the_replay_that_a_restore_has_noted(
    ledger: Pool, progress: str, table: str
) -> None:
    add_topic(ledger, "old")
    accept(ledger, 6, 1)
    with ledger.connection() as connection:
        connection.execute(
            "INSERT INTO replays (store, dataset, id, next_batch, last_batch, table_id)"
            " VALUES (%s, %s, gen_random_uuid(), 5, 6, 'table')",
            (STORE, DATASET.name),
        )
    reader = Reader(progress, table)
    reader.own = StorePosition(table, "", {})
    with pytest.raises(StoreDown, match="logpipe replay --store test --dataset logs"):
        of(Watermarks(ledger), reader)
    reader.table, reader.own = "table", StorePosition("table", "", {})
    assert of(Watermarks(ledger), reader) == 4


def test_a_running_replay_caps_the_watermark_and_vouches_for_batches_of_lost_topics(ledger: Pool) -> None:
    old, new = add_topic(ledger, "old"), add_topic(ledger, "new")
    accept(ledger, 3, old)
    accept(ledger, 2, new)
    stand(ledger, {0: 100}, "new")
    with ledger.connection() as connection:
        connection.execute(
            "INSERT INTO replays (store, dataset, id, next_batch, last_batch, table_id)"
            " VALUES (%s, %s, gen_random_uuid(), 3, 5, 'table')",
            (STORE, DATASET.name),
        )
    watermarks = Watermarks(ledger)
    assert of(watermarks, Reader()) == 2
    with ledger.connection() as connection:
        connection.execute("UPDATE replays SET next_batch = 5")
    assert of(watermarks, Reader()) == 4


@pytest.mark.parametrize(
    "now",
    [
        StorePosition("table", "topic", {0: 2}),
        StorePosition("another", "topic", {0: 2}),
        StorePosition("table", "another", {0: 2}),
    ],
)
def test_a_store_that_fell_back_starts_again(ledger: Pool, now: StorePosition) -> None:
    add_topic(ledger, now.topic_id)
    accept(ledger, 5)
    reader, other = Reader("own"), Watermarks(ledger)
    reader.own = StorePosition("table", "topic" if now.topic_id == "topic" else now.topic_id, {0: 100})
    first = Watermarks(ledger)
    assert of(first, reader) == of(other, reader) == 5
    reader.own = StorePosition(now.table_id + "-again", now.topic_id, {0: 2}) if now.table_id == "another" else now
    assert of(first, reader) == of(other, reader) == of(Watermarks(ledger), reader) == 1


def test_an_older_watermark_is_not_saved_over_one_that_was_lowered(ledger: Pool) -> None:
    position = StorePosition("table", "topic", {0: 100})
    with ledger.connection() as connection:
        saved_watermarks.raise_to(connection, saved_watermarks.SavedWatermark(position, 50), STORE, DATASET.name)
        seen = saved_watermarks.read(connection, STORE, DATASET.name)
        saved_watermarks.replace(connection, STORE, DATASET.name, position, 10)
        late = saved_watermarks.SavedWatermark(position, 60, seen.epoch)
        saved_watermarks.raise_to(connection, late, STORE, DATASET.name)
        assert saved_watermarks.read(connection, STORE, DATASET.name).batch_id == 10


def test_the_watermark_begins_at_the_floor(ledger: Pool) -> None:
    accept(ledger, 10)
    stand(ledger, {0: 100})
    with ledger.connection() as connection:
        connection.execute("INSERT INTO floors VALUES (%s, 8)", (DATASET.name,))
        connection.execute("UPDATE batches SET parts = NULL WHERE batch_id < 8")
    assert of(Watermarks(ledger), Reader()) == 10


def test_a_transaction_of_a_stranger_holds_nothing(ledger: Pool, own_postgres_url: str) -> None:
    """A dump or a forgotten psql is open, while an id was drawn by a transaction that was rolled back."""
    with connect(own_postgres_url) as stranger:
        stranger.execute("BEGIN")
        stranger.execute("SELECT pg_current_xact_id()")
        with ledger.connection() as connection, connection.transaction(force_rollback=True):
            connection.execute("SELECT nextval('batch_ids')")
        accept(ledger, 3)
        watermarks = Watermarks(ledger)
        assert watermarks.settled() == 4
        assert watermarks.blocking_transactions(0) == []


def test_who_holds_the_watermark_is_named(ledger: Pool, own_postgres_url: str) -> None:
    watermarks = Watermarks(ledger)
    with psycopg.connect(own_postgres_url, application_name="a slow writer") as writer:
        writer.execute("SELECT nextval('batch_ids')")
        accept(ledger, 3)
        assert watermarks.settled() == 0
        (holder,) = watermarks.blocking_transactions(0)
        assert (holder.pid, holder.application) == (writer.info.backend_pid, "a slow writer")
        assert watermarks.blocking_transactions(60) == []
        writer.rollback()
        assert watermarks.settled() == 4
        assert watermarks.blocking_transactions(0) == []


def test_the_lag_is_counted_up_to_a_bound(ledger: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ledger.watermark._MOST_LAG", 5)
    accept(ledger, 20_000)
    with ledger.connection() as connection:
        connection.execute("VACUUM ANALYZE batches")
    watermarks = Watermarks(ledger)
    assert watermarks.lag(DATASET, 19_997).batches == 3
    assert watermarks.lag(DATASET, 20_000) == (0, 0)
    before = rows_read(ledger, "batches")
    assert watermarks.lag(DATASET, 0).batches == 5
    assert rows_read(ledger, "batches") - before <= 2 * 5 + 2


def test_a_watermark_that_is_far_behind_rises_step_by_step(ledger: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query is not held up by the whole way; the next one goes on where it ended."""
    monkeypatch.setattr("services.ledger.watermark._PAGE", 4)
    ticks = iter(range(10_000))
    accept(ledger, 20)
    stand(ledger, {0: 100})
    watermarks = Watermarks(ledger)

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return next(ticks) * 0.4

    monkeypatch.setattr("services.ledger.watermark.time", Clock)
    marks = [of(watermarks, Reader())]
    while marks[-1] < 20:
        marks.append(of(watermarks, Reader()))
        assert marks[-1] > marks[-2]
    assert len(marks) > 1


def test_reading_a_sink_in_two_topics_is_refused(ledger: Pool) -> None:
    stand(ledger, {0: 1, 1: 1})
    with ledger.connection() as connection:
        connection.execute("UPDATE sink_progress SET topic_id = 'another' WHERE partition = 1")
        with pytest.raises(StoreDown, match="different topics"):
            reading.sink_position(connection, STORE, DATASET.name)


def test_a_stopped_ingest_process_holds_the_watermark_for_seconds_only(
    ledger: Pool, own_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease has lapsed, and no other ingest process is alive to end its sessions."""
    owner = uuid4()
    with ledger.connection() as connection:
        slots.acquire(connection, owner)
        connection.execute("UPDATE slots SET renewed_at = clock_timestamp() - interval '1 minute'")
    monkeypatch.setattr(slots, "LEASE_SECONDS", 0)
    with psycopg.connect(own_postgres_url, application_name=slots.session_name(owner)) as stopped:
        stopped.execute("SELECT nextval('batch_ids')")
        accept(ledger, 3)
        watermarks = Watermarks(ledger)
        until(lambda: watermarks.settled() >= 4)
        with pytest.raises(psycopg.OperationalError):
            stopped.execute("SELECT 1")


def test_a_ledger_that_was_created_again_is_read_from_its_start(ledger: Pool) -> None:
    """A process that knew the former ledger neither answers from it nor saves what it knew in the new one."""
    accept(ledger, 50)
    stand(ledger, {0: 100})
    watermarks = Watermarks(ledger)
    assert of(watermarks, Reader()) == 50
    with ledger.connection() as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
        migrations.apply(connection, schema.MIGRATIONS)
    accept(ledger, 2)
    stand(ledger, {0: 2})
    assert of(watermarks, Reader()) == 1
    assert watermarks.settled() == 2
    assert Watermarks(ledger).settled() == 2


def test_a_dataset_without_batches_costs_nothing(ledger: Pool) -> None:
    accept(ledger, 20_000)
    with ledger.connection() as connection:
        connection.execute("VACUUM ANALYZE batches")
    before = rows_read(ledger, "batches")
    with ledger.connection() as connection:
        assert reading.batches(connection, "events", 0, 20_000, 100) == []
        assert floors.raise_to(connection, "events", 1 << 20, settled=20_000) == 1 << 20
    assert rows_read(ledger, "batches") - before < 100


@pytest.mark.parametrize("progress", ["sink", "own"])
def test_without_the_ledger_a_table_created_again_is_not_asked_at_the_old_point(ledger: Pool, progress: str) -> None:
    accept(ledger, 3)
    stand(ledger, {0: 100})
    reader, watermarks = Reader(progress), Watermarks(ledger)
    reader.own = StorePosition("table", "topic", {0: 100})
    assert of(watermarks, reader) == 3
    assert watermarks.last_known(cast(StoreReader, reader), DATASET) == 3
    reader.table, reader.own = "another", StorePosition("another", "topic", {0: 100})
    assert watermarks.last_known(cast(StoreReader, reader), DATASET) == 0


def test_a_refused_table_is_not_asked_without_the_ledger_either(ledger: Pool) -> None:
    """The gauges ask for the watermark every few seconds, also while the table is refused."""
    accept(ledger, 3)
    stand(ledger, {0: 100})
    reader, watermarks = Reader("sink"), Watermarks(ledger)
    assert of(watermarks, reader) == 3
    reader.table = "another"
    watermarks._watermarks[reader.name, DATASET.name].table_seen_at = float("-inf")
    with pytest.raises(StoreDown, match="was created again"):
        of(watermarks, reader)
    assert watermarks.last_known(cast(StoreReader, reader), DATASET) == 0


def test_without_the_ledger_a_running_replay_still_holds_the_watermark(ledger: Pool) -> None:
    accept(ledger, 3)
    stand(ledger, {0: 100})
    reader, watermarks = Reader("sink"), Watermarks(ledger)
    assert of(watermarks, reader) == 3
    with ledger.connection() as connection:
        connection.execute(
            "INSERT INTO replays (store, dataset, id, next_batch, last_batch, table_id)"
            " VALUES (%s, %s, gen_random_uuid(), 2, 3, 'table')",
            (reader.name, DATASET.name),
        )
    assert of(watermarks, reader) == 1
    assert watermarks.last_known(cast(StoreReader, reader), DATASET) == 1


def test_a_ledger_with_batches_gets_its_index_beside_their_use(own_postgres_url: str) -> None:
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('batches_dataset')"
    with connect(own_postgres_url) as connection:
        assert connection.execute(valid).fetchone() == (True,)
        connection.execute("DROP INDEX batches_dataset")
        connection.execute("DROP TABLE ledger_version")
        connection.execute("DELETE FROM applied_migrations")
        connection.execute(
            "INSERT INTO batches (batch_id, slot, dataset, rows, checksum, xid, created_at)"
            " VALUES (1, 1, 'logs', 1, 1, '1', 1)"
        )
        migrations.apply(connection, schema.MIGRATIONS)
        assert connection.execute(valid).fetchone() is None
        schema.build_index(connection)
        assert connection.execute(valid).fetchone() == (True,)
        connection.execute("DROP INDEX batches_dataset")
        connection.execute(
            "INSERT INTO batches (batch_id, slot, dataset, rows, checksum, xid, created_at)"
            " VALUES (2, 1, 'logs', 1, 1, '1', 1)"
        )
        with pytest.raises(psycopg.errors.UniqueViolation):  # leaves an index as an interrupted build does
            connection.execute("CREATE UNIQUE INDEX CONCURRENTLY batches_dataset ON batches (dataset)")
        assert connection.execute(valid).fetchone() == (False,)
        schema.build_index(connection)
        assert connection.execute(valid).fetchone() == (True,)


def test_batches_are_counted_up_to_a_bound(ledger: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a progress bar wants the rows: for billions of batches it is not worth minutes."""
    accept(ledger, 5)
    with ledger.connection() as connection:
        assert reading.count(connection, DATASET.name, 1, 4) == (3, 3)
        monkeypatch.setattr(reading, "_MOST_COUNTED", 2)
        assert reading.count(connection, DATASET.name, 1, 4) == (2, None)
