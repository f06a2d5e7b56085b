"""What has to be changed once in a ledger that was restored from a backup, before any process uses it.

The backup knows nothing of what happened after it was made. Batch ids were given out that the restored sequence would
give out again, for other rows; stores have loaded rows, and sinks have come further than the restored positions say.
"""

from services.core.errors import Conflict
from services.ledger import slots
from services.postgres.connection import Connection, translated

_ID_LEAP = 1_000_000_000
"""Batch ids left out: more than can have been given out since the backup (a year, at 30 batches a second)."""


def after_restore(connection: Connection) -> int:
    """Give the ledger a new identity, and return the first batch id of it: above every id that was ever given out.

    Positions of sinks, replays and watermarks are dropped, because the stores have gone on since: each store that is
    filled by stream-to-store must be replayed. Raises StoreDown, and Conflict while an ingest process runs.
    """
    if alive := [slot.slot for slot in slots.every(connection) if slot.is_alive]:
        raise Conflict(f"slots {alive} have living owners: stop every ingest API, and wait for {slots.LEASE_SECONDS} s")
    with translated(), connection.transaction():
        connection.execute("UPDATE ledger SET id = gen_random_uuid()")
        connection.execute("TRUNCATE sink_progress, replays, watermarks")
        row = connection.execute("SELECT setval('batch_ids', last_value + %s) FROM batch_ids", (_ID_LEAP,)).fetchone()
    assert row is not None
    return int(row[0]) + 1
