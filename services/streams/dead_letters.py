"""What a store will never take goes to a topic of its own, with the reason, before it counts as loaded.

A crash in between sends a letter again: (store, topic, partition, offset, line) names what it is about.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ports import Message, Outgoing, PartitionReader, TransactionalProducer
from services.runtime import logs, metrics
from services.streams.topics import DEAD_LETTERS

TOPIC, PARTITION = DEAD_LETTERS, 0
_IDLE_POLLS = 10  # seconds without a message: a transaction that was left open holds up the end for a minute at most
_MAX_VALUE = 128 * 1024  # characters kept of a message refused as a whole: escaped, they stay below Kafka's limit

_log = logs.get("dead_letters")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row (`line` of its message, 0-based), or a message as a whole: then `line` and `id` are None.

    A row that was read from PostgreSQL has no message: `partition` and `offset` are -1, `line` is its number in the
    batch.
    """

    partition: int
    offset: int
    line: int | None
    batch_id: int | None
    id: int | None
    rows: int
    reason: str
    value: bytes


class DeadLetters:
    def __init__(self, open_producer: Callable[[], TransactionalProducer], store: str, dataset: Dataset) -> None:
        self._open_producer = open_producer
        self._store = store
        self._dataset = dataset
        self._producer: TransactionalProducer | None = None

    def send(self, letters: Sequence[DeadLetter]) -> None:
        """Returns when they are in Kafka. Raises StoreDown: send all again."""
        if not letters:
            return
        try:
            if self._producer is None:
                self._producer = self._open_producer()
            keyed = [(self._key(letter), self._value(letter)) for letter in letters]
            self._producer.publish([Outgoing(TOPIC, PARTITION, key, value) for key, value in keyed])
        except BaseException:
            self.close()
            raise
        rows = sum(letter.rows for letter in letters)
        metrics.counter(metric_names.DEAD_LETTERS, self._store, self._dataset.name).inc(rows)

    def close(self) -> None:
        if self._producer:
            self._producer.close()
            self._producer = None

    def _key(self, letter: DeadLetter) -> bytes:
        return f"{self._store}:{self._dataset.topic}:{letter.partition}:{letter.offset}".encode()

    def _value(self, letter: DeadLetter) -> bytes:
        return msgspec.json.encode(
            {
                "store": self._store,
                "dataset": self._dataset.name,
                "topic": self._dataset.topic,
                "partition": letter.partition,
                "offset": letter.offset,
                "line": letter.line,
                "batch_id": letter.batch_id,
                "id": letter.id,
                "rows": letter.rows,
                "reason": letter.reason,
                "value": letter.value.decode(errors="backslashreplace")[:_MAX_VALUE],
            }
        )


class Record(msgspec.Struct, frozen=True):
    """What is counted of a letter: one row, or without a `line` the `rows` of one message."""

    store: str
    dataset: str
    topic: str
    partition: int
    offset: int
    line: int | None = None
    batch_id: int | None = None
    id: int | None = None
    rows: int = 1


class Letter(NamedTuple):
    """`offset`: of the letter in the topic."""

    offset: int
    record: Record


_DECODER = msgspec.json.Decoder(Record)


def read(topic: PartitionReader, start: int) -> Iterator[tuple[list[Letter], int]]:
    """The letters from offset `start` to the end that the topic has now, each time with the offset read up to.

    Raises StoreDown.
    """
    first, end = topic.bounds()[PARTITION]
    reached = max(start, first)
    if reached >= end:
        return
    topic.assign({PARTITION: reached})
    idle = 0
    while reached < end:
        messages = topic.poll(1.0)
        idle = 0 if messages else idle + 1
        if idle == _IDLE_POLLS:
            raise StoreDown("kafka", f"topic {TOPIC} could not be read to its end: try again in a minute")
        reached = topic.reached()[PARTITION]
        yield list(_decoded(messages)), reached


def _decoded(messages: Sequence[Message]) -> Iterator[Letter]:
    for message in messages:
        try:
            yield Letter(message.offset, _DECODER.decode(message.value))
        except msgspec.MsgspecError as error:
            _log.warning("message is no dead letter, skipped", topic=TOPIC, offset=message.offset, reason=str(error))
