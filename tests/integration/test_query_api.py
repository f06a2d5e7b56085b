"""Watermarks, questions and `verify` over a real ledger, PostgreSQL and ClickHouse, filled as the pipeline does."""

import asyncio
import threading
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from typing import Any

import httpx
import psycopg
import pytest
from fastapi import FastAPI
from rich.progress import Progress

from services.core.dataset import Dataset
from services.core.ids import batch_of
from services.core.ledger import Batch, Part
from services.core.ports import Block, StoreReader
from services.core.rows import Row, RowCodec, Rows, checksum
from services.core.stores import Store
from services.datasets.logs import DATASET as LOGS
from services.ledger import batches as ledger_batches
from services.ledger.watermark import Watermarks
from services.postgres.connection import connect
from services.postgres.pool import Pool
from services.query_api.endpoints import router
from services.query_api.service import QueryService
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import ListenSettings
from services.stores import clickhouse, postgres
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.writer import ClickHouseWriter
from services.streams import dead_letters
from services.streams.memory import MemoryBroker, MemoryPartitionReader
from services.verify.dead_letters import DeadLetterLookup
from services.verify.reconcile import Result
from services.verify.service import Options, Verification
from tests import marks
from tests.waiting import until

DAY = 86_400_000_000
SLOT = 0
BATCH_ROWS = 50


