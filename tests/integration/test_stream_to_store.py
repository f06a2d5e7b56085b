"""stream_to_store with real Kafka, PostgreSQL and ClickHouse engine: its ledger rows, and kill -9 in the middle."""

import signal
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from services.core import kafka_value
from services.core.errors import Fenced, NeedsOperator, StoreDown
from services.core.ids import first_id
from services.core.ledger import OffsetRange, SinkPosition
from services.core.ports import Block, OutgoingMessage
from services.core.rows import RowCodec, Rows
from services.datasets.logs import DATASET
from services.ledger.sink_progress import SinkProgress, positions
from services.ledger.sink_repair import bind_table, skip
from services.local.settings import LocalSettings
from services.local.stack import Stack
from services.migrate.service import migrate
from services.postgres.connection import connect
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.memory import MemoryStore
from services.streams import kafka
from services.streams.topics import ensure_topics
from tests.processes import Process, free_port
from tests.waiting import until

PARTITIONS = 4
BATCH_ROWS = 1000
NOON = 20_000 * 86_400_000_000 + 43_200_000_000


# ---- sink_progress --------------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> MemoryStore:
    """A store of its own, with the table of the logs in it."""
    made: type[MemoryStore] = type("NamedStore", (MemoryStore,), {"name": f"store-{uuid.uuid4().hex}"})
    opened = made()
    opened.prepare(DATASET)
    return opened


@pytest.fixture
def store(table: MemoryStore) -> str:
    return table.name


@pytest.fixture
def progress(postgres_url: str, table: MemoryStore) -> Iterator[SinkProgress]:
    with closing(SinkProgress(postgres_url, table, DATASET, "topic-1")) as opened:
        yield opened


@pytest.fixture
def other(postgres_url: str, table: MemoryStore) -> Iterator[SinkProgress]:
    """Another process at the same partitions."""
    with closing(SinkProgress(postgres_url, table, DATASET, "topic-1")) as opened:
        yield opened


def test_a_partition_starts_at_its_beginning(progress: SinkProgress, postgres_url: str, store: str) -> None:
    assert progress.load([0, 2]) == [SinkPosition(0, 0), SinkPosition(2, 0)]
    assert positions(postgres_url, store, "logs") == {0: SinkPosition(0, 0), 2: SinkPosition(2, 0)}
    assert positions(postgres_url, store, "events") == {}


def test_what_was_begun_together_is_found_by_the_next_owner_of_any_of_it(
    progress: SinkProgress, other: SinkProgress
) -> None:
    progress.load([0, 1, 2])
    progress.mark_pending({0: OffsetRange(0, 9), 2: OffsetRange(0, 4)})
    begun = [SinkPosition(0, 0, OffsetRange(0, 9), (0, 2)), SinkPosition(2, 0, OffsetRange(0, 4), (0, 2))]
    assert other.load([2]) == begun
    assert other.load([0, 1]) == [begun[0], SinkPosition(1, 0), begun[1]]
    other.mark_pending({0: OffsetRange(0, 9), 2: OffsetRange(0, 4)})
    other.mark_loaded({0: OffsetRange(0, 9), 2: OffsetRange(0, 4)})
    assert other.load([0, 1, 2]) == [SinkPosition(0, 10), SinkPosition(1, 0), SinkPosition(2, 5)]
    with pytest.raises(Fenced):
        progress.mark_loaded({0: OffsetRange(0, 9), 2: OffsetRange(0, 4)})


def test_what_is_not_begun_whole_is_not_begun_at_all(progress: SinkProgress, other: SinkProgress) -> None:
    progress.load([0, 1])
    other.load([0, 1])
    other.mark_pending({1: OffsetRange(0, 9)})
    for refused in ({0: OffsetRange(0, 9), 1: OffsetRange(0, 9)}, {0: OffsetRange(0, 9), 1: OffsetRange(10, 19)}):
        with pytest.raises(Fenced):
            progress.mark_pending(refused)
    assert progress.load([0]) == [SinkPosition(0, 0)]


def test_who_lost_a_partition_is_fenced(progress: SinkProgress, other: SinkProgress) -> None:
    progress.load([0])
    other.load([0])
    assert not other.mark_pending({0: OffsetRange(0, 9)})
    assert other.mark_pending({0: OffsetRange(0, 9)})  # the answer was lost
    with pytest.raises(Fenced):
        progress.mark_pending({0: OffsetRange(0, 5)})  # another range is under way
    other.mark_loaded({0: OffsetRange(0, 9)})
    with pytest.raises(Fenced):
        progress.mark_pending({0: OffsetRange(0, 5)})  # the position has moved on
    other.mark_pending({0: OffsetRange(10, 19)})
    with pytest.raises(Fenced):
        progress.mark_loaded({0: OffsetRange(0, 9)})
    with pytest.raises(Fenced):
        other.mark_loaded({0: OffsetRange(10, 15)})


