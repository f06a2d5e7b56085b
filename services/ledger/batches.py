"""Changes of the ledger: batches and requests in the COPY's own transaction, and marks once batches are published."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import psycopg
from psycopg.sql import SQL

from services.core.ids import MAX_BATCH
from services.core.ledger import Batch, Part
from services.ledger import retention_clock, slots
from services.ledger.slots import Lease
from services.ledger.topics import NumberedTopic
from services.postgres.clock import NOW_MICROSECONDS
from services.postgres.connection import Connection, Cursor, translated
from services.postgres.deletion import delete_in_chunks

_FORGOTTEN_AT_ONCE = 5_000  # keys deleted in one transaction
_MOST_COUNTED = 10_000  # unpublished batches: counting costs no more, however long Kafka is unreachable
_BEGIN = SQL("SELECT pg_current_xact_id()::text, {}").format(NOW_MICROSECONDS)


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A request with an Idempotency-Key. Its rows are in the batches from `first_batch`, which the reply names, on."""

    key: str
    body_hash: bytes
    dataset: str
    first_batch: int
    last_batch: int
    rows: int


@dataclass(frozen=True, slots=True)
class DrawnIds:
    """The ids of a transaction and of its new batches. `created_at`: microseconds since 1970 by PostgreSQL's clock."""

    xid: str
    created_at: int
    batch_ids: list[int]


def draw_ids(cursor: Cursor, batches: int) -> DrawnIds:
    """Draw this transaction's id, then the ids of the batches that it will write, all accepted now.

    The order matters. If a batch id were drawn before the transaction has its id, a reader could mistake a batch that
    is being written for a batch that was rolled back (see `settled`).
    """
    row = cursor.execute(_BEGIN).fetchone()
    assert row is not None
    ids = cursor.execute("SELECT nextval('batch_ids') FROM generate_series(1, %s)", (batches,)).fetchall()
    xid, created_at = row
    return DrawnIds(xid, created_at, [batch_id for (batch_id,) in ids])


def insert(cursor: Cursor, batches: Sequence[Batch]) -> None:
    """Add the batches to the ledger, in the transaction that has drawn their ids."""
    cursor.executemany(
        "INSERT INTO batches (batch_id, slot, dataset, rows, checksum, xid, created_at)"
        " VALUES (%s, %s, %s, %s, %s, pg_current_xact_id(), %s)",
        [(b.batch_id, b.slot, b.dataset, b.rows, b.checksum, b.created_at) for b in batches],
    )


def lock_keys(cursor: Cursor, keys: Sequence[str]) -> dict[str, bool]:
    """Return key -> whether this transaction has locked the key. Never waits, so that no two transactions deadlock."""
    rows = cursor.execute(
        "SELECT key, pg_try_advisory_xact_lock(hashtextextended(key, 0)) FROM unnest(%s::text[]) AS key", (list(keys),)
    )
    return dict(rows.fetchall())


def known_requests(cursor: Cursor, keys: Sequence[str]) -> dict[str, KeyedRequest]:
    """Return the requests already answered under these keys. Call only with keys that this transaction has locked."""
    rows = cursor.execute(
        "SELECT idempotency_key, body_hash, dataset, first_batch, last_batch, rows FROM requests"
        " WHERE idempotency_key = ANY(%s)",
        (list(keys),),
    )
    return {row[0]: KeyedRequest(*row) for row in rows.fetchall()}


def insert_requests(cursor: Cursor, requests: Sequence[KeyedRequest]) -> None:
    """Store the requests, in the transaction that holds their keys."""
    cursor.executemany(
        "INSERT INTO requests (idempotency_key, body_hash, dataset, first_batch, last_batch, rows)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        [(r.key, r.body_hash, r.dataset, r.first_batch, r.last_batch, r.rows) for r in requests],
    )