class Pipeline:
    """Accepts, publishes and loads batches of one dataset, each step when the test says so."""

    def __init__(self, dataset: Dataset, postgres_url: str, clickhouse_url: str) -> None:
        self.dataset = dataset
        self.codec = RowCodec(dataset)
        self.connection = connect(postgres_url)
        self.writer = ClickHouseWriter(clickhouse_url)
        self.day = time.time_ns() // 1000 // DAY
        self.next_offset = 0
        postgres.prepare(self.connection, dataset)
        postgres.ensure_partitions(self.connection, dataset, self.day, 2)
        self.writer.prepare(dataset)

    def accept(self, connection: psycopg.Connection[Any] | None = None) -> tuple[Batch, list[Row]]:
        """One batch in one transaction, or within the transaction of `connection`."""
        with (connection or self.connection).transaction(), (connection or self.connection).cursor() as cursor:
            [batch_id] = ledger_batches.draw_ids(cursor, 1).batch_ids
            return self.write(cursor, batch_id)

    def write(self, cursor: psycopg.Cursor[Any], batch_id: int) -> tuple[Batch, list[Row]]:
        created = time.time_ns() // 1000
        columns: list[list[Any]] = [
            [created - n for n in range(BATCH_ROWS)],
            [("INFO", "ERROR")[n % 2] for n in range(BATCH_ROWS)],
            ["api"] * BATCH_ROWS,
            [""] * BATCH_ROWS,
            [f"message {n} of {batch_id}" for n in range(BATCH_ROWS)],
            ['{"n": 1.0}'] * BATCH_ROWS,
        ]
        rows = Rows(BATCH_ROWS, columns)
        with cursor.copy(postgres.copy_statement(self.dataset, created // DAY)) as copy:
            copy.set_types(postgres.copy_types(self.dataset))
            for values in postgres.copy_rows(self.dataset, rows, batch_id, created):
                copy.write_row(values)
        tuples = list(rows.tuples(batch_id, created))
        batch = Batch(batch_id, SLOT, self.dataset.name, BATCH_ROWS, checksum(self.codec.encode(tuples)), created)
        ledger_batches.insert(cursor, [batch])
        return batch, tuples

    def publish(self, batch: Batch) -> None:
        part = Part(0, self.next_offset)
        self.next_offset += 2  # a control record lies between
        marks.mark_published(self.connection, replace(batch, parts=(part,)))

    def load(self, batch: Batch, rows: Sequence[Row]) -> None:
        """Into ClickHouse, and confirmed."""
        self.insert(batch.batch_id, batch.created_at // DAY, rows)
        self.connection.execute(
            "INSERT INTO sink_progress (store, dataset, topic_id, partition, next_offset) VALUES (%s, %s, 't', 0, %s)"
            " ON CONFLICT (store, dataset, partition) DO UPDATE SET next_offset = excluded.next_offset",
            (clickhouse.STORE.name, self.dataset.name, self.next_offset),
        )

    def insert(self, offset: int, day: int, rows: Sequence[Row]) -> None:
        lines = b"".join(line + b"\n" for line in self.codec.encode(rows))
        self.writer.write([Block(self.dataset, "t", 0, offset, offset, day, len(rows), lines)])

    def fill(self, count: int) -> list[tuple[Batch, list[Row]]]:
        made = [self.accept() for _ in range(count)]
        for batch, rows in made:
            self.publish(batch)
            self.load(batch, rows)
        return made


@pytest.fixture(scope="module")
def readers(postgres_url: str, clickhouse_url: str) -> Iterator[list[StoreReader]]:
    made: list[StoreReader] = [postgres.PostgresReader(postgres_url), ClickHouseReader(clickhouse_url)]
    yield made
    for reader in made:
        reader.close()


@pytest.fixture(scope="module")
def ledger(postgres_url: str) -> Iterator[Pool]:
    with closing(Pool(postgres_url)) as ledger:
        yield ledger


@pytest.fixture
def pipeline(request: pytest.FixtureRequest, postgres_url: str, clickhouse_url: str) -> Iterator[Pipeline]:
    name = f"reading_{zlib.crc32(request.node.name.encode())}"
    made = Pipeline(replace(LOGS, name=name, topic=name), postgres_url, clickhouse_url)
    yield made
    made.connection.close()


def test_a_batch_still_being_written_holds_the_watermark(
    pipeline: Pipeline, ledger: Pool, readers: list[StoreReader], postgres_url: str
) -> None:
    """The writer of the lower batch has the higher transaction id: beyond the snapshot's xmax, and not dead."""
    reader, watermarks = readers[0], Watermarks(ledger)
    before, _ = pipeline.accept()
    # Ids that earlier tests left unused count as dead.
    until(lambda: watermarks.of(reader, pipeline.dataset) == before.batch_id)
    with connect(postgres_url) as one, connect(postgres_url) as other:
        with one.transaction(), one.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()")
            other.execute("BEGIN")
            [lower] = ledger_batches.draw_ids(other.cursor(), 1).batch_ids
            [higher] = ledger_batches.draw_ids(cursor, 1).batch_ids
            pipeline.write(cursor, higher)
        for _ in range(3):
            assert watermarks.of(reader, pipeline.dataset) == before.batch_id == lower - 1
        pipeline.write(other.cursor(), lower)
        other.execute("COMMIT")
    assert watermarks.of(reader, pipeline.dataset) == higher


def test_a_rolled_back_batch_does_not(pipeline: Pipeline, ledger: Pool, readers: list[StoreReader]) -> None:
    watermarks = Watermarks(ledger)
    with pipeline.connection.transaction(force_rollback=True):
        pipeline.accept()
    batch, _ = pipeline.accept()
    assert watermarks.of(readers[0], pipeline.dataset) == batch.batch_id


def test_under_concurrent_writers_every_answer_is_whole(
    pipeline: Pipeline, ledger: Pool, readers: list[StoreReader], postgres_url: str
) -> None:
    """Asked all the while: as of its watermark, PostgreSQL always holds exactly what the ledger says."""
    reader, watermarks = readers[0], Watermarks(ledger)

    def work(number: int) -> None:
        with connect(postgres_url) as connection:
            for n in range(40):
                with connection.transaction() as transaction, connection.cursor() as cursor:
                    [batch_id] = ledger_batches.draw_ids(cursor, 1).batch_ids
                    pipeline.write(cursor, batch_id)
                    if (n + number) % 7 == 0:
                        raise psycopg.Rollback(transaction)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    marks = [0]
    while any(thread.is_alive() for thread in threads):
        marks.append(mark := watermarks.of(reader, pipeline.dataset))
        found = {batch_id for batch_id, *_ in reader.counts(pipeline.dataset, 0, mark)}
        assert found == _ledger_ids(pipeline, mark)
    assert marks == sorted(marks)
    ids = _ledger_ids(pipeline, 1 << 40)
    assert len(ids) == 3 * 40 - sum((n + number) % 7 == 0 for n in range(40) for number in range(3))
    assert watermarks.of(reader, pipeline.dataset) == max(ids)


def _ledger_ids(pipeline: Pipeline, last: int) -> set[int]:
    query = "SELECT batch_id FROM batches WHERE dataset = %s AND batch_id <= %s"
    return {batch_id for (batch_id,) in pipeline.connection.execute(query, (pipeline.dataset.name, last))}


def described(readers: Sequence[StoreReader]) -> list[Store]:
    """The stores' descriptions, whose readers are these."""
    opened = {reader.name: reader for reader in readers}
    return [
        replace(store, open_reader=partial(opened.__getitem__, store.name))
        for store in (postgres.STORE, clickhouse.STORE)
    ]


class Api:
    def __init__(self, dataset: Dataset, ledger: Pool, readers: Sequence[StoreReader]) -> None:
        self.name = dataset.name
        app = make_app("Query API", ListenSettings(), [router([dataset])], _no_lifespan, Readiness())
        app.state.service = QueryService(described(readers), [dataset], Watermarks(ledger))
        self._transport = httpx.ASGITransport(app)

    def get(self, path: str, **parameters: Any) -> dict[str, Any]:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://localhost") as client:
                return await client.get(f"/api/query/{path}", params=parameters)

        reply = asyncio.run(send())
        assert reply.status_code == 200, reply.text
        body: dict[str, Any] = reply.json()
        return body


@asynccontextmanager
async def _no_lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


def test_stores_are_compared_at_the_point_both_have_reached(
    pipeline: Pipeline, ledger: Pool, readers: list[StoreReader]
) -> None:
    api = Api(pipeline.dataset, ledger, readers)
    loaded = pipeline.fill(3)[-1][0]
    waiting = [pipeline.accept() for _ in range(2)]
    for batch, _ in waiting:
        pipeline.publish(batch)

    assert api.get("clickhouse/stats")[f"{api.name}_count"] == 3 * BATCH_ROWS
    ahead = api.get("postgres/stats")
    assert (ahead["as_of"], ahead[f"{api.name}_count"]) == (waiting[-1][0].batch_id, 5 * BATCH_ROWS)
    compared = api.get(f"compare/{api.name}", level="ERROR")
    assert compared["as_of"] == loaded.batch_id
    assert compared["answers_agree"] is True
    assert compared["postgresql"]["total"] == compared["clickhouse"]["total"] == 3 * BATCH_ROWS // 2

    for batch, rows in waiting:
        pipeline.load(batch, rows)
    compared = api.get(f"compare/{api.name}", order_by="level", order_dir="asc")
    assert (compared["as_of"], compared["answers_agree"]) == (waiting[-1][0].batch_id, True)
    lists = [api.get(f"{store}/{api.name}", limit=30, offset=5) for store in ("postgres", "clickhouse")]
    assert lists[0]["data"] == lists[1]["data"]
    grouped = [api.get(f"{store}/{api.name}/aggregate", group_by="level") for store in ("postgres", "clickhouse")]
    assert grouped[0]["data"] == grouped[1]["data"] == [{"key": k, "count": 125} for k in ("ERROR", "INFO")]


def verify(
    pipeline: Pipeline,
    ledger: Pool,
    readers: Sequence[StoreReader],
    wait: float = 0.0,
    sample: int | None = None,
    days: float | None = None,
) -> dict[str, Result]:
    broker = MemoryBroker()
    broker.ensure_topics({dead_letters.TOPIC: 1})
    lookup = DeadLetterLookup(ledger, lambda: MemoryPartitionReader(broker, dead_letters.TOPIC))
    with Progress(disable=True) as progress:
        options = Options([pipeline.dataset], None, 1, wait, sample, days)
        report = Verification(ledger, lookup, progress).run(readers, options)
    assert not report.unchecked
    return {result.store: result for result in report.results}


PLANTED: dict[tuple[str, str], str] = {
    ("postgres", "missing"): "DELETE FROM {table} WHERE id = {id}",
    ("postgres", "duplicated"): "INSERT INTO {table} SELECT * FROM {table} WHERE id = {id}",
    ("postgres", "differing"): "UPDATE {table} SET message = message || ' ' WHERE id = {id}",
    ("clickhouse", "missing"): "DELETE FROM {table} WHERE id = {id}",
    ("clickhouse", "duplicated"): "INSERT INTO {table} ({columns}) SELECT {columns} FROM {table} WHERE id = {id}",
    ("clickhouse", "differing"): "ALTER TABLE {table} UPDATE message = concat(message, ' ') WHERE id = {id}",
}


@pytest.mark.parametrize("sample", [None, 9], ids=["all", "sample"])
@pytest.mark.parametrize(("store", "kind"), PLANTED)
def test_verify_finds_what_was_planted(
    pipeline: Pipeline,
    ledger: Pool,
    readers: list[StoreReader],
    clickhouse_url: str,
    store: str,
    kind: str,
    sample: int | None,
) -> None:
    made = pipeline.fill(4)
    results = verify(pipeline, ledger, readers, sample=sample)
    assert [(r.store, r.ok, r.found, r.compared) for r in results.values()] == [
        ("postgres", True, 200, 4),
        ("clickhouse", True, 200, 4),
    ]
    columns = "id, created_at_utc, timestamp_utc, level, service, host, message, metadata"
    row_id = made[2][1][17][0]
    statement = PLANTED[store, kind].format(table=pipeline.dataset.name, id=row_id, columns=columns)
    if store == "postgres":
        pipeline.connection.execute(statement.encode())
    else:
        pipeline.writer._client.command(statement, settings={"mutations_sync": 1, "lightweight_deletes_sync": 1})
    results = verify(pipeline, ledger, readers, sample=sample)
    wrong = {
        r.store: {k: getattr(r, k) for k in ("missing", "extra", "duplicated", "differing")} for r in results.values()
    }
    none = dict.fromkeys(("missing", "extra", "duplicated", "differing"), 0)
    assert wrong == {**dict.fromkeys(results, none), store: {**none, kind: 1}}


def test_verify_leaves_out_what_was_accepted_earlier(
    pipeline: Pipeline, ledger: Pool, readers: list[StoreReader]
) -> None:
    made = pipeline.fill(4)
    old = [batch.batch_id for batch, _ in made[:3]]
    pipeline.connection.execute(
        "UPDATE batches SET created_at = created_at - %s WHERE batch_id <= %s", (3 * DAY, old[-1])
    )
    pipeline.connection.execute(
        f"DELETE FROM {pipeline.dataset.name}".encode() + b" WHERE id = %s", (made[1][1][0][0],)
    )
    recent = verify(pipeline, ledger, readers, days=2)
    assert [(r.ok, r.batches, r.found) for r in recent.values()] == 2 * [(True, 1, BATCH_ROWS)]
    assert verify(pipeline, ledger, readers, days=4)["postgres"].missing == 1


def test_a_sample_reads_its_own_batches_only(pipeline: Pipeline, ledger: Pool, readers: list[StoreReader]) -> None:
    class Sampled:
        """Refuses to be read as a whole, and counts what is read."""

        def __init__(self, reader: StoreReader) -> None:
            self.name, self.progress, self.table_id = reader.name, reader.progress, getattr(reader, "table_id", None)
            self._reader = reader
            self.read = Counter[int]()

        def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
            for row in self._reader.rows_of(dataset, batches):
                self.read[batch_of(row[0])] += 1
                yield row

    made = {batch.batch_id for batch, _ in pipeline.fill(9)}
    sampled = [Sampled(reader) for reader in readers]
    results = verify(pipeline, ledger, sampled, sample=3)  # type: ignore[arg-type]
    assert [(r.ok, r.batches, r.compared, r.found) for r in results.values()] == 2 * [(True, 3, 3, 3 * BATCH_ROWS)]
    assert sampled[0].read == sampled[1].read, "the same batches in every store"
    assert len(sampled[0].read) == 3
    assert sampled[0].read.keys() <= made


def test_verify_tells_lag_from_loss_and_can_wait(pipeline: Pipeline, ledger: Pool, readers: list[StoreReader]) -> None:
    pipeline.fill(1)
    batch, rows = pipeline.accept()
    pipeline.publish(batch)
    late = verify(pipeline, ledger, readers)["clickhouse"]
    assert late.missing == BATCH_ROWS
    assert late.note.startswith("1 batches were not loaded yet")
    loading = threading.Timer(0.5, pipeline.load, (batch, rows))
    loading.start()
    assert verify(pipeline, ledger, readers, wait=30)["clickhouse"].ok
    loading.join()
