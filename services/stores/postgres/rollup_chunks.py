"""Adds to the rollup in PostgreSQL, one chunk at a time. A chunk is consecutive batches that were accepted on one day.

A chunk is counted once no batch below its end can appear any more. The counts and the chunk's row in `rollup_chunks`
are written in one transaction, and only if the ledger has the same number of rows. So the rollup holds each row of its
chunks exactly once, also after a crash.

Once a day is UNMERGED_DAYS old, its chunks are merged into one. A query as of a batch within a merged chunk uses the
chunks before it and reads the rows of that day, so the result stays exact, and the query becomes slower.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import takewhile
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from services.core import rollups
from services.core.dataset import Dataset
from services.core.errors import NeedsOperator
from services.core.ids import MAX_BATCH, first_id
from services.core.instants import DAY, to_datetime
from services.core.ledger import Batch
from services.core.rows import Row
from services.ledger import floors, reading
from services.postgres.connection import Connection, translated
from services.stores.postgres.rollups import LOCK, keys, until
from services.stores.postgres.tables import partition_name, summarize_ids

CHUNK_ROWS = 500_000
"""About as many rows as a query scans at most. A smaller chunk makes the rollup larger, a larger one the scan longer
(ADR 0009)."""
CHUNK_BATCHES = 8192
UNMERGED_DAYS = 3
"""The newest days, whose chunks are not merged. The watermark of a store that is at most this late is within them."""
_MERGED_AT_ONCE = 1000  # chunks of one transaction: more than a day of 300 million rows has


class Chunk(NamedTuple):
    """The batches below `until` that are in no earlier chunk. `day`: of their acceptance, counted from 1970."""

    until: int
    day: int
    rows: int


def next_chunk(batches: Sequence[Batch]) -> Chunk | None:
    """Return the chunk of the oldest of these batches, or None while the chunk is not complete.

    The caller has read CHUNK_BATCHES batches at most.
    """
    rows = 0
    for index, batch in enumerate(batches):
        day = batch.created_at // DAY
        rows += batch.rows
        later = batches[index + 1 : index + 2]
        if rows >= CHUNK_ROWS or index + 1 == CHUNK_BATCHES or (later and later[0].created_at // DAY != day):
            return Chunk(batch.batch_id + 1, day, rows)
    return None


def roll_up(connection: Connection, dataset: Dataset, settled: int) -> int:
    """Count the next chunk of the batches up to `settled`, and return its number of rows.

    No batch can appear at or below `settled` any more. Return 0 when the next chunk is not complete, or when another
    process adds to the rollup. Called by the rollup's maintenance task; blocks. Raises StoreDown, or NeedsOperator when
    PostgreSQL does not hold the rows that the ledger has accepted.
    """
    name = rollups.name(dataset)

    def fetch(statement: sql.Composed, parameters: Sequence[Any]) -> list[Row]:
        return connection.execute(statement, parameters).fetchall()

    with translated(), connection.transaction():
        alone = connection.execute("SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))", (LOCK, name)).fetchone()
        if alone != (True,):
            return 0
        last = until(fetch, name, MAX_BATCH)
        if last > settled + 1:  # this process has not read the settled id again
            return 0
        start = max(last, floors.floor(connection, dataset.name))
        chunk = next_chunk(reading.batches(connection, dataset.name, start - 1, settled, CHUNK_BATCHES))
        if chunk is None:
            return 0
        midnight = to_datetime(chunk.day * DAY)
        accepted = sql.SQL("created_at >= {} AND created_at < {}").format(midnight, midnight + timedelta(days=1))
        _summarize(connection, partition_name(dataset, chunk.day))
        counted = _add(connection, dataset, start, chunk.until, accepted)
        dropped = counted == 0 and start < floors.floor(connection, dataset.name)
        if counted != chunk.rows and not dropped:
            raise NeedsOperator(
                f"{dataset.name}: PostgreSQL holds {counted:,} rows of the batches {start} to {chunk.until - 1}, the"
                f" ledger says {chunk.rows:,}: not rolled up; `logpipe verify --all` says which batches differ"
            )
        connection.execute(
            "INSERT INTO rollup_chunks (rollup, until_batch, day, row_count) VALUES (%s, %s, %s, %s)",
            (name, chunk.until, midnight, counted),
        )
        return chunk.rows


def merge(connection: Connection, dataset: Dataset) -> int:
    """Merge the chunks of the oldest day that is due, and return how many chunks became one.

    Return 0 when no day is due, or when another process adds to the rollup. Called by the rollup's maintenance task;
    blocks. Raises StoreDown.
    """
    name = rollups.name(dataset)
    with translated(), connection.transaction():
        alone = connection.execute("SELECT pg_try_advisory_xact_lock(%s, hashtext(%s))", (LOCK, name)).fetchone()
        if alone != (True,) or connection.execute(_DUE, {"rollup": name, "days": UNMERGED_DAYS}).fetchone() is None:
            return 0
        unmerged = connection.execute(
            "SELECT until_batch, day FROM rollup_chunks WHERE rollup = %s AND NOT merged ORDER BY until_batch LIMIT %s",
            (name, _MERGED_AT_ONCE),
        ).fetchall()
        # Only adjacent chunks are merged: after a clock was put back, a day can have chunks that are not adjacent.
        ends = [until for until, _ in takewhile(lambda chunk: chunk[1] == unmerged[0][1], unmerged)]
        counted = _move(connection, dataset, ends) if len(ends) > 1 else None
        connection.execute("DELETE FROM rollup_chunks WHERE rollup = %s AND until_batch = ANY(%s)", (name, ends[:-1]))
        connection.execute(
            "UPDATE rollup_chunks SET merged = true, row_count = coalesce(%s, row_count)"
            " WHERE rollup = %s AND until_batch = %s",
            (counted, name, ends[-1]),
        )
        return len(ends)


# The oldest chunk that is not merged, if its day is due. A day later than that of the newest chunk is due, too, because
# the clock that gave it was ahead.
_DUE = """
    SELECT FROM (SELECT day FROM rollup_chunks WHERE rollup = %(rollup)s AND NOT merged
                 ORDER BY until_batch LIMIT 1) AS oldest,
                (SELECT day FROM rollup_chunks WHERE rollup = %(rollup)s ORDER BY until_batch DESC LIMIT 1) AS newest
    WHERE abs(newest.day - oldest.day) >= %(days)s"""


def _move(connection: Connection, dataset: Dataset, chunks: Sequence[int]) -> int:
    """Add up the counts of these chunks as counts of the last one, and return how many rows they count."""
    statement = sql.SQL("""
        WITH merged AS (DELETE FROM {rollup} WHERE until_batch = ANY(%s) RETURNING {keys}, row_count),
        moved AS (
            INSERT INTO {rollup} (until_batch, {keys}, row_count)
            SELECT {last}, {keys}, sum(row_count)::bigint FROM merged GROUP BY {keys} RETURNING row_count
        ) SELECT coalesce(sum(row_count), 0)::bigint FROM moved""").format(
        rollup=sql.Identifier(rollups.name(dataset)),
        keys=sql.SQL(", ").join(map(sql.Identifier, ("at_minute", *dataset.groupings))),
        last=chunks[-1],
    )
    row = connection.execute(statement, (list(chunks),)).fetchone()
    assert row is not None
    return int(row[0])


def _add(connection: Connection, dataset: Dataset, start: int, end: int, accepted: sql.Composed) -> int:
    """Add the counts of the batches from `start` to before `end` to the rollup, and return the number of rows."""
    groups = sql.SQL(", ").join(map(sql.Literal, range(2, 3 + len(dataset.groupings))))
    statement = sql.SQL("""
        WITH counted AS (
            INSERT INTO {rollup} SELECT {end}, {keys}, count(*) FROM {table}
            WHERE id >= {first_id} AND id < {end_id} AND {accepted} GROUP BY {groups} RETURNING row_count
        ) SELECT coalesce(sum(row_count), 0)::bigint FROM counted""").format(
        rollup=sql.Identifier(rollups.name(dataset)),
        end=end,
        keys=keys(dataset),
        table=sql.Identifier(dataset.name),
        first_id=first_id(start),
        end_id=first_id(end),
        accepted=accepted,
        groups=groups,
    )
    row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


def _summarize(connection: Connection, partition: str) -> None:
    """Bring the index of ids up to date, by which the chunk and the rows after it are found."""
    with suppress(psycopg.errors.LockNotAvailable), connection.transaction():  # a running vacuum does the same
        connection.execute("SET LOCAL lock_timeout = '100ms'")
        summarize_ids(connection, partition)
        # A setting that is changed in a savepoint outlives it, and the statements that follow may wait longer.
        connection.execute("SET LOCAL lock_timeout TO DEFAULT")
