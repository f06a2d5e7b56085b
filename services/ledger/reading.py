"""Reading the ledger: what was accepted, and how far each sink has come."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString, NamedTuple, cast

import psycopg

from services.core.ledger import Batch, Part
from services.postgres.connection import open_pool, translated

Connection = psycopg.Connection[Any]


class Ledger:
    """A few connections to the ledger, shared by threads and renewed when it comes back after a failure."""

    def __init__(self, url: str, max_connections: int = 4, timeout: float = 2.0) -> None:
        self._pool = open_pool(url, max_connections, timeout)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Borrow one; raises StoreDown when none can be had within the timeout."""
        with translated(), self._pool.connection() as connection:
            yield connection

    def close(self) -> None:
        self._pool.close()


class Snapshot(NamedTuple):
    """One consistent look at the batch ids of all datasets.

    Transactions with an id below `oldest_running` have ended: of what they wrote, all that will ever be is in `ids`.
    """

    ids: Sequence[int]
    oldest_running: int


def snapshot(connection: Connection, after: int, limit: int) -> Snapshot:
    """The first `limit` committed batch ids above `after`, in order."""
    query = """SELECT ARRAY(SELECT batch_id FROM batches WHERE batch_id > %s ORDER BY batch_id LIMIT %s),
                      pg_snapshot_xmin(pg_current_snapshot())::text::bigint"""
    with translated():
        return Snapshot(*_one(connection, query, (after, limit)))


def new_transaction_id(connection: Connection) -> int:
    """A transaction id above all those handed out so far."""
    with translated():
        return int(_one(connection, "SELECT pg_current_xact_id()::text::bigint")[0])


def batches(connection: Connection, dataset: str, after: int, last: int, limit: int) -> list[Batch]:
    """The first `limit` committed batches of `dataset` with `after` < id <= `last`, in order."""
    query = """SELECT batch_id, slot, dataset, rows, checksum, created_at, parts FROM batches
               WHERE dataset = %s AND batch_id > %s AND batch_id <= %s ORDER BY batch_id LIMIT %s"""
    with translated():
        found = connection.execute(query, (dataset, after, last, limit)).fetchall()
    return [Batch(*(*row[:-1], _parts(row[-1]))) for row in found]


class Count(NamedTuple):
    batches: int
    rows: int


def count(connection: Connection, dataset: str, after: int, last: int) -> Count:
    """The committed batches of `dataset` with `after` < id <= `last`, and the rows in them."""
    query = """SELECT count(*), coalesce(sum(rows), 0)::bigint FROM batches
               WHERE dataset = %s AND batch_id > %s AND batch_id <= %s"""
    with translated():
        return Count(*_one(connection, query, (dataset, after, last)))


def last_batch(connection: Connection) -> int:
    """The highest committed batch id of any dataset, 0 when there is none."""
    with translated():
        return int(_one(connection, "SELECT coalesce(max(batch_id), 0) FROM batches")[0])


def floor(connection: Connection, dataset: str) -> int:
    """The lowest batch that retention has left in place, 0 when it has dropped nothing."""
    with translated():
        return int(_one(connection, "SELECT coalesce(max(batch_id), 0) FROM floors WHERE dataset = %s", (dataset,))[0])


def oldest_unpublished(connection: Connection, dataset: str) -> int | None:
    """When the oldest batch was accepted that is not in Kafka yet, in microseconds; None when all are."""
    query = "SELECT min(created_at) FROM batches WHERE dataset = %s AND published_at IS NULL"
    with translated():
        return cast(int | None, _one(connection, query, (dataset,))[0])


def last_dropped(connection: Connection, dataset: str) -> int | None:
    """When the last of the batches that retention has dropped was accepted, in microseconds; None without any."""
    query = """SELECT max(created_at) FROM batches WHERE dataset = %s
               AND batch_id < (SELECT batch_id FROM floors WHERE dataset = %s)"""
    with translated():
        return cast(int | None, _one(connection, query, (dataset, dataset))[0])


def highest_offsets(connection: Connection, dataset: str) -> dict[int, int]:
    """Partition -> the highest offset that a batch was published at."""
    query = """SELECT (part ->> 0)::int, max((part ->> 1)::bigint)
               FROM batches, jsonb_array_elements(parts) AS part WHERE dataset = %s GROUP BY 1"""
    with translated():
        return dict(connection.execute(query, (dataset,)).fetchall())


def sink_offsets(connection: Connection, store: str, dataset: str) -> dict[int, int]:
    """Partition -> first offset that the store's sink has not confirmed."""
    query = "SELECT partition, next_offset FROM sink_progress WHERE store = %s AND dataset = %s"
    with translated():
        return dict(connection.execute(query, (store, dataset)).fetchall())


def replayed(connection: Connection, store: str, dataset: str) -> int | None:
    """The batch up to which a replay under way has come; None when there is none."""
    query = "SELECT next_batch - 1 FROM replays WHERE store = %s AND dataset = %s"
    with translated():
        row = connection.execute(query, (store, dataset)).fetchone()
    return None if row is None else int(row[0])


def _one(connection: Connection, query: LiteralString, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query, parameters).fetchone()
    assert row is not None
    return row


def _parts(stored: list[list[int]] | None) -> tuple[Part, ...] | None:
    return None if stored is None else tuple(Part(partition, offset) for partition, offset in stored)