def test_what_the_topic_lost_is_skipped_with_all_that_was_begun_together(
    progress: SinkProgress, postgres_url: str, store: str, table: MemoryStore
) -> None:
    progress.load([0, 1, 2, 3, 4, 6])
    progress.mark_pending({0: OffsetRange(0, 9), 1: OffsetRange(0, 19)})
    progress.mark_pending({2: OffsetRange(0, 9), 3: OffsetRange(0, 9)})
    progress.mark_pending({6: OffsetRange(0, 99)})
    progress.mark_loaded({6: OffsetRange(0, 99)})
    with connect(postgres_url) as connection:
        skip(
            connection,
            store,
            "logs",
            "topic-1",
            table.table_id(DATASET),
            {0: (5, 50), 1: (0, 50), 2: (0, 50), 3: (0, 50), 4: (7, 50), 5: (0, 8), 6: (0, 50)},
        )
    assert progress.load(range(7)) == [
        SinkPosition(0, 10),
        SinkPosition(1, 20),
        SinkPosition(2, 0, OffsetRange(0, 9), (2, 3)),
        SinkPosition(3, 0, OffsetRange(0, 9), (2, 3)),
        SinkPosition(4, 7),
        SinkPosition(5, 8),
        SinkPosition(6, 50),
    ]


def test_a_ledger_of_before_blocks_were_written_together(
    progress: SinkProgress, other: SinkProgress, postgres_url: str, store: str
) -> None:
    progress.load([0])
    progress.mark_pending({0: OffsetRange(0, 9)})
    with connect(postgres_url) as connection:
        connection.execute("ALTER TABLE sink_progress DROP COLUMN intent_together")
        connection.execute("DROP TABLE ledger_version")
        connection.execute("DELETE FROM applied_migrations")
    migrate(postgres_url)
    assert other.load([0]) == [SinkPosition(0, 0, OffsetRange(0, 9), (0,))]


def test_a_topic_created_again_needs_an_operator(progress: SinkProgress, postgres_url: str, table: MemoryStore) -> None:
    progress.load([0])
    command = f"logpipe replay --store {table.name} --dataset logs"
    with (
        closing(SinkProgress(postgres_url, table, DATASET, "topic-2")) as replaced,
        pytest.raises(NeedsOperator, match=command),
    ):
        replaced.load([0])
    progress.check_topic("topic-1")
    with pytest.raises(NeedsOperator, match=command):
        progress.check_topic("topic-2")


def test_a_table_created_again_needs_an_operator(
    progress: SinkProgress, other: SinkProgress, table: MemoryStore
) -> None:
    progress.load([0])
    progress.check_table()
    table.drop(DATASET)
    command = f"logpipe replay --store {table.name} --dataset logs"
    for remade in (False, True):
        if remade:
            table.prepare(DATASET)
        with pytest.raises(NeedsOperator, match=command):
            progress.check_table()
        with pytest.raises(NeedsOperator, match=command):
            other.load([0])


def test_a_position_that_was_bound_to_another_table_fences_the_consumer(
    progress: SinkProgress, postgres_url: str, store: str
) -> None:
    progress.load([0])
    with connect(postgres_url) as connection:
        assert bind_table(connection, store, "logs", "another table")
        assert not bind_table(connection, store, "logs", "another table")
    with pytest.raises(Fenced):
        progress.mark_pending({0: OffsetRange(0, 9)})


@pytest.mark.parametrize(("offset", "rows", "bound"), [(0, 0, True), (9, 1, True), (9, 0, False)])
def test_positions_of_a_release_without_table_ids_are_bound_if_the_table_can_be_the_one_they_count(
    progress: SinkProgress, postgres_url: str, table: MemoryStore, offset: int, rows: int, bound: bool
) -> None:
    progress.load([0])
    with connect(postgres_url) as connection:
        connection.execute(
            "UPDATE sink_progress SET table_id = '', next_offset = %s WHERE store = %s", (offset, table.name)
        )
    if rows:
        write_a_row(table)
    if bound:
        assert progress.load([0]) == [SinkPosition(0, offset)]
        progress.check_table()
    else:
        with pytest.raises(NeedsOperator, match="created again"):
            progress.load([0])


def test_a_table_with_rows_of_which_the_ledger_knows_nothing_needs_an_operator(
    progress: SinkProgress, table: MemoryStore
) -> None:
    """The ledger was wiped or restored: the topic's rows may be in the table already."""
    write_a_row(table)
    with pytest.raises(NeedsOperator, match=f"logpipe replay --store {table.name} --dataset logs"):
        progress.load([0])


def write_a_row(table: MemoryStore) -> None:
    row = (first_id(1), NOON, NOON, "INFO", "service", "", "", "{}")
    lines = b"".join(line + b"\n" for line in RowCodec(DATASET).encode([row]))
    table.write([Block(DATASET, "topic-1", 0, 0, 8, 20_000, 1, lines)])


