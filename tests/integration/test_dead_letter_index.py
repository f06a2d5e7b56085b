"""The index of the dead letters in PostgreSQL: each letter once, and only new ones are ever read."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from services.core.dead_letter import DeadLetter, DeadLettered
from services.core.ports import Message, OutgoingMessage
from services.datasets.logs import DATASET
from services.ledger import dead_letter_index
from services.postgres.connection import Connection, connect
from services.postgres.pool import Pool
from services.stores.memory import MemoryStore
from services.streams.dead_letters import TOPIC, DeadLetterSender, StoredDeadLetter, read
from services.streams.memory import MemoryBroker, MemoryPartitionReader
from services.verify.dead_letters import DeadLetteredRows, DeadLetterLookup


class Topic:
    """The dead letters' topic, in memory. `read`: how many messages readers were given."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(max_poll=3)
        self.broker.ensure_topics({TOPIC: 1})
        self.read = 0

    def reader(self) -> MemoryPartitionReader:
        topic = self

        class Counting(MemoryPartitionReader):
            def poll(self, timeout: float) -> list[Message]:
                found = super().poll(timeout)
                topic.read += len(found)
                return found

        return Counting(self.broker, TOPIC)

    def send(self, *dead_letters: DeadLetter, store: str = "memory") -> None:
        DeadLetterSender(lambda: self.broker.producer(store), store, DATASET).send(dead_letters)


def dead_letter(
    batch: int | None, row: int | None = None, offset: int = 5, line: int | None = 0, rows: int = 1
) -> DeadLetter:
    return DeadLetter(0, offset, line, batch, row, rows, "reason", b"value")


@pytest.fixture
def connection(own_postgres_url: str) -> Iterator[Connection]:
    with connect(own_postgres_url) as found:
        yield found


@pytest.fixture
def topic() -> Topic:
    return Topic()


def dead_lettered(
    connection: Any, topic: Topic, store: str = "memory", batches: Sequence[int] | None = None
) -> list[DeadLettered]:
    dead_letter_index.update(connection, topic.reader())
    return sorted(dead_letter_index.dead_lettered(connection, store, DATASET.name, batches), key=str)


def test_a_letter_counts_once_however_often_it_was_sent(
    connection: Connection, topic: Topic, own_postgres_url: str
) -> None:
    topic.send(
        dead_letter(7, 70),
        dead_letter(7, 71, line=1),
        dead_letter(8, None, 6, None, 3),
        dead_letter(None, None, 7, None),
    )
    topic.send(dead_letter(7, 70), dead_letter(9, None, 8, 0), dead_letter(9, None, 8, 1))
    topic.send(dead_letter(7, 70), store="clickhouse")
    found = [
        DeadLettered(7, 70, 1),
        DeadLettered(7, 71, 1),
        DeadLettered(8, None, 3),
        DeadLettered(9, None, 1),
        DeadLettered(9, None, 1),
    ]
    assert dead_lettered(connection, topic) == found
    assert dead_lettered(connection, topic, "clickhouse") == found[:1]
    assert dead_lettered(connection, topic, batches=[8, 99]) == found[2:3]
    ledger = Pool(own_postgres_url)
    counted = DeadLetterLookup(ledger, topic.reader).of(MemoryStore(), DATASET, range(100))
    ledger.close()
    assert counted == {
        7: DeadLetteredRows(frozenset({70, 71})),
        8: DeadLetteredRows(unnamed=3),
        9: DeadLetteredRows(unnamed=2),
    }


def test_a_letter_that_is_sent_again_with_more_rows_counts_with_all_of_them(
    connection: Connection, topic: Topic
) -> None:
    for rows in (50, 51, 50):
        topic.send(dead_letter(None, line=None, rows=rows))
    dead_letter_index.update(connection, topic.reader())
    assert dead_letter_index.lines_of_topic(connection, "memory", DATASET.name, DATASET.topic) == 51


def test_letters_of_a_replay_are_told_apart_by_their_batch(connection: Connection, topic: Topic) -> None:
    """They have no message: the number of the row in its batch stands in place of the line."""
    topic.send(*(DeadLetter(-1, -1, 3, batch, batch * 10, 1, "r", b"") for batch in (7, 8, 7)))
    assert dead_lettered(connection, topic) == [DeadLettered(7, 70, 1), DeadLettered(8, 80, 1)]


def test_only_new_letters_are_read(connection: Connection, topic: Topic) -> None:
    topic.send(*(dead_letter(batch, batch, batch) for batch in range(50)))
    assert len(dead_lettered(connection, topic)) == topic.read == 50
    topic.send(dead_letter(99, 99, 99))
    for _ in range(3):
        assert len(dead_lettered(connection, topic)) == 51
    assert topic.read == 51


