"""How far each store's sink has come, by compare-and-set: whoever lost a partition learns it here, before he writes."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import psycopg

from services.core.errors import Fenced, NeedsOperator, StoreDown
from services.core.ledger import Range, SinkPosition
from services.ledger import schema
from services.postgres.connection import connect, translated

_SELECT = (
    "SELECT partition, next_offset, intent_first, intent_last, intent_together FROM sink_progress"
    " WHERE store = %s AND dataset = %s"
)

_BEGIN = """
    UPDATE sink_progress
    SET intent_first = first, intent_last = last, intent_together = %(partitions)s::int[], updated_at = now()
    FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(lasts)s::bigint[]) AS intended(of, first, last)
    WHERE store = %(store)s AND dataset = %(dataset)s AND topic_id = %(topic_id)s AND partition = of
      AND next_offset = first AND (intent_first IS NULL
        OR (intent_first = first AND intent_last = last AND intent_together = %(partitions)s::int[]))"""
_FINISH = """
    UPDATE sink_progress
    SET next_offset = last + 1, intent_first = NULL, intent_last = NULL, intent_together = NULL, updated_at = now()
    FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[], %(lasts)s::bigint[]) AS intended(of, first, last)
    WHERE store = %(store)s AND dataset = %(dataset)s AND topic_id = %(topic_id)s AND partition = of
      AND intent_first = first AND intent_last = last"""
_SKIP = """
    WITH kept AS (SELECT * FROM unnest(%(partitions)s::int[], %(firsts)s::bigint[]) AS kept(of, first)),
    broken AS (
        SELECT unnest(coalesce(intent_together, ARRAY[partition])) AS of FROM sink_progress JOIN kept ON of = partition
        WHERE store = %(store)s AND dataset = %(dataset)s AND next_offset < first)
    UPDATE sink_progress
    SET next_offset = greatest(first, next_offset, intent_last + 1), updated_at = now(),
        intent_first = NULL, intent_last = NULL, intent_together = NULL
    FROM kept
    WHERE store = %(store)s AND dataset = %(dataset)s AND partition = of AND of IN (SELECT of FROM broken)"""


class SinkProgress:
    """One sink's rows of table sink_progress. Not thread-safe; connects when needed. All methods raise StoreDown."""

    def __init__(self, postgres_url: str, store: str, dataset: str, topic_id: str) -> None:
        self._url = postgres_url
        self._key = (store, dataset)
        self._topic_id = topic_id
        self._connection: psycopg.Connection[Any] | None = None

    def load(self, partitions: Iterable[int]) -> list[SinkPosition]:
        """Where to go on, and where the partitions stand that were begun together with these.

        A partition never seen before starts at 0. Raises NeedsOperator if the topic was replaced.
        """
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
        needed = {*wanted, *chain.from_iterable(found[partition].together for partition in wanted)}
        return [found[partition] for partition in sorted(needed)]

    def begin(self, intents: Mapping[int, Range]) -> None:
        """Write down what is about to be written together, by partition; again for the same is fine.

        Raises Fenced unless each range begins where its partition stands: load again.
        """
        self._put(_BEGIN, intents)

    def finish(self, intents: Mapping[int, Range]) -> None:
        """What `begin` announced is stored. Raises Fenced when that is finished, or not announced: load again."""
        self._put(_FINISH, intents)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None

    def _put(self, change: str, intents: Mapping[int, Range]) -> None:
        """In all partitions of `intents`, or in none: Fenced."""
        store, dataset = self._key
        values = {
            "store": store,
            "dataset": dataset,
            "topic_id": self._topic_id,
            "partitions": list(intents),
            "firsts": [intent.first for intent in intents.values()],
            "lasts": [intent.last for intent in intents.values()],
        }
        with self._connected() as connection, connection.transaction():
            if connection.execute(change, values).rowcount != len(intents):
                raise Fenced(f"partitions {list(intents)} of {store}/{dataset} no longer stand where they stood")

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection[Any]]:
        if self._connection is None:
            self._connection = connect(self._url)
        try:
            with translated():
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

    A partition that has no position begins at its end; one whose next messages were deleted goes on at the first kept,
    and after what was begun: that cannot be written again as it was, nor can what was begun together with it.
    Call it within the transaction that notes the replay, and only while nobody loads the topic into the store.
    """
    refuse_another_topic(connection, store, dataset, topic_id)
    firsts, ends = zip(*bounds.values(), strict=True)
    connection.execute(
        "INSERT INTO sink_progress (store, dataset, topic_id, partition, next_offset)"
        " SELECT %s, %s, %s, * FROM unnest(%s::int[], %s::bigint[]) ON CONFLICT DO NOTHING",
        (store, dataset, topic_id, list(bounds), list(ends)),
    )
    places = {"store": store, "dataset": dataset, "partitions": list(bounds), "firsts": list(firsts)}
    connection.execute(_SKIP, places)


def positions(postgres_url: str, store: str, dataset: str) -> dict[int, SinkPosition]:
    """Every partition's position, for readers. Raises StoreDown."""
    with connect(postgres_url) as connection, translated():
        return _positions(connection.execute(_SELECT, (store, dataset)))


def _positions(rows: Iterable[tuple[int, int, int | None, int | None, list[int] | None]]) -> dict[int, SinkPosition]:
    found = {}
    for partition, next_offset, first, last, together in rows:
        if first is None or last is None:
            found[partition] = SinkPosition(partition, next_offset)
        else:
            found[partition] = SinkPosition(partition, next_offset, Range(first, last), tuple(together or ()))
    return found