def forget_requests(connection: Connection, hours: float) -> int:
    """Delete keys that are surely older than `hours`, a few thousand in each transaction; return how many.

    A repeated request must find its key, and a jump of PostgreSQL's clock makes a key seem older than it is. So keys
    are kept longer, by the longest jump that `retention_clock` does not notice. Raises NeedsOperator after a longer
    jump, and StoreDown.
    """
    now = retention_clock.now_microseconds(connection)
    before = now - int(hours * 3_600_000_000) - retention_clock.LONGEST_JUMP
    statement = """
        DELETE FROM requests WHERE idempotency_key = ANY(ARRAY(
            SELECT idempotency_key FROM requests WHERE created_at < to_timestamp(%s::numeric / 1000000)
            ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED))"""
    return delete_in_chunks(connection, statement, (before,), _FORGOTTEN_AT_ONCE)


def committed(connection: Connection, xid: str, batch: Batch) -> bool | None:
    """Return whether transaction `xid`, which wrote `batch`, was committed; None while it is still running.

    The ledger row decides. When a crash ends a transaction before it has reached the disk, PostgreSQL gives its id out
    again, so the id alone may name another transaction; until then the id is "in the future".
    """
    with translated():
        try:
            row = connection.execute("SELECT pg_xact_status(%s::xid8)", (xid,)).fetchone()
        except psycopg.errors.InvalidParameterValue:
            return False
        if row == ("in progress",):
            return None
        found = connection.execute(
            "SELECT FROM batches WHERE batch_id = %s AND xid = %s::xid8 AND slot = %s AND checksum = %s"
            " AND created_at = %s",
            (batch.batch_id, xid, batch.slot, batch.checksum, batch.created_at),
        )
        return found.fetchone() is not None


def unpublished(connection: Connection, lease: Lease, max_rows: int) -> list[Batch]:
    """Return the slot's oldest unpublished batches, about `max_rows` rows of them, at least one if there is one.

    Returns an empty list if another process has leased the slot.
    """
    with translated():
        rows = connection.execute(
            """
            SELECT batch_id, slot, dataset, rows, checksum, created_at FROM (
                SELECT *, sum(rows) OVER (ORDER BY batch_id) - rows AS before FROM (
                    SELECT * FROM batches WHERE slot = %s AND published_at IS NULL
                    AND EXISTS (SELECT FROM slots WHERE slot = %s AND epoch = %s) ORDER BY batch_id LIMIT 1000
                ) AS oldest
            ) AS counted WHERE before < %s ORDER BY batch_id
            """,
            (lease.slot, lease.slot, lease.epoch, max_rows),
        )
        return [Batch(*row) for row in rows.fetchall()]


def in_doubt(connection: Connection, lease: Lease) -> list[Batch]:
    """Return the unmarked batches of the slot that a former owner may have published: accepted before `lease` began."""
    with translated():
        rows = connection.execute(
            """
            SELECT batch_id, slot, dataset, rows, checksum, created_at FROM batches
            WHERE slot = %s AND published_at IS NULL
              AND batch_id < coalesce((SELECT first_batch FROM slots WHERE slot = %s AND epoch = %s), %s)
            ORDER BY batch_id
            """,
            (lease.slot, lease.slot, lease.epoch, MAX_BATCH),
        )
        return [Batch(*row) for row in rows.fetchall()]


def count_unpublished(connection: Connection, slot: int) -> int:
    """Return how many batches of the slot are not marked as published, counted up to 10,000. Raises StoreDown."""
    with translated():
        row = connection.execute(
            "SELECT count(*) FROM (SELECT FROM batches WHERE slot = %s AND published_at IS NULL LIMIT %s) AS waiting",
            (slot, _MOST_COUNTED),
        ).fetchone()
    assert row is not None
    return int(row[0])


