"""Replays into one store: whether they may begin, from which batch, and where the store's stream goes on meanwhile."""

import uuid
from collections import defaultdict
from contextlib import ExitStack, closing
from typing import Self

from services import stores
from services.core.dataset import Dataset
from services.core.errors import Conflict, Invalid, StoreDown
from services.core.ports import PartitionReader, SinkReader, StoreReader, TransactionalProducer
from services.core.rows import RowCodec
from services.ledger import dead_letter_index, reading
from services.ledger.replays import Replay, ReplayProgress
from services.ledger.watermark import Watermarks
from services.postgres.pool import Pool
from services.replay.display import Display
from services.replay.gaps import Gaps
from services.replay.refill import Refill, Source, Stream, Target
from services.replay.settings import ReplaySettings
from services.stores import postgres
from services.streams import dead_letters, kafka, kafka_client, topics
from services.streams.dead_letters import DeadLetters


class Replays:
    """A context; what it opened is closed at its end, and other replays may begin."""

    def __init__(self, settings: ReplaySettings, store: str) -> None:
        """Open the store. Raises Invalid for a store that cannot be replayed into."""
        self._settings = settings
        self._url = settings.postgres_url.get_secret_value()
        self._kafka_url = settings.kafka_url
        self._opened = ExitStack()
        self._reader = _refillable(self._opened.enter_context(closing(stores.open_reader(store))))
        self._writer = stores.open_writer(store)
        self._source = self._opened.enter_context(closing(stores.open_reader(postgres.STORE.name)))
        self._ledger = self._opened.enter_context(closing(Pool(self._url)))

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
        self._writer.prepare(dataset)
        with closing(kafka.KafkaPartitionReader(self._kafka_url, dataset.topic)) as topic:
            topic_id = topic.topic_id()
            replay = self._note(progress, topic, topic_id, dataset, first)
        # The stream's pending ranges that were given up, and a write of a former replay, must not land after a look.
        self._writer.end_writes(dataset)
        with self._ledger.connection() as connection:
            numbers = reading.topic_numbers(connection, dataset.topic, topic_id)
            starts = reading.sink_offsets(connection, store, dataset.name)
            display.total(reading.count(connection, dataset.name, replay.next - 1, replay.last).rows)
        target = Target(
            self._reader,
            self._writer,
            self._opened.enter_context(closing(DeadLetters(self._open_producer, store, dataset))),
            self._dead_lettered_rows(dataset),
            lambda: Watermarks(self._ledger).of(self._reader, dataset),
        )
        source = Source(self._ledger, self._source)
        return Refill(RowCodec(dataset), source, target, Stream(numbers, starts), progress, replay, display)

    def _note(
        self, progress: ReplayProgress, topic: PartitionReader, topic_id: str, dataset: Dataset, first: int | None
    ) -> Replay:
        """Record the replay in the ledger. Raises StoreDown if the topic is being created again at this moment."""
        store = self._reader.name
        with self._ledger.connection() as connection:
            position = reading.sink_position(connection, store, dataset.name)
        bounds = topic.bounds()  # after the position, which a sink that runs moves on
        if topic.topic_id() != topic_id:
            raise StoreDown("kafka", f"{dataset.topic} is being created again: run the same command again")
        moves = position.topic_id != topic_id or any(
            not low <= position.offsets.get(partition, -1) <= end for partition, (low, end) in bounds.items()
        )
        if moves and kafka_client.members(self._kafka_url, kafka_client.sink_group(store, dataset.name)):
            raise Conflict(
                f"the replay has to set where {store} goes on in {dataset.topic}: stop stream-to-store --store {store}"
                " (a killed one leaves its group after some seconds), and start it again once the replay has begun"
            )
        return progress.begin(topic_id, self._reader.table_id(dataset), bounds if moves else {}, first)

    def _dead_lettered_rows(self, dataset: Dataset) -> Gaps:
        topics.ensure(self._settings, [dead_letters.TOPIC])
        found: defaultdict[int, set[int]] = defaultdict(set)
        with self._ledger.connection() as connection:
            dead_letter_index.update(connection, kafka.KafkaPartitionReader(self._kafka_url, dead_letters.TOPIC))
            for row in dead_letter_index.dead_lettered(connection, self._reader.name, dataset.name):
                if row.row_id is not None:
                    found[row.batch_id].add(row.row_id)
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


def _refillable(reader: StoreReader) -> SinkReader:
    """Return `reader`. Raises Invalid for a store that cannot be replayed into."""
    if reader.progress == "ledger":
        raise Invalid(f"{reader.name} is what stores are replayed from: restore it from a backup of its own")
    if reader.progress == "own":
        raise Invalid(
            f"{reader.name} is not replayed into: its tables themselves say how far in the topic they are, and take"
            " rows from there only. `logpipe stream-to-lake --resume DATASET` goes on with what the topic still has;"
            " `--rebuild DATASET --yes` deletes the rows and reads again all that the topic still has"
        )
    return reader
