"""Queries of the ledger: which batches were accepted, and up to where each store has loaded them.

All functions take a connection in autocommit mode, block, and raise StoreDown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple, cast

from services.core.errors import StoreDown
from services.core.ledger import Batch, Part, StorePosition
from services.postgres.connection import Connection, translated

_MOST_COUNTED = 1_000_000  # batches: a second


def batch_ids(connection: Connection, after: int, limit: int) -> list[int]:
    """Return the first `limit` committed batch ids above `after`, of all datasets, in order."""
    query = "SELECT batch_id FROM batches WHERE batch_id > %s ORDER BY batch_id LIMIT %s"
    with translated():
        return [batch_id for (batch_id,) in connection.execute(query, (after, limit))]


def next_batch(connection: Connection, dataset: str, after: int, last: int) -> int:
    """Return the lowest committed batch id of `dataset` with `after` < id <= `last`; `last` when there is none."""
    query = "SELECT batch_id FROM batches WHERE dataset = %s AND batch_id > %s AND batch_id <= %s ORDER BY 1 LIMIT 1"
    with translated():
        row = connection.execute(query, (dataset, after, last)).fetchone()
    return int(row[0]) if row else last


class OpenTransaction(NamedTuple):
    """A transaction that has drawn batch ids and is still open. `transaction` is its name in PostgreSQL."""

    transaction: str
    pid: int
    application: str
    seconds: float

    def __str__(self) -> str:
        return f"process {self.pid} of PostgreSQL ({self.application or 'unnamed'}), open for {self.seconds:.0f} s"


def open_transactions(connection: Connection) -> list[OpenTransaction]:
    """Return the open transactions that have drawn batch ids.

    `nextval` locks the sequence until its transaction ends; the lock is released after the commit can be seen.
    """
    query = """SELECT virtualtransaction, pid, coalesce(application_name, ''),
                      coalesce(extract(epoch FROM clock_timestamp() - xact_start), 0)::float8
               FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
               WHERE locktype = 'relation' AND relation = 'batch_ids'::regclass AND mode = 'RowExclusiveLock'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
    with translated():
        return [OpenTransaction(*row) for row in connection.execute(query)]


def batches(connection: Connection, dataset: str, after: int, last: int, limit: int) -> list[Batch]:
    """Return the first `limit` committed batches of `dataset` with `after` < id <= `last`, in order."""
    query = """SELECT batch_id, slot, dataset, rows, checksum, created_at, parts FROM batches
               WHERE dataset = %s AND batch_id > %s AND batch_id <= %s ORDER BY batch_id LIMIT %s"""
    with translated():
        found = connection.execute(query, (dataset, after, last, limit)).fetchall()
    return [Batch(*(*row[:-1], _parts(row[-1]))) for row in found]


class Count(NamedTuple):
    """`rows`: in the batches, None if there are more batches than were counted."""

    batches: int
    rows: int | None


def count(connection: Connection, dataset: str, after: int, last: int) -> Count:
    """Return the committed batches of `dataset` with `after` < id <= `last`, counted up to a million."""
    query = """SELECT count(*), coalesce(sum(rows), 0)::bigint FROM (
                   SELECT rows FROM batches WHERE dataset = %s AND batch_id > %s AND batch_id <= %s LIMIT %s
               ) AS counted"""
    with translated():
        batches, rows = _one(connection, query, (dataset, after, last, _MOST_COUNTED))
    return Count(batches, rows if batches < _MOST_COUNTED else None)


class Lag(NamedTuple):
    """The batches that a store has not loaded, counted up to a bound, and the seconds since the oldest was accepted."""

    batches: int
    seconds: float


def lag(connection: Connection, dataset: str, after: int, most: int) -> Lag:
    """Return the batches of `dataset` above `after`, counted up to `most`; their age by PostgreSQL's clock."""
    query = """SELECT count(*), coalesce(extract(epoch FROM clock_timestamp()) - min(created_at) / 1e6, 0)::float8
               FROM (SELECT created_at FROM batches WHERE dataset = %s AND batch_id > %s
                     ORDER BY batch_id LIMIT %s) AS above"""
    with translated():
        return Lag(*_one(connection, query, (dataset, after, most)))