def test_what_the_topic_no_longer_has_stays_known(connection: Connection, topic: Topic) -> None:
    topic.send(dead_letter(7, 70))
    dead_lettered(connection, topic)
    topic.broker.delete_records(TOPIC, 0, 2)
    topic.send(dead_letter(8, 80))
    assert dead_lettered(connection, topic) == [DeadLettered(7, 70, 1), DeadLettered(8, 80, 1)]


def test_a_topic_created_again_is_read_from_its_start(connection: Connection, topic: Topic) -> None:
    topic.send(dead_letter(7, 70), dead_letter(8, 80))
    dead_lettered(connection, topic)
    topic.broker.delete_topic(TOPIC)
    topic.broker.ensure_topics({TOPIC: 1})
    topic.send(dead_letter(9, 90))
    assert dead_lettered(connection, topic) == [DeadLettered(7, 70, 1), DeadLettered(8, 80, 1), DeadLettered(9, 90, 1)]
    needed = dead_letter_index.needed(connection)
    assert needed is not None
    assert needed == (topic.reader().topic_id(), 0)
    dead_letter_index.forget(connection, DATASET.name, 100)
    assert dead_letter_index.needed(connection) == (needed.topic_id, topic.reader().bounds()[0][1])


def test_letters_of_dropped_batches_leave_and_say_from_where_on_the_topic_is_needed(
    connection: Connection, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_index, "_FORGOTTEN_AT_ONCE", 1)
    topic.send(dead_letter(7, 70), dead_letter(8, 80, 6), dead_letter(None, None, 7, None), dead_letter(9, 90, 8))
    topic.send(dead_letter(9, 90, 8))  # the copy is enough
    dead_lettered(connection, topic)
    assert dead_letter_index.forget(connection, DATASET.name, 9) == 2
    assert dead_letter_index.needed(connection) == (topic.reader().topic_id(), 2), "the letter about no batch"
    connection.execute("INSERT INTO floors VALUES ('logs', 9, extract(epoch FROM now())::bigint * 1000000)")
    connection.execute("UPDATE dead_letters SET indexed_at = now() - interval '1 hour'")
    assert dead_letter_index.forget(connection, DATASET.name, 9) == 1
    assert dead_letter_index.needed(connection) == (topic.reader().topic_id(), 5)
    assert dead_lettered(connection, topic) == [DeadLettered(9, 90, 1)]


def test_many_at_once_index_each_letter_once(connection: Connection, topic: Topic, own_postgres_url: str) -> None:
    topic.send(*(dead_letter(batch, batch, batch) for batch in range(40)))

    def update(_: int) -> None:
        with connect(own_postgres_url) as own:
            dead_letter_index.update(own, topic.reader())

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(update, range(6)))
    assert len(dead_letter_index.dead_lettered(connection, "memory", DATASET.name)) == 40
    assert dead_letter_index.needed(connection) == (topic.reader().topic_id(), 0)


FOREIGN: dict[str, Any] = {"store": "memory", "dataset": DATASET.name, "topic": "t", "partition": 0, "offset": 0}


@pytest.mark.parametrize(
    "foreign",
    [
        b"no letter",
        b"\xff",
        b"[" * 100_000,
        msgspec.json.encode(FOREIGN | {"batch_id": 1 << 63}),
        msgspec.json.encode(FOREIGN | {"partition": 1 << 31}),
        msgspec.json.encode(FOREIGN | {"rows": -7}),
        msgspec.json.encode(FOREIGN | {"topic": "a\0b"}),
        msgspec.json.encode(FOREIGN | {"store": "".join(f"{n:x}" for n in range(5000))}),
    ],
)
def test_a_foreign_message_is_skipped(connection: Connection, topic: Topic, foreign: bytes) -> None:
    topic.broker.producer("x").publish([OutgoingMessage(TOPIC, 0, b"", foreign)])
    topic.send(dead_letter(7, 70))
    assert dead_lettered(connection, topic) == [DeadLettered(7, 70, 1)]


def test_a_letter_is_decoded_with_its_offset(topic: Topic) -> None:
    topic.send(dead_letter(7, 70), dead_letter(8, 80))
    record = msgspec.structs.replace
    found = [each for dead_letters, _ in read(topic.reader(), 1) for each in dead_letters]
    assert found == [StoredDeadLetter(1, record(found[0].record, batch_id=8, id=80))]
