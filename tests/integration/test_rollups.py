"""Rollups against scans of the same rows, in both stores: while rows come in, after crashes and retries."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from itertools import count
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from services.core import rollups
from services.core.dataset import Dataset
from services.core.errors import NeedsOperator, StoreDown
from services.core.ledger import Batch
from services.core.ports import Block, StoreReader
from services.core.queries import BUCKETS, MINUTE, AggregateQuery, Filters, ListQuery, Query, StatsQuery
from services.core.rows import RowCodec, Rows, checksum
from services.datasets.logs import DATASET as LOGS
from services.ledger import batches as ledger_batches
from services.maintenance import rollups as maintenance
from services.maintenance.rollups import RollupMaintenance
from services.migrate.service import migrate
from services.postgres.connection import connect
from services.stores import postgres
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.rollups import BATCH_SPAN_BITS
from services.stores.clickhouse.tables import create_table
from services.stores.clickhouse.writer import ClickHouseWriter
from services.stores.postgres import rollup_chunks as chunks
from services.stores.postgres import rollups as rollup
from services.stores.postgres import schema
from services.stores.postgres.tables import midnight
from tests.conftest import running
from tests.waiting import until

DAY = 86_400_000_000
MIGRATION = schema.MIGRATIONS.folder / "postgres-0001-rollups-and-closed-days.sql"
LEVELS, SERVICES, HOSTS = ("INFO", "ERROR", "é", ""), ("api", "a'b", "%s"), ("", "h-1")
SPAN = 7 * MINUTE


class Pipeline:
    """Accepts batches of one dataset of its own into both stores, random rows of a few minutes."""

    def __init__(self, postgres_url: str, clickhouse_url: str, seed: int = 4) -> None:
        self.dataset = replace(LOGS, name=f"rolled_{uuid4().hex[:12]}")
        self.connection = connect(postgres_url)
        self.writer = ClickHouseWriter(clickhouse_url)
        self.readers: list[StoreReader] = [
            postgres.PostgresReader(postgres_url),
            ClickHouseReader(clickhouse_url),
        ]
        self.start = time.time_ns() // 1000 // MINUTE * MINUTE
        self.loaded = 0
        self._chance = random.Random(seed)
        self._codec = RowCodec(self.dataset)
        postgres.prepare(self.connection, self.dataset)

    def accept(self, count: int) -> Block:
        """Batches into PostgreSQL, and the block that holds them."""
        days, lines, batch_id, first = self.start // DAY, list[bytes](), 0, 0
        for _ in range(count):
            with self.connection.transaction(), self.connection.cursor() as cursor:
                [batch_id] = ledger_batches.draw_ids(cursor, 1).batch_ids
                made = self._codec.encode(self._copy(cursor, batch_id, self._rows()))
                record = Batch(batch_id, 0, self.dataset.name, len(made), checksum(made), self.start)
                ledger_batches.insert(cursor, [record])
            lines += made
            first = first or batch_id
        return Block(self.dataset, "t", 0, first, batch_id, days, len(lines), b"".join(line + b"\n" for line in lines))

    def load(self, block: Block) -> None:
        self.writer.write([block])
        self.loaded = block.last

    def fill(self, blocks: int) -> None:
        self.writer.prepare(self.dataset)
        for _ in range(blocks):
            self.load(self.accept(16))

    def roll_up(self) -> int:
        return chunks.roll_up(self.connection, self.dataset, self.loaded)

    def close(self) -> None:
        self.connection.close()
        for reader in self.readers:
            reader.close()

    def _rows(self) -> Rows:
        size, chance = self._chance.randint(1, 40), self._chance
        times = [
            self.start + chance.choice([chance.randrange(SPAN), chance.randrange(8) * MINUTE]) for _ in range(size)
        ]
        columns: list[list[Any]] = [times, *(chance.choices(values, k=size) for values in (LEVELS, SERVICES, HOSTS))]
        return Rows(size, [*columns, ["m"] * size, ["{}"] * size])

    def _copy(self, cursor: psycopg.Cursor[Any], batch_id: int, rows: Rows) -> Any:
        postgres.ensure_partitions(self.connection, self.dataset, self.start // DAY, 1)
        with cursor.copy(postgres.copy_statement(self.dataset, self.start // DAY)) as copy:
            copy.set_types(postgres.copy_types(self.dataset))
            for values in postgres.copy_rows(self.dataset, rows, batch_id, self.start):
                copy.write_row(values)
        return rows.tuples(batch_id, self.start)


@pytest.fixture
def pipeline(postgres_url: str, clickhouse_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 900)
    with closing(Pipeline(postgres_url, clickhouse_url)) as made:
        yield made


def compare(reader: StoreReader, query: Query, as_of: int) -> str:
    """The rollup's result is the scan's; the method of the first."""
    result = reader.execute(query, as_of)
    scanned = reader.execute(replace(query, scan=True), as_of)
    assert scanned.method == "scan"
    assert (repr(result.rows), result.total) == (repr(scanned.rows), scanned.total), (reader.name, query, as_of)
    return result.method


def method_of(reader: StoreReader, dataset: Dataset, as_of: int) -> str:
    return compare(reader, StatsQuery(dataset), as_of)


instants = st.none() | st.integers(0, SPAN) | st.integers(0, 8).map(lambda n: n * MINUTE)
equals = st.fixed_dictionaries(
    {},
    optional={"level": st.sampled_from(LEVELS), "service": st.sampled_from(SERVICES), "host": st.sampled_from(HOSTS)},
)
shapes = st.one_of(
    st.just("stats"),
    st.just("list"),
    st.tuples(st.none(), st.sampled_from(sorted(BUCKETS.values()))),
    st.tuples(st.sampled_from(LOGS.groupings), st.none() | st.sampled_from(sorted(BUCKETS.values()))),
)


def question_of(pipeline: Pipeline, shape: Any, where: dict[str, str], start: int | None, end: int | None) -> Query:
    first, last = (None if at is None else pipeline.start + at for at in (start, end))
    filters = Filters(tuple(where.items()), first, last)
    match shape:
        case "stats":
            return StatsQuery(pipeline.dataset)
        case "list":
            return ListQuery(pipeline.dataset, filters, limit=3)
    return AggregateQuery(pipeline.dataset, shape[0], filters, shape[1])


LEAST_TURNS = 6
"""Turns of the writer, with two lost replies and three crashes among them."""


class Crash(Exception):
    pass


def write_until(pipeline: Pipeline, stop: threading.Event, asked: threading.Semaphore) -> None:
    """Write a block for each permit of `asked`, lose every third reply, crash in every second turn.

    After `stop`, write without permits until LEAST_TURNS are done.
    """
    for turn in count():
        if not stop.is_set():
            asked.acquire()
        if stop.is_set() and turn >= LEAST_TURNS:
            return
        block = pipeline.accept(16)
        pipeline.load(block)
        if turn % 3 == 0:
            pipeline.load(block)  # the first reply was lost
        with suppress(Crash), pipeline.connection.transaction():
            pipeline.roll_up()
            if turn % 2:
                raise Crash  # before COMMIT


def test_the_rollup_answers_as_a_scan_does_under_load_crashes_and_retries(pipeline: Pipeline) -> None:
    pipeline.fill(5)
    stop, failed = threading.Event(), list[BaseException]()
    queries_left = threading.Semaphore(1)  # as many blocks as queries: on few cores the writer would leave them no time
    methods: dict[str, set[str]] = {reader.name: set() for reader in pipeline.readers}

    def write() -> None:
        try:
            write_until(pipeline, stop, queries_left)
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(shapes, equals, instants, instants, st.integers(0, 150))
    def ask(shape: Any, where: dict[str, str], start: int | None, end: int | None, behind: int) -> None:
        query = question_of(pipeline, shape, where, start, end)
        queries_left.release()
        as_of = max(0, pipeline.loaded - behind)
        for reader in pipeline.readers:
            methods[reader.name].add(compare(reader, query, as_of))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        ask()
    finally:
        stop.set()
        queries_left.release()
        writer.join()
    assert not failed
    assert all("rollup" in used for used in methods.values())
    while pipeline.roll_up():
        pass
    for shape in ("stats", ("level", None), (None, MINUTE), ("service", BUCKETS["1h"])):
        query = question_of(pipeline, shape, {}, None, None)
        assert [compare(reader, query, pipeline.loaded) for reader in pipeline.readers] == ["rollup"] * 2


def test_a_total_adds_up_chunks_and_no_counts(pipeline: Pipeline) -> None:
    """There are a few chunks a day, and thousands of counts."""
    pipeline.fill(5)
    while pipeline.roll_up():
        pass
    reader, query = pipeline.readers[0], StatsQuery(pipeline.dataset)
    result = reader.execute(query, pipeline.loaded)
    name = sql.Identifier(rollups.name(pipeline.dataset))
    pipeline.connection.execute(sql.SQL("DELETE FROM {}").format(name))
    assert (result.method, reader.execute(query, pipeline.loaded).rows) == ("rollup", result.rows)


def test_two_processes_roll_up_side_by_side(pipeline: Pipeline, postgres_url: str) -> None:
    for _ in range(8):
        pipeline.loaded = pipeline.accept(16).last
    with closing(connect(postgres_url)) as other, closing(connect(postgres_url)) as third:

        def work(connection: psycopg.Connection[Any]) -> None:
            for _ in range(20):
                chunks.roll_up(connection, pipeline.dataset, pipeline.loaded)

        threads = [threading.Thread(target=work, args=(connection,)) for connection in (other, third)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert pipeline.roll_up() == 0, "nothing is left"
    assert method_of(pipeline.readers[0], pipeline.dataset, pipeline.loaded) == "rollup"


def test_what_differs_from_the_ledger_is_not_rolled_up(pipeline: Pipeline) -> None:
    pipeline.loaded = pipeline.accept(64).last
    delete = f"DELETE FROM {pipeline.dataset.name} WHERE id = (SELECT min(id) FROM {pipeline.dataset.name})"
    pipeline.connection.execute(delete)
    with pytest.raises(NeedsOperator, match="the ledger says"):
        pipeline.roll_up()
    assert method_of(pipeline.readers[0], pipeline.dataset, pipeline.loaded) == "scan"
    with pytest.raises(NeedsOperator):
        pipeline.roll_up()


@pytest.mark.parametrize("rolled_up", [True, False], ids=["before", "after"])
def test_days_that_retention_drops(pipeline: Pipeline, rolled_up: bool) -> None:
    pipeline.loaded = pipeline.accept(64).last
    if rolled_up:
        assert pipeline.roll_up()
    day = pipeline.start // DAY
    rollup.forget(pipeline.connection, pipeline.dataset, day)
    assert method_of(pipeline.readers[0], pipeline.dataset, pipeline.loaded) == ("rollup" if rolled_up else "scan")
    rollup.forget(pipeline.connection, pipeline.dataset, day + 1)
    pipeline.connection.execute("INSERT INTO floors VALUES (%s, %s)", (pipeline.dataset.name, pipeline.loaded + 1))
    leaf = sql.Identifier(postgres.partition_name(pipeline.dataset, day))
    pipeline.connection.execute(sql.SQL("TRUNCATE {}").format(leaf))
    while pipeline.roll_up():
        pass
    # What was dropped before it was rolled up is not rolled up any more: a scan finds nothing.
    assert method_of(pipeline.readers[0], pipeline.dataset, pipeline.loaded) == ("rollup" if rolled_up else "scan")
    assert pipeline.readers[0].execute(StatsQuery(pipeline.dataset), pipeline.loaded).rows == [(0,)]


class History:
    """Some days of a pipeline, rolled up and merged as RollupMaintenance does; the batch ids where each day ends."""

    def __init__(self, pipeline: Pipeline, days: int) -> None:
        self.pipeline = pipeline
        self.first_day = pipeline.start // DAY - days + 1
        self.ends: list[int] = []
        pipeline.start -= days * DAY
        for _ in range(days):
            pipeline.start += DAY
            for _ in range(4):
                pipeline.loaded = pipeline.accept(30).last
                self.keep()
            self.ends.append(pipeline.loaded)

    def keep(self) -> None:
        while self.pipeline.roll_up() or chunks.merge(self.pipeline.connection, self.pipeline.dataset):
            pass

    def chunks(self) -> dict[int, int]:
        """Day, counted from the first, -> how many chunks it has."""
        query = "SELECT day - %s, count(*) FROM rollup_chunks WHERE rollup = %s GROUP BY 1 ORDER BY 1"
        first = midnight(self.first_day).date()
        name = rollups.name(self.pipeline.dataset)
        return dict(self.pipeline.connection.execute(query, (first, name)).fetchall())

    def compare(self, as_of: int) -> None:
        reader, dataset = self.pipeline.readers[0], self.pipeline.dataset
        within = Filters(start=self.pipeline.start - 3 * DAY + 1, end=self.pipeline.start + 5 * MINUTE - 1)
        for query in (
            StatsQuery(dataset),
            AggregateQuery(dataset, "level"),
            AggregateQuery(dataset, None, within, MINUTE),
            AggregateQuery(dataset, "service", Filters((("level", "ERROR"),)), BUCKETS["1h"]),
        ):
            compare(reader, query, as_of)

    def drop(self, days: int) -> None:
        """As retention does: the floor rises, then the first days go."""
        connection, dataset = self.pipeline.connection, self.pipeline.dataset
        connection.execute("DELETE FROM floors WHERE dataset = %s", (dataset.name,))
        connection.execute("INSERT INTO floors VALUES (%s, %s)", (dataset.name, self.ends[days - 1] + 1))
        rollup.forget(connection, dataset, self.first_day + days)
        for day in range(self.first_day, self.first_day + days):
            leaf = sql.Identifier(postgres.partition_name(dataset, day))
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(leaf))


def test_the_chunks_of_a_day_become_one(pipeline: Pipeline) -> None:
    history = History(pipeline, 9)
    found = history.chunks()
    assert list(found) == list(range(9))
    assert {found[day] for day in range(9 - chunks.UNMERGED_DAYS)} == {1}
    assert all(found[day] > 1 for day in range(9 - chunks.UNMERGED_DAYS, 9))
    for as_of in [0, *range(history.ends[0] - 150, history.ends[-1] + 2, 37), *history.ends]:
        history.compare(max(0, as_of))
    assert method_of(pipeline.readers[0], pipeline.dataset, history.ends[4]) == "rollup"


def test_nothing_is_counted_twice_while_the_settled_ids_are_read_again(pipeline: Pipeline) -> None:
    """As after a restore: ids seem to be settled up to the middle of a day whose chunks were merged."""
    history = History(pipeline, 9)
    for settled in (history.ends[0] + 10, history.ends[3] - 1, history.ends[-1] - 1):
        assert chunks.roll_up(pipeline.connection, pipeline.dataset, settled) == 0
    history.compare(history.ends[-1])


def test_chunks_of_a_clock_that_was_wrong_do_not_hold_up_the_others(pipeline: Pipeline) -> None:
    """One block was accepted 300 days ahead and one 300 days back, among those of the first day."""
    for days in (0, 300, 0, -300, 0, 1, 2, 3, 4, 5):
        pipeline.start += days * DAY
        pipeline.loaded = pipeline.accept(64).last
        pipeline.start -= days * DAY
    while pipeline.roll_up() or chunks.merge(pipeline.connection, pipeline.dataset):
        pass
    query = "SELECT count(*), sum(row_count) FROM rollup_chunks WHERE rollup = %s AND {} merged"
    name = rollups.name(pipeline.dataset)
    unmerged = pipeline.connection.execute(query.format("NOT").encode(), (name,)).fetchone()
    merged = pipeline.connection.execute(query.format("").encode(), (name,)).fetchone()
    assert unmerged is not None
    assert merged is not None
    assert merged[0] == 5 + chunks.UNMERGED_DAYS - 1, "each block of the wrong days is apart"
    assert method_of(pipeline.readers[0], pipeline.dataset, pipeline.loaded) == "rollup"
    for as_of in range(pipeline.loaded - 660, pipeline.loaded, 53):
        compare(pipeline.readers[0], AggregateQuery(pipeline.dataset, "level"), max(0, as_of))


def test_a_merge_between_the_statements_of_a_query_is_not_seen(
    pipeline: Pipeline, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "UNMERGED_DAYS", 100)
    history = History(pipeline, 3)
    monkeypatch.setattr(chunks, "UNMERGED_DAYS", 1)
    until, merged = rollup.until, list[int]()

    def merging(*arguments: Any) -> int:
        found = until(*arguments)
        with closing(connect(postgres_url)) as other:
            merged.append(chunks.merge(other, pipeline.dataset))
        return found

    as_of = history.ends[0] - 10
    with monkeypatch.context() as patch:
        patch.setattr(rollup, "until", merging)
        result = pipeline.readers[0].execute(StatsQuery(pipeline.dataset), as_of)
    assert merged[0] > 1
    assert result.method == "rollup"
    assert result.rows == pipeline.readers[0].execute(StatsQuery(pipeline.dataset, scan=True), as_of).rows


def test_the_statements_after_the_summary_of_an_index_may_wait_for_locks_as_before(pipeline: Pipeline) -> None:
    pipeline.accept(1)
    with pipeline.connection.transaction():
        pipeline.connection.execute("SELECT 1")
        before = pipeline.connection.execute("SHOW lock_timeout").fetchone()
        partition = sql.SQL("SELECT tableoid::regclass::text FROM {}").format(sql.Identifier(pipeline.dataset.name))
        row = pipeline.connection.execute(partition).fetchone()
        assert row is not None
        chunks._summarize(pipeline.connection, row[0].strip('"'))
        assert pipeline.connection.execute("SHOW lock_timeout").fetchone() == before


def test_forgotten_days_leave_no_chunks_and_are_not_looked_at_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollup, "_DELETED_AT_ONCE", 2)
    history = History(pipeline, 9)
    history.drop(5)
    assert list(history.chunks()) == [5, 6, 7, 8]
    history.keep()
    for as_of in (*range(history.ends[4], history.ends[-1], 41), history.ends[-1]):
        history.compare(as_of)
    connection, name = pipeline.connection, rollups.name(pipeline.dataset)
    connection.execute("SET enable_seqscan = off")  # the tables are small: an index would not pay

    def rows_read() -> int:
        connection.execute("SELECT pg_stat_force_next_flush()")
        query = "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables WHERE relname = ANY(%s)"
        row = connection.execute(query, ([name, "rollup_chunks"],)).fetchone()
        assert row is not None
        return int(row[0])

    before = rows_read()
    for _ in range(10):
        rollup.forget(connection, pipeline.dataset, history.first_day + 5)
    assert rows_read() - before <= 10 * 2
    history.drop(9)
    assert history.chunks() == {8: 1}, "up to where the batches were counted"
    assert connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(name))).fetchone() == (0,)
    assert pipeline.roll_up() == 0
    assert method_of(pipeline.readers[0], pipeline.dataset, pipeline.loaded) == "rollup"
    pipeline.start += DAY
    pipeline.loaded = pipeline.accept(64).last
    assert pipeline.roll_up()
    history.drop(9)
    assert history.chunks() == {9: 1}
    assert method_of(pipeline.readers[0], pipeline.dataset, pipeline.loaded) == "rollup"


def test_a_rollup_of_an_earlier_release_is_merged(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "UNMERGED_DAYS", 100)
    history = History(pipeline, 6)
    assert all(found > 1 for found in history.chunks().values())
    monkeypatch.undo()
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 900)
    with pipeline.connection.transaction(force_rollback=True):  # other tests use the table
        pipeline.connection.execute("ALTER TABLE rollup_chunks DROP COLUMN merged")
        pipeline.connection.execute("DROP INDEX rollup_chunks_day")
        for _ in range(2):
            pipeline.connection.execute(MIGRATION.read_bytes())
        history.keep()
        assert {history.chunks()[day] for day in range(3)} == {1}
    history.keep()
    for as_of in history.ends:
        history.compare(as_of)


def test_the_rollups_follow(pipeline: Pipeline, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_INTERVAL_SECONDS", 0.05)
    keeping = RollupMaintenance(postgres_url, (pipeline.dataset,)).worker()
    keeping.start()
    try:
        pipeline.loaded = pipeline.accept(64).last
        until(lambda: method_of(pipeline.readers[0], pipeline.dataset, pipeline.loaded) == "rollup")
    finally:
        keeping.stop(10)


def test_a_database_without_rollups_is_scanned(empty_postgres_url: str) -> None:
    """As it is before the first run of `logpipe maintain`. Before `logpipe migrate`, the error names the command."""
    with closing(postgres.PostgresReader(empty_postgres_url)) as reader:
        with pytest.raises(StoreDown, match="logpipe migrate"):
            method_of(reader, LOGS, 100)
        migrate(empty_postgres_url)
        assert method_of(reader, LOGS, 100) == "scan"


def test_rows_that_were_there_before_the_projection(pipeline: Pipeline) -> None:
    client, table = pipeline.writer._client, pipeline.dataset.name
    client.command(create_table(pipeline.dataset))
    for _ in range(5):
        pipeline.load(pipeline.accept(16))
    pipeline.fill(1)
    assert method_of(pipeline.readers[1], pipeline.dataset, pipeline.loaded) == "rollup"
    missing = f"SELECT count() FROM system.parts WHERE active AND table = '{table}' AND empty(projections)"
    until(lambda: client.query(missing).result_rows == [(0,)])
    whole = (pipeline.loaded + 1 >> BATCH_SPAN_BITS << BATCH_SPAN_BITS) - 1
    read = [pipeline.readers[1].execute(StatsQuery(pipeline.dataset, scan), whole).scanned for scan in (False, True)]
    assert read[0]["rows"] < read[1]["rows"], "it counts by the projection"


def test_deleted_rows_leave_the_counts_too(pipeline: Pipeline) -> None:
    pipeline.fill(5)
    client, table = pipeline.writer._client, pipeline.dataset.name
    client.command(f"DELETE FROM {table} WHERE level = 'ERROR'")
    level = AggregateQuery(pipeline.dataset, "level")
    assert compare(pipeline.readers[1], level, pipeline.loaded) == "rollup"
    assert "ERROR" not in dict(pipeline.readers[1].execute(level, pipeline.loaded).rows)


def test_a_block_is_counted_once_also_after_a_restart(postgres_url: str) -> None:
    with running("clickhouse") as stack:
        url = stack.settings.urls()["LOGPIPE_CLICKHOUSE_URL"]
        with closing(Pipeline(postgres_url, url)) as pipeline:
            pipeline.writer.prepare(pipeline.dataset)
            block = pipeline.accept(64)
            pipeline.load(block)
            pipeline.load(block)
        stack.down()
        stack.up()
        writer, reader = ClickHouseWriter(url), ClickHouseReader(url)
        with closing(reader):
            writer.prepare(pipeline.dataset)
            writer.write([block])
            assert method_of(reader, pipeline.dataset, pipeline.loaded) == "rollup"
            result = reader.execute(StatsQuery(pipeline.dataset), pipeline.loaded)
            assert result.rows == [(block.rows,)]
