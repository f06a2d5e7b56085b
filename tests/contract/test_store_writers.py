"""One suite for every store that stream_to_store fills: what was written is read back the same, once."""

import uuid
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

import clickhouse_connect
import pytest

from services.core.dataset import Column, Dataset
from services.core.errors import NeedsOperator, RowRejected, StoreDown
from services.core.ids import first_id
from services.core.ports import Block, OwnProgressWriter, StoreReader, StoreWriter
from services.core.queries import StatsQuery
from services.core.rows import Row, RowCodec
from services.lake.embedded import EmbeddedReader
from services.lake.writer import EmbeddedWriter
from services.runtime.settings import LakeSettings
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.writer import ClickHouseWriter
from services.stores.memory import MemoryStore

DAY = 20_000
NOON = DAY * 86_400_000_000 + 43_200_000_000
EVERYTHING = 1 << 30


class Store(Protocol):
    writer: StoreWriter
    reader: StoreReader


class MemoryPair:
    def __init__(self) -> None:
        self.writer = self.reader = MemoryStore()


class ClickHousePair:
    def __init__(self, url: str) -> None:
        self.writer = ClickHouseWriter(url)
        self.reader = ClickHouseReader(url)


class LakePair:
    def __init__(self, url: str) -> None:
        settings = LakeSettings(hdfs_url=url)
        self.writer = EmbeddedWriter(settings)
        self.reader = EmbeddedReader(settings)


@pytest.fixture(params=["memory", "clickhouse", "lake"])
def store(request: pytest.FixtureRequest) -> Any:
    pair: Any
    match request.param:
        case "memory":
            pair = MemoryPair()
        case "clickhouse":
            pair = ClickHousePair(request.getfixturevalue("clickhouse_url"))
        case _:
            pair = LakePair(request.getfixturevalue("hdfs_url"))
    yield pair
    pair.reader.close()


@pytest.fixture
def dataset(store: Store) -> Dataset:
    """One column of each kind, in a table of its own."""
    made = Dataset(
        name=f"kinds_{uuid.uuid4().hex}",
        singular="kind",
        plural="kinds",
        topic="kinds",
        key="category",
        time="timestamp",
        columns=(
            Column("timestamp", "timestamp", required=True),
            Column("category", "category", required=True),
            Column("message", "text"),
            Column("amount", "number"),
            Column("metadata", "json"),
            Column("event_id", "uuid", required=True),
        ),
        groupings=("category",),
        orderings=("timestamp", "category", "created_at", "id"),
        filters=("category", "message", "event_id"),
    )
    store.writer.prepare(made)
    return made


def row(batch: int, number: int, **values: Any) -> Row:
    given = {
        "timestamp": NOON + number,
        "category": "INFO",
        "message": f"message {number}",
        "amount": number / 4,
        "metadata": '{"n":1}',
        "event_id": str(uuid.UUID(int=number)),
        **values,
    }
    return (first_id(batch) + number, NOON, *given.values())


def block(dataset: Dataset, rows: list[Row], first: int = 0, day: int = DAY) -> Block:
    lines = RowCodec(dataset).encode(rows)
    return lines_block(dataset, lines, first, day)


def lines_block(dataset: Dataset, lines: list[bytes], first: int = 0, day: int = DAY) -> Block:
    joined = b"".join(line + b"\n" for line in lines)
    return Block(dataset, "topic", 0, first, first + 9, day, len(lines), joined)


def stored(store: Store, dataset: Dataset) -> list[Row]:
    return sorted(store.reader.rows(dataset, 0, EVERYTHING))


