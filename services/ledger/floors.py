"""The floor of a dataset: the lowest batch that retention keeps.

The floor is raised before any row is dropped, and the batches below the floor are deleted from the ledger after that.
So a reader that reads the floor before and after its batches never misses rows that were being dropped.
"""

from services.core.instants import DAY
from services.ledger import reading, retention_clock
from services.postgres.connection import Connection, translated
from services.postgres.deletion import delete_in_chunks

_DELETED_AT_ONCE = 10_000  # batches


def today(connection: Connection) -> int:
    """Return the day by PostgreSQL's clock, in days since 1970-01-01 UTC, for retention to count from.

    Raises NeedsOperator when the clock has jumped: with a wrong clock, retention would drop days that are to be kept.
    """
    return retention_clock.now_microseconds(connection) // DAY


def floor(connection: Connection, dataset: str) -> int:
    """Return the lowest batch that retention keeps, 0 if it has dropped nothing. Raises StoreDown."""
    query = "SELECT batch_id FROM floors WHERE dataset = %s"
    with translated():
        row = connection.execute(query, (dataset,)).fetchone()
    return int(row[0]) if row else 0


def last_dropped(connection: Connection, dataset: str) -> int | None:
    """Return the time of acceptance of the last batch that retention has dropped, in microseconds; None without one.

    Raises StoreDown.
    """
    query = "SELECT dropped_until FROM floors WHERE dataset = %s"
    with translated():
        row = connection.execute(query, (dataset,)).fetchone()
    return row[0] if row else None


def raise_to(connection: Connection, dataset: str, day: int, settled: int) -> int:
    """Raise the floor to the lowest batch accepted on `day` or later (days since 1970-01-01 UTC).

    Returns the day below which rows can be dropped, where no batch from the floor on was accepted on their day (a
    clock that was put back can have accepted such a batch). The day is earlier than the one asked for when a batch was
    not published yet: its rows are in PostgreSQL alone. `settled`: no batch can appear any more at or below this id.
    """
    with translated(), connection.transaction():
        if (oldest := reading.oldest_unpublished(connection, dataset)) is not None:
            day = min(day, oldest // DAY)
        values = {"dataset": dataset, "end": day * DAY, "settled": settled}
        connection.execute(
            """
            WITH kept AS (
                SELECT coalesce(min(batch_id), %(settled)s + 1) AS first FROM (
                    SELECT batch_id FROM batches
                    WHERE dataset = %(dataset)s AND created_at >= %(end)s AND batch_id <= %(settled)s
                      AND batch_id >= coalesce((SELECT batch_id FROM floors WHERE dataset = %(dataset)s), 0)
                    ORDER BY batch_id LIMIT 1) AS lowest),
            dropped AS (
                SELECT max(created_at) AS until FROM batches, kept WHERE dataset = %(dataset)s AND batch_id < first)
            INSERT INTO floors AS f SELECT %(dataset)s, first, until FROM kept, dropped WHERE until IS NOT NULL
            ON CONFLICT (dataset) DO UPDATE
            SET batch_id = greatest(f.batch_id, excluded.batch_id),
                dropped_until = greatest(f.dropped_until, excluded.dropped_until)""",
            values,
        )
    return day


def delete_batches(connection: Connection, dataset: str) -> int:
    """Delete the ledger's batches below the floor, a few thousand in each transaction, and return how many."""
    statement = """
        DELETE FROM batches WHERE batch_id IN (
            SELECT batch_id FROM batches
            WHERE dataset = %s AND published_at IS NOT NULL
              AND batch_id < (SELECT batch_id FROM floors WHERE dataset = %s)
            ORDER BY batch_id LIMIT %s)"""
    return delete_in_chunks(connection, statement, (dataset, dataset), _DELETED_AT_ONCE)