def test_postgres_unreachable_and_back(progress: SinkProgress, postgres_url: str) -> None:
    progress.load([0])
    assert progress._connection is not None
    progress._connection.close()
    with pytest.raises(StoreDown, match="postgres"):
        progress.mark_pending({0: OffsetRange(0, 9)})
    progress.mark_pending({0: OffsetRange(0, 9)})
    with (
        closing(SinkProgress("postgresql://nobody@127.0.0.1:1/x", MemoryStore(), DATASET, "t")) as nowhere,
        pytest.raises(StoreDown),
    ):
        nowhere.load([0])


# ---- the process, killed --------------------------------------------------------------------------------------------


@pytest.fixture
def urls(stack_folder: Path) -> Iterator[dict[str, str]]:
    """A stack of its own: the rows of this test are in no ledger, and would be found superfluous elsewhere."""
    with Stack(LocalSettings.on_free_ports(stack_folder), ("postgres", "kafka", "clickhouse")) as stack:
        migrate(stack.settings.urls()["LOGPIPE_POSTGRES_URL"])
        yield stack.settings.urls()


def test_killed_twice_it_stores_every_row_once(urls: dict[str, str]) -> None:
    kafka_url, postgres_url = urls["LOGPIPE_KAFKA_URL"], urls["LOGPIPE_POSTGRES_URL"]
    ensure_topics(kafka_url, {DATASET.topic: PARTITIONS}, 1)
    port = free_port()
    environment = {
        **urls,
        "LOGPIPE_STREAM_TO_STORE_PORT": str(port),
        "LOGPIPE_KAFKA_PARTITIONS": str(PARTITIONS),
        "LOGPIPE_BLOCK_ROWS": "3000",  # many blocks, so that the kill finds one under way
        "LOGPIPE_BLOCK_SECONDS": "0.2",
    }
    process = Process(f"stream-to-store --store clickhouse --dataset {DATASET.name}", environment, port)
    with closing(kafka.KafkaProducer(kafka_url, "test")) as producer, process:
        reader = ClickHouseReader(urls["LOGPIPE_CLICKHOUSE_URL"])
        poison = OutgoingMessage(DATASET.topic, 0, b"no batch", b"{}\n", {"created_at": b"5", "rows": b"1"})
        for first, kill_at in ((1, 20_000), (101, 120_000)):
            for start in range(first, first + 100, 20):
                producer.publish([message for batch in range(start, start + 20) for message in batch_messages(batch)])
                producer.publish([poison])
            await_stored(reader, kill_at)
            process.kill()
            process.start()
        until(lambda: loaded(urls))
        assert sorted(reader.counts(DATASET, 0, 1 << 30)) == [(b, BATCH_ROWS, BATCH_ROWS) for b in range(1, 201)]
        assert len(dead_letters(kafka_url)) == 10
        until(lambda: 'logpipe_sink_lag_offsets{dataset="logs",store="clickhouse"} 0.0' in metrics(process))

        producer.publish(batch_messages(201))
        assert process.stop() in (0, -signal.SIGTERM)
        assert all(position.pending is None for position in positions(postgres_url, "clickhouse", "logs").values())
        process.start()
        until(lambda: loaded(urls))
        assert list(reader.counts(DATASET, 201, 201)) == [(201, BATCH_ROWS, BATCH_ROWS)]
        reader.close()


def batch_messages(batch: int) -> list[OutgoingMessage]:
    rows = [
        (first_id(batch) + n, NOON, NOON + n, "INFO", f"service-{n % 50}", "worker-1", f"message {n}", '{"a":1}')
        for n in range(BATCH_ROWS)
    ]
    own = kafka_value.encode(DATASET, batch, NOON, Rows.of(rows), RowCodec(DATASET).encode(rows), PARTITIONS)
    return [message for message in own if message.topic == DATASET.topic]


def stored(reader: ClickHouseReader) -> int:
    return sum(rows for _, rows, _ in reader.counts(DATASET, 0, 1 << 30))


def await_stored(reader: ClickHouseReader, rows: int) -> None:
    until(lambda: stored(reader) >= rows)


def loaded(urls: dict[str, str]) -> bool:
    """Every partition's position stands at the end of its log, control records included."""
    with closing(kafka.KafkaPartitionReader(urls["LOGPIPE_KAFKA_URL"], DATASET.topic)) as reader:
        ends = {partition: end for partition, (_, end) in reader.bounds().items()}
    at = positions(urls["LOGPIPE_POSTGRES_URL"], "clickhouse", DATASET.name)
    return {p: position.next_offset for p, position in at.items()} == ends


def dead_letters(kafka_url: str) -> set[tuple[int, int]]:
    """(partition, offset) of what they are about: a crash may have sent one twice."""
    with closing(kafka.KafkaPartitionReader(kafka_url, "dead-letter")) as reader:
        end = reader.bounds()[0][1]
        reader.assign({0: 0})
        dead_letters: list[Any] = []
        while reader.read_up_to()[0] < end:
            dead_letters += [msgspec.json.decode(message.value) for message in reader.poll(0.5)]
    return {(dead_letter["partition"], dead_letter["offset"]) for dead_letter in dead_letters}


def metrics(process: Process) -> str:
    return httpx.get(f"{process.url}/metrics", timeout=60).text