AWKWARD = [
    row(1, 0, message="", amount=None, metadata="{}"),
    row(1, 1, message="quotes \" ' ` \\ / \t \n \r \x01\x7f", metadata='{"a":"\\n\\u0001\\"\\\\"}'),
    row(1, 2, message="grüße 東京 👩‍🚀 \u2028", category="É", metadata='{ "kept" : [1e2, -0.0, 1E400],"a":1,"a":2 }'),
    row(1, 3, timestamp=0, amount=-0.0),
    row(1, 4, timestamp=4_102_444_799_999_999, amount=1.7976931348623157e308),
    row(1, 5, amount=5e-324, metadata='"a string"'),
    row(1, 6, amount=0.1, metadata="[1,2,{}]", event_id="ffffffff-ffff-4fff-bfff-ffffffffffff"),
    row(1, 7, message="\\N", category="NULL", metadata='{"deep":{"er":null}}'),
    row(1, 8, message="x" * 100_000, category="é" * 256),
]


def test_every_kind_comes_back_the_same(store: Store, dataset: Dataset) -> None:
    store.writer.write([block(dataset, AWKWARD)])
    codec = RowCodec(dataset)
    assert codec.encode(stored(store, dataset)) == codec.encode(AWKWARD)


def test_the_same_token_is_stored_once(store: Store, dataset: Dataset) -> None:
    blocks = [block(dataset, [row(b, n) for n in range(50)], first=(b - 1) * 10) for b in range(1, 6)]
    for repeated in [*blocks, *blocks, blocks[0]]:
        store.writer.write([repeated])
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(b, 50, 50) for b in range(1, 6)]


def test_blocks_that_come_together_are_stored_once(store: Store, dataset: Dataset) -> None:
    blocks = [replace(block(dataset, [row(b, n) for n in range(50)]), partition=b) for b in range(1, 4)]
    blocks.append(replace(block(dataset, []), partition=9))
    for _ in range(2):
        store.writer.write(blocks)
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(b, 50, 50) for b in range(1, 4)]


def test_of_blocks_that_come_together_none_is_stored_with_a_bad_row(store: Store, dataset: Dataset) -> None:
    good = [RowCodec(dataset).encode([row(b, n) for n in range(5)]) for b in range(1, 4)]
    blocks = [replace(lines_block(dataset, lines), partition=b) for b, lines in enumerate(good)]
    bad = replace(lines_block(dataset, [*good[1][:3], b"garbage", *good[1][3:]]), partition=1)
    with pytest.raises(RowRejected):
        store.writer.write([blocks[0], bad, blocks[2]])
    assert stored(store, dataset) == []
    for _ in range(2):
        store.writer.write(blocks)  # the good neighbours, under the same tokens
    assert len(stored(store, dataset)) == 15


def test_a_large_block_is_stored_once(store: Store, dataset: Dataset) -> None:
    rows = [row(2, n, message="m" * 50) for n in range(100_000)]
    store.writer.write([block(dataset, rows)])
    store.writer.write([block(dataset, rows)])
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(2, 100_000, 100_000)]


def test_missing_optional_columns_are_empty(store: Store, dataset: Dataset) -> None:
    line = b'{"id":131072,"created_at":5,"timestamp":7,"category":"c","event_id":"%s"}' % str(uuid.UUID(int=3)).encode()
    store.writer.write([lines_block(dataset, [line], day=0)])
    assert stored(store, dataset) == [(131072, 5, 7, "c", "", None, "{}", str(uuid.UUID(int=3)))]


BAD_ROWS = [
    b"garbage",
    b"[1,2]",
    b'{"id":131073,"created_at":"noon","timestamp":7,"category":"c","event_id":"%s"}' % (b"0" * 32),
    b'{"id":131073,"created_at":5,"timestamp":7,"category":"c","event_id":"no uuid"}',
    b'{"id":131073,"created_at":5,"timestamp":7,"category":3,"event_id":"00000000-0000-4000-8000-000000000000"}',
    b'{"id":5,"created_at":5,"timestamp":7,"category":"c","event_id":"00000000-0000-4000-8000-000000000000"}',
    b'{"id":131073,"created_at":5,"timestamp":7,"category":"%s","event_id":"00000000-0000-4000-8000-000000000000"}'
    % (b"c" * 257),
]


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_with_a_bad_row_nothing_is_stored(store: Store, dataset: Dataset, bad: bytes) -> None:
    good = RowCodec(dataset).encode([row(1, n) for n in range(5)])
    with pytest.raises(RowRejected) as rejected:
        store.writer.write([lines_block(dataset, [*good[:3], bad, *good[3:]])])
    assert rejected.value.near == (3 if isinstance(store.writer, ClickHouseWriter) else None)
    assert stored(store, dataset) == []
    store.writer.write([lines_block(dataset, good)])  # its good neighbours, under the same token
    assert len(stored(store, dataset)) == 5
    store.writer.write([lines_block(dataset, good)])
    assert len(stored(store, dataset)) == 5


