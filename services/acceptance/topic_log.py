"""A dataset's topic as the publisher of a slot sees it: the topic's identity, and the batches that it contains."""

from collections.abc import Mapping
from typing import NamedTuple

from services.core.dataset import Dataset
from services.core.errors import NeedsOperator, StoreDown
from services.core.kafka_value import announced
from services.core.ledger import Batch, Part
from services.core.ports import PartitionReader
from services.ledger import batches as ledger_batches
from services.ledger import topics
from services.postgres.connection import Connection
from services.streams.reading import read_to_end


class FoundBatch(NamedTuple):
    """A batch that the topic contains: its messages, and the number of rows that these announce."""

    parts: tuple[Part, ...]
    rows: int


class TopicLog:
    """Registers the present topic of `dataset` in the ledger. Methods raise StoreDown. Not thread-safe."""

    def __init__(self, connection: Connection, dataset: Dataset, reader: PartitionReader) -> None:
        self.dataset = dataset
        self._reader = reader
        self.topic = topics.register(connection, dataset.name, dataset.topic, reader.topic_id(), self.ends())

    def ends(self) -> dict[int, int]:
        """Return partition -> end of the log, including the messages of open transactions."""
        return {partition: end for partition, (_, end) in self.bounds().items()}

    def uncut_ends(self, connection: Connection) -> dict[int, int]:
        """Return the `ends`. Raises NeedsOperator if the topic was cut, so that it ends before published messages."""
        published = ledger_batches.published_ends(connection, self.dataset.name, self.topic.topic_id)
        ends = self.ends()  # read after the positions of the slots, which may rise meanwhile
        if cut := [partition for partition, end in published.items() if end > ends.get(partition, 0)]:
            raise NeedsOperator(
                f"topic {self.dataset.topic} was cut: partitions {cut} end before messages that were published, and new"
                " messages would get offsets that stores count as loaded. Let the stores load what the topic still has,"
                " delete it, start an ingest API, which creates it again, and see 'A topic that was cut' in"
                " docs/operations.md"
            )
        return ends

    def bounds(self) -> Mapping[int, tuple[int, int]]:
        """Return partition -> first offset that the topic still has, end of the log."""
        return self._reader.bounds()

    def check(self) -> None:
        """Raise StoreDown if the topic is no longer the one that was registered."""
        if self._reader.topic_id() != self.topic.topic_id:
            raise StoreDown("kafka", f"topic {self.dataset.topic} was deleted and created again: opening it again")

    def find_batches(self, batches: Mapping[int, Batch], starts: Mapping[int, int]) -> dict[int, FoundBatch]:
        """Search the topic for `batches` (by id), from the offsets `starts` (by partition). Return those found, by id.

        A message that does not announce the number of its rows and when its batch was accepted is foreign. Waits for
        the end of open transactions of other slots, which hide messages.
        """
        parts: dict[int, list[Part]] = {}
        rows: dict[int, int] = {}
        for messages, _ in read_to_end(self._reader, self.dataset.topic, starts):
            for message in messages:
                if (about := announced(message)) is None:
                    continue
                batch = batches.get(about.batch_id)
                if batch and batch.created_at == about.created_at:
                    parts.setdefault(batch.batch_id, []).append(Part(message.partition, message.offset))
                    rows[batch.batch_id] = rows.get(batch.batch_id, 0) + about.rows
        self._reader.assign({})
        return {batch_id: FoundBatch(tuple(parts[batch_id]), rows[batch_id]) for batch_id in sorted(parts)}

    def close(self) -> None:
        self._reader.close()
