"""How far each store's sink has come, by compare-and-set: whoever lost a partition learns it here, before he writes."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from services.core.errors import Fenced, NeedsOperator, StoreDown
from services.core.ledger import Range, SinkPosition
from services.ledger import schema

_SELECT = (
    "SELECT partition, next_offset, intent_first, intent_last FROM sink_progress WHERE store = %s AND dataset = %s"
)


class SinkProgress:
    """One sink's rows of table sink_progress. Not thread-safe; connects when needed. All methods raise StoreDown."""

    def __init__(self, postgres_url: str, store: str, dataset: str, topic_id: str) -> None:
        self._url = postgres_url
        self._key = (store, dataset)
        self._topic_id = topic_id
        self._connection: psycopg.Connection[Any] | None = None

    def load(self, partitions: Iterable[int]) -> dict[int, SinkPosition]:
        """Where to go on; a partition never seen before starts at 0. Raises NeedsOperator if the topic was replaced."""
        wanted = list(partitions)
        store, dataset = self._key
        with self._connected() as connection:
            schema.prepare(connection)
            refuse_another_topic(connection, store, dataset, self._topic_id)
            connection.execute(
                "INSERT INTO sink_progress (store, dataset, topic_id, partition, next_offset)"
                " SELECT %s, %s, %s, unnest(%s::int[]), 0 ON CONFLICT DO NOTHING",
                (store, dataset, self._topic_id, wanted),
            )
            found = _positions(connection.execute(_SELECT, self._key))
            return {partition: found[partition] for partition in wanted}

    def begin(self, partition: int, expected_next: int, intent: Range) -> None:
        """Write down what is about to be written; again for the same range is fine. Raises Fenced: load again."""
        with self._connected() as connection:
            done = connection.execute(
                "UPDATE sink_progress SET intent_first = %(first)s, intent_last = %(last)s, updated_at = now()"
                " WHERE store = %(store)s AND dataset = %(dataset)s AND topic_id = %(topic_id)s"
                " AND partition = %(partition)s AND next_offset = %(next)s AND (intent_first IS NULL"
                " OR (intent_first = %(first)s AND intent_last = %(last)s))",
                {**self._place(partition, intent), "next": expected_next},
            )
            if done.rowcount == 0:
                raise Fenced(f"partition {partition} of {'/'.join(self._key)} is no longer at {expected_next}")

    def finish(self, partition: int, intent: Range) -> None:
        """What `begin` announced is stored. Again is fine. Raises Fenced: load again."""
        with self._connected() as connection:
            done = connection.execute(
                "UPDATE sink_progress SET next_offset = %(last)s + 1, intent_first = NULL, intent_last = NULL,"
                " updated_at = now() WHERE store = %(store)s AND dataset = %(dataset)s AND topic_id = %(topic_id)s"
                " AND partition = %(partition)s AND ((intent_first = %(first)s AND intent_last = %(last)s)"
                " OR (intent_first IS NULL AND next_offset = %(last)s + 1))",
                self._place(partition, intent),
            )
            if done.rowcount == 0:
                raise Fenced(f"partition {partition} of {'/'.join(self._key)} was finished by somebody else")

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def _place(self, partition: int, intent: Range) -> dict[str, Any]:
        store, dataset = self._key
        return {
            "store": store,
            "dataset": dataset,
            "topic_id": self._topic_id,
            "partition": partition,
            "first": intent.first,
            "last": intent.last,
        }

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        if self._connection is None:
            self._connection = schema.connect(self._url)
        try:
            with schema.translated():
                yield self._connection
        except StoreDown:
            self.close()
            raise


def refuse_another_topic(connection: psycopg.Connection[Any], store: str, dataset: str, topic_id: str) -> None:
    """Raises NeedsOperator when the positions are those of a topic that is no more."""
    other = connection.execute(
        "SELECT topic_id FROM sink_progress WHERE store = %s AND dataset = %s AND topic_id <> %s LIMIT 1",
        (store, dataset, topic_id),
    ).fetchone()
    if other:
        raise NeedsOperator(
            f"the topic of {dataset} was deleted and made again (id {other[0]}, now {topic_id}): what it held"
            f" and {store} had not loaded is lost to it. Settle that with `logpipe verify`, then delete the rows of"
            f" {store}/{dataset} from table sink_progress to start with the new topic"
        )


def skip(
    connection: psycopg.Connection[Any], store: str, dataset: str, topic_id: str, bounds: Mapping[int, tuple[int, int]]
) -> None:
    """Give up what the topic no longer has, for a replay to bring. `bounds`: partition -> first offset kept, end.

    A partition that has no position begins at its end; one whose next messages were deleted goes on at the first kept.
    Call it within the transaction that notes the replay, and only while nobody loads the topic into the store.
    """
    refuse_another_topic(connection, store, dataset, topic_id)
    firsts, ends = zip(*bounds.values(), strict=True)
    connection.execute(
        "INSERT INTO sink_progress (store, dataset, topic_id, partition, next_offset)"
        " SELECT %s, %s, %s, * FROM unnest(%s::int[], %s::bigint[]) ON CONFLICT DO NOTHING",
        (store, dataset, topic_id, list(bounds), list(ends)),
    )
    connection.execute(
        "UPDATE sink_progress SET next_offset = first, intent_first = NULL, intent_last = NULL, updated_at = now()"
        " FROM unnest(%s::int[], %s::bigint[]) AS kept(partition, first)"
        " WHERE store = %s AND dataset = %s AND sink_progress.partition = kept.partition AND next_offset < first",
        (list(bounds), list(firsts), store, dataset),
    )


def positions(postgres_url: str, store: str, dataset: str) -> dict[int, SinkPosition]:
    """Every partition's position, for readers. Raises StoreDown."""
    with schema.connect(postgres_url) as connection, schema.translated():
        return _positions(connection.execute(_SELECT, (store, dataset)))


def _positions(rows: Iterable[tuple[int, int, int | None, int | None]]) -> dict[int, SinkPosition]:
    return {
        partition: SinkPosition(partition, next_offset, None if first is None or last is None else Range(first, last))
        for partition, next_offset, first, last in rows
    }