def test_a_write_that_did_not_arrive_is_completed(store: Store, dataset: Dataset) -> None:
    blocks = partitions(dataset)
    assert list(store.writer.complete(blocks)) == []
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(b, 50, 50) for b in range(1, 4)]


def test_a_write_whose_reply_was_lost_is_not_repeated(store: Store, dataset: Dataset) -> None:
    blocks = partitions(dataset)
    store.writer.write(blocks)
    for _ in range(2):
        assert list(store.writer.complete(blocks)) == []
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(b, 50, 50) for b in range(1, 4)]


def test_a_first_attempt_that_arrives_after_its_completion_is_dropped(store: Store, dataset: Dataset) -> None:
    """The writer was suspended before the insert reached the store, and another writer completed the range."""
    blocks = partitions(dataset)
    store.writer.complete(blocks)
    store.writer.write(blocks)
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(b, 50, 50) for b in range(1, 4)]


@pytest.mark.parametrize("store", ["memory", "clickhouse"], indirect=True)
def test_only_missing_rows_are_completed(store: Store, dataset: Dataset) -> None:
    """The lake stores a block whole or not at all: its position is in the same commit."""
    rows = [row(b, n) for b in (1, 2, 9000) for n in range(20)]
    store.writer.write([block(dataset, rows[5:43], first=100)])
    store.writer.complete([block(dataset, rows)])
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(b, 20, 20) for b in (1, 2, 9000)]


@pytest.mark.parametrize("store", ["memory", "clickhouse"], indirect=True)
def test_rows_that_a_store_acknowledged_and_lost_are_written_again(
    store: Store, dataset: Dataset, request: pytest.FixtureRequest
) -> None:
    """The store remembers the token, as after a failed rename of ClickHouse: it drops a repetition of the write.

    The lake has no tokens.
    """
    blocks = partitions(dataset)
    store.writer.write(blocks)
    match store.writer:
        case MemoryStore():
            store.writer.forget_rows(dataset)
        case ClickHouseWriter():
            with closing(clickhouse_connect.get_client(dsn=request.getfixturevalue("clickhouse_url"))) as client:
                client.command(f"DELETE FROM {dataset.name} WHERE true")
        case _:
            pytest.fail(f"no way to lose rows of {store.writer}")
    store.writer.write(blocks)
    assert stored(store, dataset) == []
    for _ in range(2):
        store.writer.complete(blocks)
        assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(b, 50, 50) for b in range(1, 4)]


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_completion_returns_the_refused_rows_and_stores_their_neighbours(
    store: Store, dataset: Dataset, bad: bytes
) -> None:
    good = [RowCodec(dataset).encode([row(b, n) for n in range(9)]) for b in (2, 3)]
    blocks = [
        lines_block(dataset, [*good[0][:3], bad, *good[0][3:], bad]),
        replace(lines_block(dataset, [bad, *good[1]]), partition=1),
    ]
    for _ in range(2):
        refused = store.writer.complete(blocks)
        assert [(at.block, at.row) for at in refused] == [(0, 3), (0, 10), (1, 0)]
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(2, 9, 9), (3, 9, 9)]


def partitions(dataset: Dataset) -> list[Block]:
    """Blocks of three partitions, and an empty one."""
    blocks = [replace(block(dataset, [row(b, n) for n in range(50)]), partition=b) for b in range(1, 4)]
    return [*blocks, replace(block(dataset, []), partition=9)]


