"""The offsets up to which each store has committed. All changes are compare-and-set: a consumer that lost its partition
is fenced before it writes.

A position counts offsets of one topic, and says which rows one table has. Both identities are stored with the position
and compared before the position is used.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import LiteralString

from services.core.dataset import Dataset
from services.core.errors import Fenced, NeedsOperator, StoreDown
from services.core.ids import MAX_BATCH
from services.core.ledger import OffsetRange, SinkPosition
from services.core.ports import SinkReader, StoreReader
from services.core.queries import StatsQuery
from services.ledger import schema
from services.postgres.connection import Connection, connect, translated

# intent_first, intent_last and intent_together are the pending range and the partitions that share its insert.
_SELECT = (
    "SELECT partition, next_offset, intent_first, intent_last, intent_together FROM sink_progress"
    " WHERE store = %s AND dataset = %s"
)

_MARK_PENDING = """
    UPDATE sink_progress
    SET intent_first = first, intent_last = last, intent_together = %(partitions)s::int[], updated_at = now()
    FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(lasts)s::bigint[])
        AS wanted(wanted_partition, first, last),
         (SELECT partition AS locked_partition, intent_first IS NOT NULL AS was_pending FROM sink_progress
          WHERE store = %(store)s AND dataset = %(dataset)s AND partition = ANY(%(partitions)s)
          ORDER BY partition FOR UPDATE) AS found
    WHERE store = %(store)s AND dataset = %(dataset)s AND topic_id = %(topic_id)s AND partition = wanted_partition
      AND locked_partition = wanted_partition
      AND table_id = %(table_id)s AND next_offset = first AND (intent_first IS NULL
        OR (intent_first = first AND intent_last = last AND intent_together = %(partitions)s::int[]))
    RETURNING was_pending"""
_MARK_LOADED = """
    UPDATE sink_progress
    SET next_offset = last + 1, intent_first = NULL, intent_last = NULL, intent_together = NULL, updated_at = now()
    FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(lasts)s::bigint[])
        AS wanted(wanted_partition, first, last)
    WHERE store = %(store)s AND dataset = %(dataset)s AND topic_id = %(topic_id)s AND partition = wanted_partition
      AND table_id = %(table_id)s AND intent_first = first AND intent_last = last
    RETURNING true"""


class SinkProgress:
    """The rows of one sink in table sink_progress. Not thread-safe. Connects when needed. Methods raise StoreDown."""

    def __init__(self, postgres_url: str, reader: SinkReader, dataset: Dataset, topic_id: str) -> None:
        """`reader` reads the sink's store."""
        self._url = postgres_url
        self._reader = reader
        self._dataset = dataset
        self._key = (reader.name, dataset.name)
        self._topic_id = topic_id
        self._table_id = ""
        self._connection: Connection | None = None

    def load(self, partitions: Iterable[int]) -> list[SinkPosition]:
        """Return the positions of `partitions`, and of the partitions that share a pending insert with them.

        A partition without a position starts at 0. Raises NeedsOperator if the topic or the table was created again.
        """
        wanted = list(partitions)
        store, dataset = self._key
        table_id = self._reader.table_id(self._dataset)
        with self._connected() as connection:
            schema.require(connection)
            with connection.transaction():
                self._bind_identities(connection, table_id)
                connection.execute(
                    "INSERT INTO sink_progress (store, dataset, topic_id, table_id, partition, next_offset)"
                    " SELECT %s, %s, %s, %s, unnest(%s::int[]), 0 ON CONFLICT DO NOTHING",
                    (store, dataset, self._topic_id, table_id, wanted),
                )
                found = _positions(connection.execute(_SELECT, self._key))
        self._table_id = table_id
        needed = {*wanted, *chain.from_iterable(found[partition].group_partitions for partition in wanted)}
        return [found[partition] for partition in sorted(needed)]

    def check_topic(self, topic_id: str) -> None:
        """Raise NeedsOperator if `topic_id` is not the topic that the positions count in."""
        if topic_id != self._topic_id:
            raise created_again("topic", *self._key)

    def check_table(self) -> None:
        """Raise NeedsOperator if the store's table is not the table that the positions belong to."""
        if self._reader.table_id(self._dataset) != self._table_id:
            raise created_again("table", *self._key)

    def mark_pending(self, pending: Mapping[int, OffsetRange]) -> bool:
        """Mark the ranges that one insert is about to write as pending, by partition. Repeating the call is harmless.

        Returns whether they were pending before: then another process may have tried to write them. Raises Fenced
        unless each range begins at its partition's position; the caller then loads the positions again.
        """
        return any(self._put(_MARK_PENDING, pending))

    def mark_loaded(self, pending: Mapping[int, OffsetRange]) -> None:
        """Mark the pending ranges as loaded. Raises Fenced if they are not pending."""
        self._put(_MARK_LOADED, pending)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def _put(self, change: LiteralString, pending: Mapping[int, OffsetRange]) -> list[bool]:
        """Make the change in all partitions of `pending` or in none, and return one value for each. Raises Fenced."""
        store, dataset = self._key
        values = {
            "store": store,
            "dataset": dataset,
            "topic_id": self._topic_id,
            "table_id": self._table_id,
            "partitions": list(pending),
            "firsts": [offsets.first for offsets in pending.values()],
            "lasts": [offsets.last for offsets in pending.values()],
        }
        with self._connected() as connection, connection.transaction():
            changed = connection.execute(change, values).fetchall()
            if len(changed) != len(pending):
                raise Fenced(
                    f"partitions {list(pending)} of {store}/{dataset} are no longer at the positions that were loaded"
                )
        return [value for (value,) in changed]

    def _bind_identities(self, connection: Connection, table_id: str) -> None:
        """Raise NeedsOperator if the positions are those of another topic or table, or are missing beside rows.

        Positions that have no table id, because an earlier release stored them, get the id of the present table.
        """
        store, dataset = self._key
        query = "SELECT topic_id, table_id, next_offset FROM sink_progress WHERE store = %s AND dataset = %s"
        rows = connection.execute(query, self._key).fetchall()
        if not rows and not is_empty(self._reader, self._dataset):
            raise NeedsOperator(
                f"the table of {dataset} in {store} has rows, and the ledger does not say up to where of the topic:"
                f" run `logpipe replay --store {store} --dataset {dataset}`, and start stream-to-store again once the"
                " replay has begun"
            )
        if any(topic_id != self._topic_id for topic_id, _, _ in rows):
            raise created_again("topic", store, dataset)
        if any(bound not in ("", table_id) for _, bound, _ in rows):
            raise created_again("table", store, dataset)
        if any(bound == "" for _, bound, _ in rows):  # positions of a release that stored no table id
            if any(next_offset for _, _, next_offset in rows) and is_empty(self._reader, self._dataset):
                raise created_again("table", store, dataset)
            connection.execute(
                "UPDATE sink_progress SET table_id = %s WHERE store = %s AND dataset = %s AND table_id = ''",
                (table_id, store, dataset),
            )

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        if self._connection is None:
            self._connection = connect(self._url)
        try:
            with translated():
                yield self._connection
        except StoreDown:
            self.close()
            raise


