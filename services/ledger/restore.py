"""Makes a ledger that was restored from a backup fit for use, once, before any process uses it.

After the backup was made, batch ids were given out that the restored sequence would give out again, for other rows.
Stores have loaded rows since, so their sinks are ahead of the restored positions.
"""

from collections.abc import Sequence
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
    SELECT store, dataset, gen_random_uuid(), coalesce(batch_id, 0) + 1, coalesce(batch_id, 0), coalesce(table_id, '')
    FROM unnest(%(stores)s::text[]) AS store CROSS JOIN unnest(%(datasets)s::text[]) AS dataset
         LEFT JOIN watermarks USING (store, dataset)
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


def refuse_owners(connection: Connection) -> None:
    """Raise Conflict while a process that accepts rows runs. Raises StoreDown."""
    if alive := [slot.slot for slot in slots.all_slots(connection) if slot.is_alive]:
        raise Conflict(f"slots {alive} have living owners: stop every ingest API, and wait for {slots.LEASE_SECONDS} s")


def after_restore(connection: Connection, stores: Sequence[str], datasets: Sequence[str]) -> Leap:
    """Give the ledger a new identity, and let its batch ids go on above every id that was ever given out.

    No process that accepts rows may run. The positions of sinks are dropped, because the stores have loaded more since.
    Each of `stores` must be replayed for each of `datasets`: until then a store's watermark stays where it was in the
    backup, or at 0 in a table that was created again. Raises StoreDown and NeedsOperator.
    """
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
        connection.execute("INSERT INTO former_ledgers (id) SELECT id FROM ledger")
        connection.execute("UPDATE ledger SET id = gen_random_uuid()")
        # An owner that was suspended before the restore must not go on under its lease: its view is that of the time
        # after the backup.
        connection.execute(
            "UPDATE slots SET owner = gen_random_uuid(), renewed_at = '-infinity', epoch = epoch + 1,"
            " first_batch = NULL, stuck = ''"
        )
        connection.execute(_BEGIN_REPLAYS, {"stores": list(stores), "datasets": list(datasets)})
        connection.execute("TRUNCATE sink_progress")
        connection.execute("DELETE FROM watermarks WHERE store <> ''")  # which ids are settled is as true as before
        row = connection.execute(_LEAP, {"rate": _IDS_A_SECOND}).fetchone()
        assert row is not None
        last, before = row
        connection.execute("INSERT INTO id_leaps (after, until) VALUES (%s, %s)", (before, last))
    return Leap(before + 1, last)


def has_accepted(connection: Connection) -> bool | None:
    """Return whether the ledger has a batch; None where there is no ledger. Raises StoreDown."""
    with translated():
        if connection.execute("SELECT to_regclass('batches')").fetchone() == (None,):
            return None
        return connection.execute("SELECT FROM batches LIMIT 1").fetchone() is not None


def known_topics(connection: Connection, name: str) -> set[str]:
    """The ids of the topics of that name that batches of the ledger were published to. Raises StoreDown."""
    with translated():
        found = connection.execute("SELECT topic_id FROM topics WHERE name = %s", (name,)).fetchall()
    return {topic_id for (topic_id,) in found}


def declare_unpublished(connection: Connection, dataset: str) -> None:
    """Let the batches that are not marked as published be published, as if none of them had been. Raises StoreDown.

    For a dataset whose topic was created again, and whose stores are empty: nothing can have a batch twice.
    """
    with translated():
        connection.execute("DELETE FROM slot_positions WHERE dataset = %s", (dataset,))
