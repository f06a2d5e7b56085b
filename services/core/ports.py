"""The ports between the pipeline and its stores and streams. Adapters live in `stores/`, `lake/` and `streams/`.

All methods block; async callers run them in a thread. An adapter translates its driver's errors (see `errors`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

from services.core.dataset import Dataset
from services.core.dead_letter import DeadLettered
from services.core.errors import RowRejected
from services.core.ledger import Batch, Part, StorePosition
from services.core.queries import Query, QueryResult
from services.core.rows import Row
from services.core.stopping import Stop

DEFAULT_QUERY_SECONDS = 30.0
"""The time limit of a query whose caller sets none."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive messages of one partition.

    `first` and `last` are offsets. `lines`: one row in each line, and a newline after each line. All rows were accepted
    on the same `day` (days since 1970-01-01 UTC). `attempt` is '' until the outcome of a write was unknown. From then
    on, `completion` gives each write another token.
    """

    dataset: Dataset
    topic_id: str
    partition: int
    first: int
    last: int
    day: int
    rows: int
    lines: bytes
    attempt: str = ""

    @property
    def range_token(self) -> str:
        """The identity of the messages, which is the same in every attempt."""
        return f"{self.topic_id}:{self.partition}:{self.first}:{self.last}"


def group_range(blocks: Iterable[Block]) -> str:
    """Return the identity of the messages of a block group, which is the same in every attempt."""
    return "+".join(block.range_token for block in blocks)


def group_token(blocks: Sequence[Block]) -> str:
    """Return the token of one attempt. A store that remembers tokens drops a second block group with this token."""
    attempt = blocks[0].attempt
    return f"{group_range(blocks)}#{attempt}" if attempt else group_range(blocks)


class BaseWriter(Protocol):
    """What every writer of a store offers. Called by stream_to_store and replay, by one thread a writer.

    The blocks of a group are of one dataset and day, at most one for each partition, in the order of partitions.
    """

    def prepare(self, dataset: Dataset) -> None:
        """Create the dataset's table, or check it and add the columns that it lacks; idempotent. Raises StoreDown."""

    def write(self, blocks: Sequence[Block]) -> None:
        """Store the rows of all blocks, or none.

        Called for a first attempt, and by `completion` for each later one. Raises RowRejected if the store rejects a
        row: then no row of the blocks is stored, and the next call may have fewer lines and the same `Block.attempt`.
        Raises Backpressure or StoreDown if the outcome is unknown: call `complete` next, or `rejections` of an
        OwnProgressWriter.
        """

    def complete(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        """Store the rows of a former attempt whose outcome is unknown, and return the rows that the store rejects.

        Every former attempt at the same messages ends first; then the store is searched for the rows, and the missing
        rows are written. Raises Backpressure or StoreDown: the outcome is unknown, call `complete` again.
        """

    def end_writes(self, dataset: Dataset) -> None:
        """End every write of the dataset's rows that runs in the store, also of other processes. Raises StoreDown.

        Called by a replay, which drops the pending ranges of others, and by `logpipe slots resolve`. A living writer
        completes its writes afterwards.
        """


class SinkWriter(BaseWriter, Protocol):
    """The writer of a store whose position the ledger keeps. The store's reader is a SinkReader."""

    def stored_ids(self, dataset: Dataset, ids: Set[int]) -> Set[int]:
        """Return which of these ids the store holds, whatever their day. Raises StoreDown.

        Called after `complete`, so every former attempt has ended.
        """


@runtime_checkable
class OwnProgressWriter(BaseWriter, Protocol):
    """The writer of a store whose own transactions keep the position. The store's reader is an OwnProgressReader.

    After a first write that failed, stream_to_store calls `rejections`, sends the dead letters of these rows, and calls
    `write` with the other rows. It never calls `complete`; a replay does.

    `wait_seconds`: how long stream_to_store collects rows for one write, because each transaction takes long. `write`
    and `complete` raise NeedsOperator, too, and Fenced when a block does not follow what is stored: load the positions
    again.
    """

    wait_seconds: ClassVar[float]

    def positions(self, dataset: Dataset, topic_id: str) -> Mapping[int, int]:
        """Return partition -> first offset not yet stored. After `prepare`. Raises StoreDown, NeedsOperator."""

    def rejections(self, blocks: Sequence[Block]) -> Sequence[RowRejected]:
        """Return the rows that the store rejects. The transaction of the next `write` counts these rows as loaded."""

    def is_loaded(self, block: Block) -> bool:
        """Return whether a former attempt at the block was stored. Raises StoreDown, NeedsOperator, Fenced."""


StoreWriter = SinkWriter | OwnProgressWriter
"""The two kinds, by who keeps the store's position."""


class Refiller(BaseWriter, Protocol):
    """The writer by which a replay fills a store whose own transactions keep its position.

    Another process loads the topic meanwhile, from that position on. Called by one thread. Blocks stand for ranges of
    batches, not for messages, and come one at a time.
    """

    def begin(self, dataset: Dataset, topic_id: str, bounds: Mapping[int, tuple[int, int]]) -> StorePosition:
        """Return the position from which on the sink loads the topic. `bounds`: partition -> (first offset kept, end).

        After `prepare`. A later write is refused if the position is of another table or topic by then.

        Raises StoreDown, and NeedsOperator if the position is of another topic or not within it.
        """


@runtime_checkable
class RejectsReader(Protocol):
    """The reader of a store that keeps its rejected rows in tables of its own."""

    def rejected(self, dataset: Dataset, first: int, last: int) -> Iterator[DeadLettered]:
        """Yield each rejected row of the batches first..last once. Blocks. Raises StoreDown."""


class BaseReader(Protocol):
    """What every reader of a store offers. `name` is the store's name (see `stores.Store`).

    Called by the query API, `verify`, `replay`, `slots resolve`, the publisher (`rows_of`) and stream-to-store
    (`table_id`, `execute`), by several threads at once.
    """

    name: ClassVar[str]

    def execute(
        self, query: Query, as_of: int, seconds: float = DEFAULT_QUERY_SECONDS, stop: Stop | None = None
    ) -> QueryResult:
        """Return the query's result from the batches up to `as_of` only. Thread-safe.

        Raises StoreDown, Backpressure, or QueryTimeout after `seconds`: the store no longer works on the query then.
        Raises ResultTooLarge (see `result_size`) before the result is in memory. `stop` ends the query from another
        thread; the error that is raised then does not matter.
        """

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Yield (batch, rows, distinct ids) of each batch found in first..last, by really reading the ids, in order.

        Finds the rows of every batch in the range, whatever their day of acceptance, and whether or not the ledger has
        the batch. For `verify`, which searches for rows that were never accepted. Raises StoreDown.
        """

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        """Yield all rows of the batches first..last in canonical form, in any order; like `counts`, of every day."""

    def counts_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[tuple[int, int, int]]:
        """Yield (batch, rows, distinct ids) of each of these batches that is found, in any order.

        The rows are searched for on the batches' days of acceptance only, so the cost depends on these batches and not
        on the number of days that the store holds. Raises StoreDown.
        """

    def rows_of(self, dataset: Dataset, batches: Sequence[Batch]) -> Iterator[Row]:
        """Yield all rows of these batches in canonical form, in any order, found by ids and days of acceptance.

        The cost depends on these batches alone, however many others and however many days the store holds. Raises
        StoreDown.
        """

    def close(self) -> None: ...


class LedgerReader(BaseReader, Protocol):
    """The reader of the store whose rows are written in the ledger's own transaction."""

    progress: ClassVar[Literal["ledger"]]


class SinkReader(BaseReader, Protocol):
    """The reader of a store that stream_to_store fills, and whose position the ledger keeps (table sink_progress)."""

    progress: ClassVar[Literal["sink"]]

    def table_id(self, dataset: Dataset) -> str:
        """Return the identity of the dataset's table, '' where there is none. Raises StoreDown.

        A new table has another identity, so the position that was kept for the former table no longer counts.
        """


class OwnProgressReader(BaseReader, Protocol):
    """The reader of a store whose own transactions keep its position. Its writer is an OwnProgressWriter."""

    progress: ClassVar[Literal["own"]]

    def position(self, dataset: Dataset) -> StorePosition:
        """Return the position up to which the store has committed the topic. Raises StoreDown."""


StoreReader = LedgerReader | SinkReader | OwnProgressReader
"""`progress` tells the three kinds apart, by who keeps the store's position. mypy narrows the type by it."""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to send, made by `kafka_value.encode` or `dead_letter.encode`."""

    topic: str
    partition: int
    key: bytes
    value: bytes
    headers: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was read, of a committed transaction.

    `problem` says why the message could not be read; it is '' for a message that was read. A message that could not be
    read has no key, no value and no headers.
    """

    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: Mapping[str, bytes] = field(default_factory=dict)
    problem: str = ""

    @property
    def bytes(self) -> int:
        """The memory that the message takes: a foreign message may have a large key or large headers."""
        headers = sum(len(name) + len(value) for name, value in self.headers.items())
        return len(self.value) + len(self.key) + headers


class TransactionalProducer(Protocol):
    """The only producer with its transactional id: opening another one fences it."""

    def publish(self, messages: Sequence[OutgoingMessage]) -> list[Part]:
        """Send all in one transaction, wait for its commit, and return the partition and offset of each, in order.

        Raises Fenced. Raises StoreDown if the outcome is unknown: then close this producer, open another one, and
        search the topic for the messages.
        """

    def close(self) -> None: ...


class PartitionReader(Protocol):
    """Reads chosen partitions of one topic from chosen offsets, committed messages only."""

    def topic_id(self) -> str:
        """Return the topic's id, which changes when the topic is created again. Raises StoreDown."""

    def bounds(self) -> Mapping[int, tuple[int, int]]:
        """Return partition -> (first offset still kept, end of the log). Raises StoreDown.

        The end includes transactions that are still open. `read_up_to` reaches the end once they have ended.
        """

    def assign(self, positions: Mapping[int, int]) -> None:
        """Read exactly these partitions from now on, from these offsets."""

    def poll(self, timeout: float) -> list[Message]:
        """Return the messages that have come, at most some thousand, or [] after `timeout` seconds.

        Raises StoreDown, and NeedsOperator if the topic no longer has an assigned offset.
        """

    def read_up_to(self) -> Mapping[int, int]:
        """Return partition -> the offset below which `poll` has returned every committed message."""

    def close(self) -> None: ...


class GroupReader(PartitionReader, Protocol):
    """A PartitionReader whose partitions are shared out among the members of a consumer group.

    `assign` may also name partitions of other members.
    """

    def rebalanced(self) -> Sequence[int] | None:
        """Return the partitions now assigned to this member if that changed since the last call, else None.

        Until `assign` is called for them, nothing is read.
        """
