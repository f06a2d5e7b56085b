"""What a store will never take goes to a topic of its own, with the reason, before its offset counts as loaded.

A crash in between sends a letter again: (store, topic, partition, offset, line) names what it is about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.ports import Outgoing, TransactionalProducer
from services.runtime import metrics

TOPIC = "dead-letter"
_MAX_VALUE = 128 * 1024  # characters kept of a message refused as a whole: escaped, they stay below Kafka's limit


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row (`line` of its message, 0-based), or a message as a whole: then `line` and `id` are None."""

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
