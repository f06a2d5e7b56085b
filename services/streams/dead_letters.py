"""What a store will never take goes to a topic of its own, with the reason, before it counts as loaded.

A crash in between sends a letter again: (store, topic, partition, offset, line) names what it is about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ports import Outgoing, PartitionReader, TransactionalProducer
from services.runtime import metrics
from services.streams.topics import DEAD_LETTERS

TOPIC = DEAD_LETTERS
_IDLE_POLLS = 10  # seconds without a message before the topic's end counts as unreachable
_MAX_VALUE = 128 * 1024  # characters kept of a message refused as a whole: escaped, they stay below Kafka's limit


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
            self._producer.publish([Outgoing(TOPIC, 0, self._key(letter), self._value(letter)) for letter in letters])
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
    """A message of the topic, as far as it is counted: one row, or with no `line` the `rows` of one message."""

    store: str
    dataset: str
    topic: str
    partition: int
    offset: int
    line: int | None = None
    batch_id: int | None = None
    id: int | None = None
    rows: int = 1


def read(open_stream: Callable[[], PartitionReader]) -> set[Record]:
    """All that the topic holds; a row put aside again after a crash is there once. Raises StoreDown."""
    stream = open_stream()
    decoder = msgspec.json.Decoder(Record)
    found: set[Record] = set()
    try:
        bounds = stream.bounds()
        stream.assign({partition: first for partition, (first, _) in bounds.items()})
        idle = 0
        while any(stream.reached().get(partition, 0) < end for partition, (_, end) in bounds.items()):
            messages = stream.poll(1.0)
            idle = 0 if messages else idle + 1
            if idle == _IDLE_POLLS:
                raise StoreDown("kafka", f"topic {TOPIC} could not be read to its end")
            found.update(decoder.decode(message.value) for message in messages)
    finally:
        stream.close()
    return found
