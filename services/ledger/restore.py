"""Makes a ledger that was restored from a backup fit for use, once, before any process uses it.

After the backup was made, batch ids were given out that the restored sequence would give out again, for other rows.
Stores have loaded rows since, so their sinks are ahead of the restored positions.
"""

from typing import NamedTuple

from services.core.errors import Conflict, NeedsOperator
from services.ledger import slots
from services.postgres.connection import Connection, translated

_IDS_A_SECOND = 200
"""More batch ids than are given out in a second, on average since 2026. They last until 2036 (`ids.MAX_BATCH`)."""

# The time decides, not the restored sequence: the same backup may be restored twice.
_LEAP = """
    SELECT setval('batch_ids', %(rate)s * seconds), last_value
    FROM batch_ids, (SELECT extract(epoch FROM clock_timestamp() - '2026-01-01')::bigint AS seconds) AS clock"""

# A store still has all rows that it had loaded when the backup was made, so its replay begins after them. A replay gets
# a new id, because the store may remember the tokens of writes that the former replay made after the backup.
_BEGIN_REPLAYS = """
    INSERT INTO replays (store, dataset, id, next_batch, last_batch, table_id)
    SELECT store, dataset, gen_random_uuid(), batch_id + 1, batch_id, table_id
    FROM watermarks WHERE (store, dataset) IN (SELECT store, dataset FROM sink_progress)
    ON CONFLICT (store, dataset) DO UPDATE SET id = excluded.id, range_last = NULL"""


_DOUBTS = """
    SELECT clock_timestamp() < to_timestamp(newest::numeric / 1000000), last_value >= %(rate)s * seconds
    FROM batch_ids, (SELECT extract(epoch FROM clock_timestamp() - '2026-01-01')::bigint AS seconds) AS clock,
         (SELECT coalesce(max(created_at), 0) AS newest FROM
             (SELECT created_at FROM batches ORDER BY batch_id DESC LIMIT 1000) AS last) AS batches"""


class Leap(NamedTuple):
    """Batches of ids `first` to `last` may be in stores and topics, and are not in the restored ledger."""

    first: int
    last: int


def after_restore(connection: Connection) -> Leap:
    """Give the ledger a new identity, and let its batch ids go on above every id that was ever given out.

    The positions of sinks are dropped, because the stores have loaded more since: each store that is filled by
    stream-to-store must be replayed. Raises StoreDown, and Conflict while an ingest process runs.
    """
    if alive := [slot.slot for slot in slots.every(connection) if slot.is_alive]:
        raise Conflict(f"slots {alive} have living owners: stop every ingest API, and wait for {slots.LEASE_SECONDS} s")
    with translated(), connection.transaction():
        ((is_behind, is_used_up),) = connection.execute(_DOUBTS, {"rate": _IDS_A_SECOND}).fetchall()
        if is_behind:
            raise NeedsOperator("PostgreSQL's clock is behind the newest batch of the backup: set the clock first")
        if is_used_up:
            raise NeedsOperator(
                f"more than {_IDS_A_SECOND} batch ids a second were given out since 2026, so that it is not certain"
                " which ids the stores have: empty the stores before this ledger is used again, and set the sequence"
                " batch_ids above every id in them"
            )
        connection.execute("UPDATE ledger SET id = gen_random_uuid()")
        # An owner that was suspended before the restore must not go on under its lease: its view is that of the time
        # after the backup.
        connection.execute(
            "UPDATE slots SET owner = gen_random_uuid(), renewed_at = '-infinity', epoch = epoch + 1,"
            " first_batch = NULL, stuck = ''"
        )
        connection.execute(_BEGIN_REPLAYS)
        connection.execute("TRUNCATE sink_progress")
        connection.execute("DELETE FROM watermarks WHERE store <> ''")  # which ids are settled is as true as before
        row = connection.execute(_LEAP, {"rate": _IDS_A_SECOND}).fetchone()
        assert row is not None
        last, before = row
        connection.execute("INSERT INTO id_leaps (after, until) VALUES (%s, %s)", (before, last))
    return Leap(before + 1, last)
