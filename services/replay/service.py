"""Replays into one store: whether they may begin, and from which batch."""

import uuid
from collections import defaultdict
from contextlib import ExitStack, closing
from typing import Self

from services import stores
from services.core.dataset import Dataset
from services.core.errors import Invalid
from services.core.ids import MAX_BATCH
from services.core.ports import RejectsReader, StoreReader, TransactionalProducer
from services.core.rows import RowCodec
from services.ledger import dead_letter_index, reading
from services.ledger import topics as ledger_topics
from services.ledger.reading import TopicNumbers
from services.ledger.replays import ReplayProgress
from services.ledger.watermark import Watermarks
from services.postgres.pool import Pool
from services.replay.display import Display
from services.replay.gaps import Gaps
from services.replay.refill import Refill, Source, Stream, Target
from services.replay.replayed_stores import open_store
from services.replay.settings import ReplaySettings
from services.stores import postgres
from services.streams import dead_letters, kafka, topics
from services.streams.dead_letters import DeadLetterSender


class Replays:
    """A context; what it opened is closed at its end, and other replays may begin."""

    def __init__(self, settings: ReplaySettings, store: str) -> None:
        """Open the store. Raises Invalid for a store that cannot be replayed into."""
        self._settings = settings
        self._url = settings.postgres_url.get_secret_value()
        self._kafka_url = settings.kafka_url
        self._opened = ExitStack()
        self._reader = self._opened.enter_context(closing(stores.open_reader(store)))
        self._source = self._opened.enter_context(closing(stores.open_reader(postgres.STORE.name)))
        self._ledger = self._opened.enter_context(closing(Pool(self._url)))
        self._store = open_store(self._reader, self._ledger, self._kafka_url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def begin(self, dataset: Dataset, first: int | None, display: Display) -> Refill:
        """Begin a replay, and record it in the ledger. `first`: start over, at this batch.

        Raises Conflict when another replay or the store's stream is in the way, Invalid when `first` is too high.
        """
        store = self._reader.name
        progress = self._opened.enter_context(closing(ReplayProgress(self._url, store, dataset)))
        if first is not None:
            check_first(self._ledger, self._reader, dataset, first)
        with closing(kafka.KafkaPartitionReader(self._kafka_url, dataset.topic)) as topic:
            topic_id = topic.topic_id()
            begun = self._store.begin(dataset, progress, topic, topic_id, first)
        # Read before the dead letters: rows that the sink dead-letters meanwhile are at or above these offsets.
        stream = Stream(self._store.sink_name, self._numbers(dataset, topic_id), begun.offsets(), begun.offsets)
        with self._ledger.connection() as connection:
            display.total(reading.count(connection, dataset.name, begun.replay.next - 1, begun.replay.last).rows)
        source = Source(self._ledger, self._source)
        target = Target(
            self._reader,
            self._store.writer,
            self._opened.enter_context(closing(DeadLetterSender(self._open_producer, store, dataset))),
            self._dead_lettered_rows(dataset),
            begun.watermark,
            self._store.block_rows,
        )
        return Refill(RowCodec(dataset), source, target, stream, progress, begun.replay, display)

    def _numbers(self, dataset: Dataset, topic_id: str) -> TopicNumbers:
        """Return the numbers of the dataset's topics.

        The present topic gets one now if no ingest API has opened it yet: otherwise batches that are published to it
        while the replay runs would seem to be of another topic.
        """
        with self._ledger.connection() as connection:
            numbers = reading.topic_numbers(connection, dataset.topic, topic_id)
            if numbers.current <= 0:
                ledger_topics.number(connection, dataset.topic, topic_id)
                numbers = reading.topic_numbers(connection, dataset.topic, topic_id)
            return numbers

    def _dead_lettered_rows(self, dataset: Dataset) -> Gaps:
        topics.ensure(self._settings, [dead_letters.TOPIC])
        found: defaultdict[int, set[int]] = defaultdict(set)
        with self._ledger.connection() as connection:
            dead_letter_index.update(connection, kafka.KafkaPartitionReader(self._kafka_url, dead_letters.TOPIC))
            for row in dead_letter_index.dead_lettered(connection, self._reader.name, dataset.name):
                if row.row_id is not None:
                    found[row.batch_id].add(row.row_id)
        if isinstance(self._reader, RejectsReader):
            for batch_id, row_id, _ in self._reader.rejected(dataset, 0, MAX_BATCH):
                if row_id is not None:
                    found[batch_id].add(row_id)
        return found

    def _open_producer(self) -> TransactionalProducer:
        return kafka.KafkaProducer(self._kafka_url, f"logpipe-{dead_letters.TOPIC}-{uuid.uuid4()}")


def check_first(ledger: Pool, reader: StoreReader, dataset: Dataset, first: int) -> None:
    """Raise Invalid if the store would lack batches that were accepted before batch `first`."""
    with ledger.connection() as connection:
        last = reading.last_batch(connection)
    if first > last:
        raise Invalid(f"there is no batch {first}: the last is {last}")
    loaded = Watermarks(ledger).of(reader, dataset)
    if first > loaded + 1:
        raise Invalid(
            f"{reader.name} has loaded {dataset.name} up to batch {loaded}, and what lies between that and {first}"
            f" would be left out: leave --from-batch out, or give {loaded + 1} or less"
        )
