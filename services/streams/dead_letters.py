"""The topic of dead letters: rows that a store will never take, with the reason (`core.dead_letter` encodes them).

A row's dead letter is in the topic before the row counts as loaded.
"""

from collections.abc import Callable, Iterator, Sequence
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

    def send(self, dead_letters: Sequence[DeadLetter]) -> None:
        """Blocks until the dead letters are in Kafka. Raises StoreDown: send all of them again."""
        if not dead_letters:
            return
        try:
            if self._producer is None:
                self._producer = self._open_producer()
            encoded = [encode(self._store, self._dataset, dead_letter, self._topic) for dead_letter in dead_letters]
            self._producer.publish([OutgoingMessage(TOPIC, PARTITION, key, value) for key, value in encoded])
        except BaseException:
            self.close()
            raise
        self._counter.inc(sum(dead_letter.rows for dead_letter in dead_letters))

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
