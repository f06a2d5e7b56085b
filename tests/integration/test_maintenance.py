"""`logpipe maintain` on real components: days dropped from every store below one floor, and kill -9 while it merges."""

import os
import random
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services import stores
from services.core.dead_letter import DeadLetter
from services.core.errors import Invalid, NeedsOperator
from services.core.ids import first_id
from services.core.ledger import Batch, Part
from services.core.rows import Row, RowCodec, Rows, checksum
from services.datasets.logs import DATASET
from services.lake.embedded import EmbeddedReader
from services.lake.maintenance import TableMaintenance
from services.lake.table import LakePosition
from services.ledger import batches, floors, reading, retention_clock
from services.maintenance.settings import MaintainSettings
from services.maintenance.tasks import MaintenanceTasks
from services.postgres.connection import connect, database_of
from services.runtime.settings import LakeSettings
from services.stores import postgres
from services.stores.clickhouse.writer import ClickHouseWriter
from services.streams import kafka
from services.streams.dead_letters import TOPIC, DeadLetterSender
from services.streams.topics import ensure_topics
from tests import lake_tables, marks

DAY = 86_400_000_000
TODAY = 20_000
CODEC = RowCodec(DATASET)
ROWS = 4  # of a batch


@pytest.fixture
def environment(
    own_postgres_url: str, kafka_url: str, clickhouse_url: str, hdfs_url: str, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """Databases of this test's own, since it drops days of a dataset that others use, too."""
    name = database_of(own_postgres_url)
    with closing(ClickHouseWriter(clickhouse_url)._client) as client:
        client.command(f"CREATE DATABASE {name}")
    urls = {
        "LOGPIPE_POSTGRES_URL": own_postgres_url,
        "LOGPIPE_KAFKA_URL": kafka_url,
        "LOGPIPE_CLICKHOUSE_URL": f"{clickhouse_url}/{name}",
        "LOGPIPE_HDFS_URL": hdfs_url,
        "LOGPIPE_LAKE_PATH": f"/{name}",
    }
    for variable, value in urls.items():
        monkeypatch.setenv(variable, value)
    return urls


def rows(batch: int, day: int) -> list[Row]:
    accepted = day * DAY + 1
    return [(first_id(batch) + n, accepted, accepted, "INFO", f"s{n}", "", f"é {n}", '{"a": 1.0}') for n in range(ROWS)]


def fill(environment: dict[str, str], days: dict[int, int]) -> None:
    """Every store and the ledger: batch -> its day."""
    writer = ClickHouseWriter(environment["LOGPIPE_CLICKHOUSE_URL"])
    writer.prepare(DATASET)
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        postgres.prepare(connection, DATASET)
        postgres.ensure_partitions(connection, DATASET, min(days.values()), TODAY - min(days.values()) + 1)
        for batch, day in days.items():
            values = rows(batch, day)
            lines = CODEC.encode(values)
            accepted = Batch(batch, 0, DATASET.name, ROWS, checksum(lines), day * DAY + 1, (Part(0, batch),))
            with connection.transaction(), connection.cursor() as cursor:
                batches.insert(cursor, [accepted])
                with cursor.copy(postgres.copy_statement(DATASET, day)) as copy:
                    copy.set_types(postgres.copy_types(DATASET))
                    for row in postgres.copy_rows(DATASET, Rows.of(values), batch, day * DAY + 1):
                        copy.write_row(row)
            marks.mark_published(connection, accepted)
            writer.write([lake_tables.block(DATASET, b"".join(line + b"\n" for line in lines), batch, day)])
            lake_tables.append(LakeSettings(), DATASET, values, LakePosition("t", {0: batch + 1}, {}, "q", batch))


def held(store: str) -> list[int]:
    with closing(stores.open_reader(store)) as reader:
        return [batch for batch, count, distinct in reader.counts(DATASET, 0, 1 << 30) if count == distinct == ROWS]


def test_days_beyond_retention_go_from_every_store_below_one_floor(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(environment, {1: TODAY - 4, 2: TODAY - 4, 3: TODAY - 3, 4: TODAY - 2, 5: TODAY})
    monkeypatch.setattr(floors, "today", lambda connection: TODAY)
    settings = MaintainSettings(retention_days=2)
    said = list(MaintenanceTasks(settings, DATASET).run())
    assert sorted(said) == [
        *(
            f"logs: 2 days before {as_date(TODAY - 2)} dropped from {store}"
            for store in ("clickhouse", "lake", "postgres")
        ),
        "logs: 3 batches below the floor deleted from the ledger",
        "logs: 3 days closed in PostgreSQL: queries read them only where they can hold what is asked for",
    ]
    for store in stores.readers():
        assert held(store) == [4, 5]
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        assert floors.floor(connection, DATASET.name) == 4
        assert floors.last_dropped(connection, DATASET.name) == (TODAY - 3) * DAY + 1
        assert reading.batch_ids(connection, 0, 10) == [4, 5]
    assert list(MaintenanceTasks(settings, DATASET).run()) == []
    assert verified(environment)["expected"] == 2 * ROWS

    unfinished_drop(environment, TODAY - 2)
    assert list(MaintenanceTasks(MaintainSettings(retention_days=1), DATASET).run())
    for store in stores.readers():
        assert held(store) == [5]
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        assert partitions(connection) == [TODAY - 1, TODAY]


def test_a_dataset_on_request_is_emptied_and_takes_rows_again(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(environment, {1: TODAY - 1, 2: TODAY, 3: TODAY})
    monkeypatch.setattr(floors, "today", lambda connection: TODAY)
    with pytest.raises(Invalid, match="logs is no dataset on request"):
        list(MaintenanceTasks(MaintainSettings(), DATASET).empty())
    said = list(MaintenanceTasks(MaintainSettings(), replace(DATASET, on_request=True)).empty())
    assert "3 batches below the floor deleted from the ledger" in said
    for store in stores.readers():
        assert held(store) == [], store
    assert verified(environment)["expected"] == 0
    fill(environment, {4: TODAY})
    for store in stores.readers():
        assert held(store) == [4], store
    assert verified(environment)["expected"] == ROWS


def test_the_floor_is_the_lowest_batch_that_is_kept(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 4 was accepted while the clock was far behind: it is kept, and so is batch 3 before it."""
    fill(environment, {1: TODAY - 5, 2: TODAY - 4, 3: TODAY - 1, 4: TODAY - 5, 5: TODAY})
    monkeypatch.setattr(floors, "today", lambda connection: TODAY)
    said = list(MaintenanceTasks(MaintainSettings(retention_days=2), DATASET).run())
    assert (
        f"logs: kept until the floor has passed them: {as_date(TODAY - 5)}, on which later batches were accepted, too"
        in said
    )
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        assert floors.floor(connection, DATASET.name) == 3
        assert partitions(connection)[0] == TODAY - 5
    for store in stores.readers():
        assert held(store) == [1, 3, 4, 5], store
    assert verified(environment)["expected"] == 3 * ROWS


def test_a_batch_that_may_still_appear_keeps_the_floor_below_it(environment: dict[str, str]) -> None:
    fill(environment, {1: TODAY - 5, 2: TODAY - 5, 4: TODAY, 5: TODAY})
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        floors.raise_to(connection, DATASET.name, TODAY - 2, settled=2)
        assert floors.floor(connection, DATASET.name) == 3


def test_dead_letters_leave_their_topic_with_their_batches(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(environment, {1: TODAY - 5, 2: TODAY - 5, 3: TODAY})
    url = environment["LOGPIPE_KAFKA_URL"]
    ensure_topics(url, {TOPIC: 1}, 1)
    with closing(kafka.KafkaPartitionReader(url, TOPIC)) as topic:
        start = topic.bounds()[0][1]
    dead_letters = DeadLetterSender(lambda: kafka.KafkaProducer(url, "test-maintenance"), "clickhouse", DATASET)
    for batch in (1, 2, 3):
        dead_letters.send([DeadLetter(0, batch, 0, batch, first_id(batch), 1, "reason", b"value")])
    dead_letters.close()
    monkeypatch.setattr(floors, "today", lambda connection: TODAY)
    said = list(MaintenanceTasks(MaintainSettings(retention_days=2), DATASET).run())
    assert "logs: 2 dead letters of dropped batches deleted" in said
    with closing(kafka.KafkaPartitionReader(url, TOPIC)) as topic:
        assert topic.bounds()[0][0] == start + 4, "the dead letters of two batches and their control records"


def test_a_batch_that_is_not_published_keeps_its_day(environment: dict[str, str]) -> None:
    fill(environment, {1: TODAY - 5, 2: TODAY - 4, 3: TODAY})
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        connection.execute("UPDATE batches SET published_at = NULL, parts = NULL WHERE batch_id = 2")
        assert floors.raise_to(connection, DATASET.name, TODAY - 1, settled=3) == TODAY - 4
        assert floors.floor(connection, DATASET.name) == 2
        assert floors.delete_batches(connection, DATASET.name) == 1


def test_retention_refuses_a_clock_that_jumped(environment: dict[str, str]) -> None:
    fill(environment, {1: TODAY})
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        today = retention_clock.now_microseconds(connection, trust_clock=True) // DAY
        assert abs(today - time.time() / 86_400) < 1.1
        connection.execute("UPDATE retention_clock SET seen_at = clock_timestamp() - interval '3 days'")
        with pytest.raises(NeedsOperator, match="logpipe maintain --once --trust-clock"):
            floors.today(connection)
        with pytest.raises(NeedsOperator):
            list(MaintenanceTasks(MaintainSettings(retention_days=1), DATASET).run())
        assert floors.floor(connection, DATASET.name) == 0
        assert retention_clock.now_microseconds(connection, trust_clock=True) // DAY == today
        assert floors.today(connection) == today


def test_the_clock_of_the_process_decides_nothing(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        today = floors.today(connection)
        real = time.time
        for days in (-365, 365):
            monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86_400)
            assert floors.today(connection) == today


def test_a_clock_that_is_ahead_deletes_no_files_of_the_lake(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that Spark has just written and not committed yet would seem to be an orphan of long ago."""
    fill(environment, {1: TODAY})
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    with pytest.raises(NeedsOperator, match="ahead of PostgreSQL's"):
        list(MaintenanceTasks(MaintainSettings(), DATASET)._vacuum())


def as_date(day: int) -> date:
    return date(1970, 1, 1) + timedelta(days=day)


def unfinished_drop(environment: dict[str, str], day: int) -> None:
    """What kill -9 leaves between detaching a partition and dropping it."""
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        connection.execute(f"ALTER TABLE logs DETACH PARTITION {postgres.partition_name(DATASET, day)} CONCURRENTLY")


def partitions(connection: psycopg.Connection[Any]) -> list[int]:
    names = connection.execute(r"SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^logs_y\d'").fetchall()
    known = {postgres.partition_name(DATASET, day): day for day in range(TODAY - 9, TODAY + 9)}
    return sorted(known[name] for (name,) in names)


def verified(environment: dict[str, str]) -> dict[str, int]:
    """Counted by really reading: what verify reconciles from the floor on."""
    with connect(environment["LOGPIPE_POSTGRES_URL"]) as connection:
        floor = floors.floor(connection, DATASET.name)
        accepted = reading.batches(connection, DATASET.name, floor - 1, 1 << 30, 100)
    for store in stores.readers():
        with closing(stores.open_reader(store)) as reader:
            assert [b for b, *_ in reader.counts(DATASET, floor, 1 << 30)] == [b.batch_id for b in accepted]
    return {"expected": sum(batch.rows for batch in accepted)}


MERGING = """
import sys
from datetime import timedelta
from services.datasets.logs import DATASET
from services.lake.maintenance import TableMaintenance
from services.runtime.settings import LakeSettings
table = TableMaintenance(LakeSettings(), DATASET)
print("ready", flush=True)
sys.stdin.readline()
print("begun", flush=True)
for day in table.small_files():
    table.compact(day)
table.vacuum(timedelta(0))
table.repeat_position()
print("done", flush=True)
sys.stdin.readline()
"""
INTERRUPTED_ROUNDS = 4


def test_killed_at_any_moment_nothing_is_lost_and_the_next_round_ends_it(tmp_path: Path, postgres_url: str) -> None:
    settings = LakeSettings(hdfs_url=tmp_path.as_uri())
    urls = {"LOGPIPE_HDFS_URL": settings.hdfs_url, "LOGPIPE_POSTGRES_URL": postgres_url}
    environment = {**os.environ, **urls, "LOGPIPE_COMPACT_FILES": "2"}
    first = date(1970, 1, 1) + timedelta(days=TODAY)
    chance = random.Random(4)
    reader = EmbeddedReader(settings)
    batch = interrupted = 0
    longest = 0.2  # seconds until the kill; of about as long as a round takes
    while interrupted < INTERRUPTED_ROUNDS:
        with subprocess.Popen(
            [sys.executable, "-c", MERGING], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as merging:
            assert merging.stdin
            assert merging.stdout
            assert merging.stdout.readline() == b"ready\n"
            for _ in range(10):
                batch += 1
                lake_tables.append(settings, DATASET, rows(batch, TODAY), LakePosition("t", {0: batch}, {}, "q", batch))
            before = content(reader)
            merging.stdin.write(b"go\n")
            merging.stdin.flush()
            assert merging.stdout.readline() == b"begun\n"
            time.sleep(chance.uniform(0, longest))
            merging.kill()
            was_done = merging.stdout.read() == b"done\n"
        interrupted += not was_done
        longest *= 0.7 if was_done else 1
        assert content(reader) == before
        assert reader.position(DATASET).offsets == {0: batch}
    command = [sys.executable, "-m", "services", "maintain", "--once", "--dataset", DATASET.name]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.endswith("logs: done\n")
    assert TableMaintenance(settings, DATASET).small_files() == {first: 1}
    assert content(reader) == before


def content(reader: EmbeddedReader) -> tuple[list[tuple[int, int, int]], int]:
    counted = list(reader.counts(DATASET, 0, 1 << 30))
    return counted, checksum(CODEC.encode(reader.rows(DATASET, 0, 1 << 30)))
