"""The topic of dead letters: rows that a store will never take, with the reason (`core.dead_letter` encodes them).

A row's dead letter is in the topic before the row counts as loaded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.dead_letter import DeadLetter, Record, decode, encode
from services.core.errors import Malformed
from services.core.ports import Message, OutgoingMessage, PartitionReader, TransactionalProducer
from services.runtime import logs, metrics
from services.streams.reading import read_to_end
from services.streams.topics import DEAD_LETTERS

TOPIC, PARTITION = DEAD_LETTERS, 0
TRANSACTION_BYTES = 4 << 20
"""Encoded dead letters of one transaction, which ends with the dead letter that reaches this size."""

_log = logs.get("dead_letters")


class DeadLetterSender:
    """Sends the dead letters of one store and dataset. Called by stream-to-store, replay and kafka-source.

    Belongs to one thread. `topic`: the topic of the messages, where that is not the dataset's own.
    """

    def __init__(
        self, open_producer: Callable[[], TransactionalProducer], store: str, dataset: Dataset, topic: str = ""
    ) -> None:
        self._open_producer = open_producer
        self._store = store
        self._dataset = dataset
        self._topic = topic
        self._producer: TransactionalProducer | None = None
        self._counter = metrics.counter(metric_names.DEAD_LETTERS, store, dataset.name)  # served as 0 from the start

    def send(self, dead_letters: Iterable[DeadLetter]) -> None:
        """Blocks until the dead letters are in Kafka. Raises StoreDown: send all of them again.

        Several transactions send many dead letters, so that the encoded dead letters do not fill the memory.
        """
        outgoing, size, rows = list[OutgoingMessage](), 0, 0
        for dead_letter in dead_letters:
            key, value = encode(self._store, self._dataset, dead_letter, self._topic)
            outgoing.append(OutgoingMessage(TOPIC, PARTITION, key, value))
            size += len(value)
            rows += dead_letter.rows
            if size >= TRANSACTION_BYTES:
                self._publish(outgoing, rows)
                outgoing, size, rows = [], 0, 0
        if outgoing:
            self._publish(outgoing, rows)

    def _publish(self, outgoing: Sequence[OutgoingMessage], rows: int) -> None:
        """Send the dead letters of `rows` rows in one transaction."""
        try:
            if self._producer is None:
                self._producer = self._open_producer()
            self._producer.publish(outgoing)
        except BaseException:
            self.close()
            raise
        self._counter.inc(rows)

    def close(self) -> None:
        if self._producer:
            self._producer.close()
            self._producer = None


class StoredDeadLetter(NamedTuple):
    """A dead letter that was read, and its offset in the topic."""

    offset: int
    record: Record


def read(topic: PartitionReader, start: int) -> Iterator[tuple[list[StoredDeadLetter], int]]:
    """Yield the dead letters from offset `start` to the present end of the topic, each time with the offset read up to.

    Blocks. Raises StoreDown.
    """
    first, _ = topic.bounds()[PARTITION]
    for messages, read_up_to in read_to_end(topic, TOPIC, {PARTITION: max(start, first)}):
        yield list(_decoded(messages)), read_up_to[PARTITION]


def _decoded(messages: Sequence[Message]) -> Iterator[StoredDeadLetter]:
    for message in messages:
        try:
            yield StoredDeadLetter(message.offset, decode(message.value))
        except Malformed as error:
            _log.warning("message is no dead letter, skipped", topic=TOPIC, offset=message.offset, reason=str(error))