def is_empty(reader: StoreReader, dataset: Dataset) -> bool:
    """Return whether the dataset's table, which must exist, has no rows. Called rarely: it may count all rows."""
    [[rows]] = reader.execute(StatsQuery(dataset), as_of=MAX_BATCH).rows
    return int(rows) == 0


def created_again(what: str, store: str, dataset: str) -> NeedsOperator:
    return NeedsOperator(
        f"the {what} of {dataset} was created again since {store} was filled: stop stream-to-store --store {store}, run"
        f" `logpipe replay --store {store} --dataset {dataset}`, and start it again once the replay has begun"
    )


def positions(postgres_url: str, store: str, dataset: str) -> dict[int, SinkPosition]:
    """Return the position of every partition, for readers. Raises StoreDown."""
    with connect(postgres_url) as connection, translated():
        return _positions(connection.execute(_SELECT, (store, dataset)))


def _positions(rows: Iterable[tuple[int, int, int | None, int | None, list[int] | None]]) -> dict[int, SinkPosition]:
    found = {}
    for partition, next_offset, first, last, group in rows:
        if first is None or last is None:
            found[partition] = SinkPosition(partition, next_offset)
        else:
            found[partition] = SinkPosition(partition, next_offset, OffsetRange(first, last), tuple(group or ()))
    return found