def last_batch(connection: Connection) -> int:
    """Return the highest committed batch id of any dataset, 0 when there is none."""
    with translated():
        return int(_one(connection, "SELECT coalesce(max(batch_id), 0) FROM batches")[0])


def first_since(connection: Connection, instant: int) -> int:
    """Return the lowest batch id from which on all batches were accepted at `instant` (in microseconds) or later.

    The id is found by bisection, so the result holds as long as PostgreSQL's clock was never put back.
    """
    query = "SELECT batch_id, created_at FROM batches WHERE batch_id >= %s ORDER BY batch_id LIMIT 1"
    first, end = 0, last_batch(connection) + 1
    with translated():
        while first < end:
            middle = (first + end) // 2
            batch_id, created_at = _one(connection, query, (middle,))
            if created_at < instant:
                first = batch_id + 1
            else:
                end = middle
    return first


def oldest_unpublished(connection: Connection, dataset: str) -> int | None:
    """Return the time of acceptance of the oldest batch that is not in Kafka yet, in microseconds; None when all are.

    Only the lowest batch of each slot is read. The time is too late when another batch of the slot was accepted earlier
    and got a higher id, by as much as their transactions differed in length.
    """
    query = """
        WITH RECURSIVE waiting AS (  -- the slots with unpublished batches, each found by one lookup in the index
            (SELECT slot FROM batches WHERE published_at IS NULL ORDER BY slot LIMIT 1)
            UNION ALL
            SELECT following.slot FROM waiting, LATERAL (
                SELECT slot FROM batches WHERE published_at IS NULL AND slot > waiting.slot ORDER BY slot LIMIT 1
            ) AS following)
        SELECT min(created_at) FROM waiting, LATERAL (
            SELECT created_at FROM batches
            WHERE batches.slot = waiting.slot AND dataset = %s AND published_at IS NULL
            ORDER BY batch_id LIMIT 1) AS lowest"""
    with translated():
        return cast(int | None, _one(connection, query, (dataset,))[0])


def sink_position(connection: Connection, store: str, dataset: str) -> StorePosition:
    """Return the position of the store's sink. Raises StoreDown if its partitions have different topics or tables."""
    query = "SELECT table_id, topic_id, partition, next_offset FROM sink_progress WHERE store = %s AND dataset = %s"
    with translated():
        rows = connection.execute(query, (store, dataset)).fetchall()
    tables, topics = {row[0] for row in rows} - {""}, {row[1] for row in rows}
    if len(tables) > 1 or len(topics) > 1:
        raise StoreDown(
            store,
            f"the partitions of {dataset} count in different topics or tables: stop stream-to-store, then run"
            f" `logpipe replay --store {store} --dataset {dataset}`",
        )
    offsets = {partition: next_offset for *_, partition, next_offset in rows}
    return StorePosition("".join(tables), "".join(topics), offsets)


def sink_offsets(connection: Connection, store: str, dataset: str) -> dict[int, int]:
    """Return partition -> first offset that the store's sink has not confirmed."""
    query = "SELECT partition, next_offset FROM sink_progress WHERE store = %s AND dataset = %s"
    with translated():
        return dict(connection.execute(query, (store, dataset)).fetchall())


class RunningReplay(NamedTuple):
    """The progress of a running replay: it has written all batches up to `batch_id` into the table `table_id`."""

    batch_id: int
    table_id: str


def running_replay(connection: Connection, store: str, dataset: str) -> RunningReplay | None:
    """Return the progress of the running replay; None when none runs."""
    query = "SELECT next_batch - 1, table_id FROM replays WHERE store = %s AND dataset = %s"
    with translated():
        row = connection.execute(query, (store, dataset)).fetchone()
    return RunningReplay(*row) if row else None


