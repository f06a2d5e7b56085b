"""What a store will never take goes to a topic of its own, with the reason, before it counts as loaded.

A crash in between sends a letter again: (store, topic, partition, offset, line) names what it is about.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.lines import UNDECODABLE
from services.core.ports import Message, Outgoing, PartitionReader, TransactionalProducer
from services.runtime import logs, metrics
from services.streams.topics import DEAD_LETTERS

TOPIC, PARTITION = DEAD_LETTERS, 0
_IDLE_POLLS = 10  # seconds without a message: a transaction that was left open holds up the end for a minute at most
MAX_LETTER_BYTES = 900_000
"""Size of a letter, below what the producer and the topic take (1,000,000 bytes); more of a message is cut."""

MAX_REASON_CHARACTERS = 1000
"""Length of a reason; more of it is cut."""

_log = logs.get("dead_letters")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row (`line` of its message, 0-based), or a message as a whole: then `line` and `id` are None.

    A row that was read from PostgreSQL has no message: `partition` and `offset` are -1, `line` is its number in the
    batch.

    Of a long `reason` and a long `value` the letter has the beginning; the message is in its topic at `offset`.
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
        record = {
            "store": self._store,
            "dataset": self._dataset.name,
            "topic": self._dataset.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "line": letter.line,
            "batch_id": letter.batch_id,
            "id": letter.id,
            "rows": letter.rows,
            "reason": letter.reason[:MAX_REASON_CHARACTERS],
            "value_bytes": len(letter.value),
        }
        value = letter.value.decode(errors="backslashreplace")
        while len(encoded := msgspec.json.encode({**record, "value": value})) > MAX_LETTER_BYTES:
            # A character takes up to six bytes; where those of the rest are larger than most, this is repeated.
            value = value[: len(value) * MAX_LETTER_BYTES // len(encoded)]
        return encoded


# As far as PostgreSQL, which keeps the index of the letters, can hold them: a foreign message must not stop the index.
_Name = Annotated[str, msgspec.Meta(max_length=249, pattern="^[^\\x00]*$")]
_Int = Annotated[int, msgspec.Meta(ge=-1, lt=1 << 31)]
_BigInt = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]


class Record(msgspec.Struct, frozen=True):
    """What is counted of a letter: one row, or without a `line` the `rows` of one message."""

    store: _Name
    dataset: _Name
    topic: _Name
    partition: _Int
    offset: _BigInt
    line: _Int | None = None
    batch_id: _BigInt | None = None
    id: _BigInt | None = None
    rows: _Int = 1


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
        except UNDECODABLE as error:
            _log.warning("message is no dead letter, skipped", topic=TOPIC, offset=message.offset, reason=str(error))