def mark_published(
    connection: Connection, lease: Lease, batches: Sequence[Batch], topics: Mapping[str, NumberedTopic]
) -> None:
    """Mark the batches as published, with the offsets of their messages. `topics`: dataset -> the topic that has them.

    Marking the same batches again changes nothing. Raises Fenced when the slot was leased by another process.
    """
    positions: dict[str, dict[int, int]] = {}
    for batch in batches:
        next_offsets = positions.setdefault(batch.dataset, {})
        for part in _parts(batch):
            next_offsets[part.partition] = max(next_offsets.get(part.partition, 0), part.offset + 1)
    with translated(), connection.transaction(), connection.cursor() as cursor:
        slots.hold(cursor, lease)
        cursor.execute(
            "UPDATE batches SET published_at = clock_timestamp(), parts = marked.parts::jsonb, topic = marked.topic"
            " FROM unnest(%s::bigint[], %s::text[], %s::smallint[]) AS marked(batch_id, parts, topic)"
            " WHERE batches.batch_id = marked.batch_id AND published_at IS NULL",
            (
                [batch.batch_id for batch in batches],
                [_parts_json(batch) for batch in batches],
                [topics[batch.dataset].number for batch in batches],
            ),
        )
        for dataset, next_offsets in positions.items():
            _advance(cursor, lease.slot, dataset, topics[dataset], next_offsets)


def advance_slot(
    connection: Connection, lease: Lease, dataset: str, topic: NumberedTopic, positions: Mapping[int, int]
) -> None:
    """Record that no batch of the slot which is not marked has a message below these offsets, or in another topic.

    Raises Fenced when the slot was leased by another process.
    """
    with translated(), connection.transaction(), connection.cursor() as cursor:
        slots.hold(cursor, lease)
        cursor.execute(
            "DELETE FROM slot_positions WHERE slot = %s AND dataset = %s AND topic_id <> %s",
            (lease.slot, dataset, topic.topic_id),
        )
        _advance(cursor, lease.slot, dataset, topic, positions)


def slot_positions(connection: Connection, slot: int, dataset: str) -> dict[str, dict[int, int]]:
    """Return topic id -> partition -> the first offset at which an unmarked message of the slot can lie.

    Positions are written before a slot is first published, so a slot without any has published nothing.
    """
    query = "SELECT topic_id, partition, next_offset FROM slot_positions WHERE slot = %s AND dataset = %s"
    found: dict[str, dict[int, int]] = {}
    with translated():
        for topic_id, partition, offset in connection.execute(query, (slot, dataset)):
            found.setdefault(topic_id, {})[partition] = offset
    return found


def published_ends(connection: Connection, dataset: str, topic_id: str) -> dict[int, int]:
    """Return partition -> the highest offset up to which any slot has published or searched."""
    query = "SELECT partition, max(next_offset) FROM slot_positions WHERE dataset = %s AND topic_id = %s GROUP BY 1"
    with translated():
        return dict(connection.execute(query, (dataset, topic_id)).fetchall())


def _advance(cursor: Cursor, slot: int, dataset: str, topic: NumberedTopic, positions: Mapping[int, int]) -> None:
    cursor.execute(
        "INSERT INTO slot_positions (slot, dataset, partition, next_offset, topic_id)"
        " SELECT %s, %s, partition, next_offset, %s FROM unnest(%s::int[], %s::bigint[]) AS at(partition, next_offset)"
        " ON CONFLICT (slot, dataset, partition) DO UPDATE SET topic_id = excluded.topic_id, next_offset = CASE"
        " WHEN slot_positions.topic_id = excluded.topic_id"
        " THEN greatest(slot_positions.next_offset, excluded.next_offset) ELSE excluded.next_offset END",
        (slot, dataset, topic.topic_id, list(positions), list(positions.values())),
    )


def _parts(batch: Batch) -> tuple[Part, ...]:
    if batch.parts is None:
        raise ValueError(f"batch {batch.batch_id} has no parts to mark")
    return batch.parts


def _parts_json(batch: Batch) -> str:
    return msgspec.json.encode([(p.partition, p.offset) for p in _parts(batch)]).decode()