class TopicNumbers(NamedTuple):
    """`first`: the lowest number of a topic of that name. Batches without a number were published to that topic.

    `current`: the number of the topic that the store reads; -1 if no batch was published to that topic.

    Both are 0 where no topic of that name is known yet.
    """

    first: int
    current: int


def topic_numbers(connection: Connection, topic: str, topic_id: str) -> TopicNumbers:
    """Return the numbers of a topic; `current` is -1 for a topic to which no batch was published."""
    query = """SELECT coalesce(min(number), 0), coalesce(max(number) FILTER (WHERE topic_id = %s),
                      CASE WHEN count(*) = 0 THEN 0 ELSE -1 END) FROM topics WHERE name = %s"""
    with translated():
        return TopicNumbers(*_one(connection, query, (topic_id, topic)))


def lost_batches(
    connection: Connection, dataset: str, after: int, last: int, topics: TopicNumbers, limit: int
) -> list[int]:
    """Return the first `limit` published batches with `after` < id <= `last` that no sink can read any more."""
    query = """SELECT batch_id FROM batches WHERE dataset = %s AND batch_id > %s AND batch_id <= %s
               AND parts IS NOT NULL AND (coalesce(topic, %s) <> %s OR parts = '[]') ORDER BY batch_id LIMIT %s"""
    values = (dataset, after, last, topics.first, topics.current, limit)
    with translated():
        return [batch_id for (batch_id,) in connection.execute(query, values)]


@dataclass(frozen=True, slots=True)
class LoadedBatches:
    """Decides which batches count as loaded.

    A batch in topic `topics.current` is loaded once `offsets` are above the offsets of all its parts. Any other
    published batch is lost: it is in another topic, or it has no parts, so the sink cannot read it. A lost batch is
    loaded if a replay has written it (its id is at most `replayed`). With `skips_lost`, a lost batch of an earlier
    topic is loaded, too, and so is a batch without parts of the newest topic.
    """

    topics: TopicNumbers
    offsets: Mapping[int, int]
    replayed: int = 0
    skips_lost: bool = False


_FIRST_MISSING = """
    SELECT batch_id FROM batches
    WHERE dataset = %(dataset)s AND batch_id > %(after)s AND batch_id <= %(last)s
      AND CASE
        WHEN parts IS NULL THEN true
        WHEN coalesce(topic, %(first)s) <> %(current)s OR parts = '[]' THEN
            batch_id > %(replayed)s AND NOT (%(skips_lost)s AND (
                coalesce(topic, %(first)s) < %(current)s
                OR coalesce(topic, %(first)s) = %(current)s AND %(current)s = (
                    SELECT max(number) FROM topics WHERE name = (SELECT name FROM topics WHERE number = %(current)s))))
        ELSE EXISTS (
            SELECT FROM jsonb_array_elements(parts) AS part
            WHERE (part ->> 1)::bigint >= coalesce((%(offsets)s::bigint[])[(part ->> 0)::int + 1], 0))
      END
    ORDER BY batch_id LIMIT 1"""


def first_missing(connection: Connection, dataset: str, after: int, last: int, loaded: LoadedBatches) -> int | None:
    """Return the first batch of `dataset` with `after` < id <= `last` that is not loaded; None when all are."""
    values = {
        "dataset": dataset,
        "after": after,
        "last": last,
        "first": loaded.topics.first,
        "current": loaded.topics.current,
        "offsets": [loaded.offsets.get(partition, 0) for partition in range(max(loaded.offsets, default=-1) + 1)],
        "replayed": loaded.replayed,
        "skips_lost": loaded.skips_lost,
    }
    with translated():
        row = connection.execute(_FIRST_MISSING, values).fetchone()
    return None if row is None else int(row[0])


def _one(connection: Connection, query: LiteralString, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row


def _parts(stored: list[list[int]] | None) -> tuple[Part, ...] | None:
    return None if stored is None else tuple(Part(partition, offset) for partition, offset in stored)
