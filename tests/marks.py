"""Changes of the ledger that a test makes in place of an ingest process."""

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from services.core.ledger import Batch
from services.ledger.slots import Lease


def lease(connection: psycopg.Connection[Any], slot: int) -> Lease:
    """Take the slot over, however long its owner has still to live."""
    row = connection.execute(
        "INSERT INTO slots (slot, owner, reader, renewed_at, epoch, first_batch)"
        " SELECT %s, owner, owner, now(), 1, last_value + 1 FROM batch_ids, gen_random_uuid() AS owner"
        " ON CONFLICT (slot) DO UPDATE SET epoch = slots.epoch + 1, owner = excluded.owner, reader = excluded.reader,"
        " first_batch = excluded.first_batch"
        " RETURNING slot, epoch",
        (slot,),
    ).fetchone()
    assert row is not None
    return Lease(*row)


def mark_published(connection: psycopg.Connection[Any], batch: Batch) -> None:
    """As version 1 did it: without the topic's number, which then is that of the first topic of its name."""
    assert batch.parts is not None
    parts = [(part.partition, part.offset) for part in batch.parts]
    connection.execute(
        "UPDATE batches SET published_at = clock_timestamp(), parts = %s WHERE batch_id = %s",
        (Jsonb(parts), batch.batch_id),
    )
