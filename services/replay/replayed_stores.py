"""The stores that a replay fills, by who keeps the position from which on the store's stream loads its topic.

Of a store of stream-to-store, the ledger keeps the position, and the replay may move it past messages that the topic no
longer has. The lake keeps its position itself; there, `logpipe stream-to-lake --resume` moves it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from services import stores
from services.core.dataset import Dataset
from services.core.errors import Conflict, Invalid, NeedsOperator, StoreDown
from services.core.ledger import StorePosition
from services.core.ports import BaseWriter, OwnProgressReader, PartitionReader, SinkReader, StoreReader
from services.ledger import reading
from services.ledger.replays import Replay, ReplayProgress
from services.ledger.watermark import Watermarks
from services.postgres.pool import Pool
from services.streams import kafka_client


@dataclass(frozen=True, slots=True)
class Begun:
    """A replay that is recorded in the ledger. `offsets`: see `refill.Stream`; `watermark`: see `refill.Target`."""

    replay: Replay
    offsets: Callable[[], Mapping[int, int]]
    watermark: Callable[[], int]


class ReplayedStore(Protocol):
    """The store that a replay fills. `sink_name` and `block_rows`: see `refill`."""

    block_rows: ClassVar[int]

    @property
    def sink_name(self) -> str: ...

    @property
    def writer(self) -> BaseWriter: ...

    def begin(
        self, dataset: Dataset, progress: ReplayProgress, topic: PartitionReader, topic_id: str, first: int | None
    ) -> Begun:
        """Record the replay in the ledger. Afterwards no write of a former replay lands in the store any more.

        Raises StoreDown, also if the topic is being created again at this moment; Conflict, Invalid and NeedsOperator.
        """


def open_store(reader: StoreReader, ledger: Pool, kafka_url: str) -> ReplayedStore:
    """Open the store of `reader` for a replay. Raises Invalid for a store that cannot be replayed into."""
    if reader.progress == "ledger":
        raise Invalid(f"{reader.name} is what stores are replayed from: restore it from a backup of its own")
    if reader.progress == "own":
        return OwnProgressStore(reader)
    return SinkStore(reader, ledger, kafka_url)


class SinkStore:
    """A store of which the ledger keeps the position."""

    block_rows: ClassVar[int] = 50_000

    def __init__(self, reader: SinkReader, ledger: Pool, kafka_url: str) -> None:
        self.writer = stores.open_writer(reader.name)
        self.sink_name = f"stream-to-store --store {reader.name}"
        self._reader = reader
        self._ledger = ledger
        self._kafka_url = kafka_url

    def begin(
        self, dataset: Dataset, progress: ReplayProgress, topic: PartitionReader, topic_id: str, first: int | None
    ) -> Begun:
        self.writer.prepare(dataset)
        replay = self._note(dataset, progress, topic, topic_id, first)
        # Abandoned pending ranges of the sink, and a write of a former replay, must not land after a search.
        self.writer.end_writes(dataset)
        return Begun(replay, lambda: self._offsets(dataset), lambda: Watermarks(self._ledger).of(self._reader, dataset))

    def _note(
        self, dataset: Dataset, progress: ReplayProgress, topic: PartitionReader, topic_id: str, first: int | None
    ) -> Replay:
        store = self._reader.name
        with self._ledger.connection() as connection:
            position = reading.sink_position(connection, store, dataset.name)
        bounds = _bounds(topic, topic_id, dataset)  # after the position, which a sink that runs moves on
        moves = position.topic_id != topic_id or any(
            not low <= position.offsets.get(partition, -1) <= end for partition, (low, end) in bounds.items()
        )
        if moves and kafka_client.members(self._kafka_url, kafka_client.sink_group(store, dataset.name)):
            raise Conflict(
                f"the replay has to set where {store} goes on in {dataset.topic}: stop {self.sink_name}"
                " (a killed one leaves its group after some seconds), and start it again once the replay has begun"
            )
        return progress.begin(topic_id, self._reader.table_id(dataset), bounds if moves else {}, first)

    def _offsets(self, dataset: Dataset) -> Mapping[int, int]:
        with self._ledger.connection() as connection:
            return reading.sink_offsets(connection, self._reader.name, dataset.name)


class OwnProgressStore:
    """A store that keeps its position itself.

    Each replay starts over: it finds by counting which rows the table has, and the ledger does not know whether the
    position was set to another topic since an interrupted replay.
    """

    block_rows: ClassVar[int] = 200_000  # a commit takes a second, however few rows it has

    def __init__(self, reader: OwnProgressReader) -> None:
        self.writer = stores.open_refiller(reader.name)
        self.sink_name = f"stream-to-lake or stream-to-store --store {reader.name}"
        self._reader = reader

    def begin(
        self, dataset: Dataset, progress: ReplayProgress, topic: PartitionReader, topic_id: str, first: int | None
    ) -> Begun:
        self.writer.prepare(dataset)
        # A stream that runs moves its position on meanwhile, at most up to the end of the topic as it is then.
        position = self.writer.begin(dataset, topic_id, _bounds(topic, topic_id, dataset))
        replay = progress.begin(topic_id, position.table_id, {}, first or 0)
        return Begun(replay, lambda: self._offsets(dataset, position), lambda: replay.last)

    def _offsets(self, dataset: Dataset, begun: StorePosition) -> Mapping[int, int]:
        now = self._reader.position(dataset)
        if (now.table_id, now.topic_id) != (begun.table_id, begun.topic_id):
            raise NeedsOperator(
                f"{dataset.name}: its table in {self._reader.name} was emptied or bound to another topic while the"
                " replay ran: run the same command again"
            )
        return now.offsets


def _bounds(topic: PartitionReader, topic_id: str, dataset: Dataset) -> Mapping[int, tuple[int, int]]:
    bounds = topic.bounds()
    if topic.topic_id() != topic_id:
        raise StoreDown("kafka", f"{dataset.topic} is being created again: run the same command again")
    return bounds