def test_a_writer_says_what_a_former_attempt_has_stored(store: Store, dataset: Dataset) -> None:
    of_another_day = (first_id(7), NOON + 86_400_000_000, *row(7, 0)[2:])
    attempted = lines_block(dataset, RowCodec(dataset).encode([row(1, 0), of_another_day]))
    next_block = block(dataset, [row(2, 0)], first=attempted.last + 1)
    store.writer.write([attempted])
    if isinstance(store.writer, OwnProgressWriter):
        assert store.writer.is_loaded(attempted)
        assert not store.writer.is_loaded(next_block)
    else:
        asked = {first_id(1), first_id(1) + 1, first_id(2), first_id(7)}
        assert store.writer.stored_ids(dataset, asked) == {first_id(1), first_id(7)}
        assert store.writer.stored_ids(dataset, set()) == set()


def test_a_block_without_rows_changes_nothing(store: Store, dataset: Dataset) -> None:
    store.writer.write([lines_block(dataset, [])])
    assert stored(store, dataset) == []


@pytest.mark.parametrize("store", ["clickhouse", "lake"], indirect=True)
def test_a_new_optional_column_reads_as_empty_in_old_rows(store: Store, dataset: Dataset) -> None:
    """Rows in memory are never older than the description of their dataset."""
    store.writer.write([block(dataset, [row(1, 0)])])
    wider = replace(dataset, columns=(*dataset.columns, Column("region", "category"), Column("extra", "json")))
    store.writer.prepare(wider)
    store.writer.prepare(wider)
    store.writer.write([block(wider, [(*row(1, 1), "north", '{"a":1}')], first=10)])
    assert stored(store, wider) == [(*row(1, 0), "", "{}"), (*row(1, 1), "north", '{"a":1}')]


@pytest.mark.parametrize("store", ["clickhouse", "lake"], indirect=True)
def test_a_column_of_another_kind_needs_an_operator(store: Store, dataset: Dataset) -> None:
    """The store in memory has no schema."""
    columns = tuple(replace(c, kind="number") if c.name == "message" else c for c in dataset.columns)
    with pytest.raises(NeedsOperator, match="message"):
        store.writer.prepare(replace(dataset, columns=columns, groupings=(), orderings=(), filters=()))


def test_batches_are_counted_by_really_reading(store: Store, dataset: Dataset) -> None:
    store.writer.write([block(dataset, [row(3, n) for n in range(4)])])
    store.writer.write([block(dataset, [row(3, n) for n in range(2, 6)] + [row(5, 0)], first=10)])
    assert list(store.reader.counts(dataset, 0, EVERYTHING)) == [(3, 8, 6), (5, 1, 1)]
    assert list(store.reader.counts(dataset, 4, 5)) == [(5, 1, 1)]
    assert [r[0] for r in store.reader.rows(dataset, 5, 9)] == [first_id(5)]


def test_an_unreachable_clickhouse_is_down(dataset: Dataset) -> None:
    reader, writer = ClickHouseReader("http://127.0.0.1:1"), ClickHouseWriter("http://127.0.0.1:1")
    with pytest.raises(StoreDown):
        reader.execute(StatsQuery(dataset), 1)
    with pytest.raises(StoreDown):
        writer.prepare(dataset)
    with pytest.raises(StoreDown):
        writer.write([block(dataset, [row(1, 1)])])
    reader.close()


def test_what_comes_together_is_one_part(clickhouse_url: str) -> None:
    name = f"parts_{uuid.uuid4().hex}"
    columns = (Column("t", "timestamp", required=True), Column("k", "text"), Column("message", "text"))
    made = Dataset(name, "p", "ps", "p", "k", "t", columns, (), (), ())
    writer = ClickHouseWriter(clickhouse_url)
    writer.prepare(made)
    rows = [(first_id(1) + n, NOON, NOON - n * 86_400_000_000, "k", "m" * 400) for n in range(150_000)]
    writer.write([replace(block(made, rows[n::3]), partition=n) for n in range(3)])
    with closing(clickhouse_connect.get_client(dsn=clickhouse_url)) as client:
        parts = client.command("SELECT count() FROM system.parts WHERE table = {t:String}", {"t": name})
    assert parts == 1
