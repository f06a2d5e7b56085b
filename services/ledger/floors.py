"""The floor of a dataset: the lowest batch that retention leaves in place. It is raised before anything is dropped."""

from typing import Any

import psycopg

from services.core.instants import DAY
from services.ledger import reading
from services.postgres.connection import translated


def raise_to(connection: psycopg.Connection[Any], dataset: str, day: int) -> int:
    """Put the floor above all batches accepted before `day` (days since 1970-01-01 UTC).

    The day before which all can be dropped: an unpublished batch has its rows in PostgreSQL alone, so its day is kept,
    and those after it.
    """
    with translated(), connection.transaction():
        if (oldest := reading.oldest_unpublished(connection, dataset)) is not None:
            day = min(day, oldest // DAY)
        connection.execute(
            "INSERT INTO floors SELECT %(dataset)s, max(batch_id) + 1 FROM batches"
            " WHERE dataset = %(dataset)s AND created_at < %(end)s HAVING max(batch_id) IS NOT NULL"
            " ON CONFLICT (dataset) DO UPDATE SET batch_id = excluded.batch_id"
            " WHERE floors.batch_id < excluded.batch_id",
            {"dataset": dataset, "end": day * DAY},
        )
    return day
