"""Slots: each batch belongs to one, and one owner at a time publishes a slot's batches.

Ownership is a lease. Its holder may still be publishing when it runs out (stopped, cut off); Kafka then fences it
by the slot's transactional id, so the lease decides who should publish and Kafka makes sure that only one does.
"""

from typing import Any
from uuid import UUID

import psycopg

from services.postgres.connection import translated

LEASE_SECONDS = 10
RENEW_SECONDS = 2
_ONE_AT_A_TIME = "LOCK TABLE slots IN SHARE ROW EXCLUSIVE MODE"


def acquire(connection: psycopg.Connection[Any], owner: UUID) -> int:
    """Lease the lowest slot nobody holds, a new one if need be."""
    with translated(), connection.transaction():
        connection.execute(_ONE_AT_A_TIME)
        row = connection.execute(
            "SELECT min(slot) FROM slots WHERE renewed_at < clock_timestamp() - make_interval(secs => %s)",
            (LEASE_SECONDS,),
        ).fetchone()
        assert row is not None
        if row[0] is None:
            row = connection.execute("SELECT coalesce(max(slot) + 1, 0) FROM slots").fetchone()
            assert row is not None
        connection.execute(
            "INSERT INTO slots VALUES (%s, %s, clock_timestamp())"
            " ON CONFLICT (slot) DO UPDATE SET owner = excluded.owner, renewed_at = excluded.renewed_at",
            (row[0], owner),
        )
        return int(row[0])


def renew(connection: psycopg.Connection[Any], owner: UUID) -> set[int]:
    """Prolong all leases of `owner`; the slots it still holds."""
    with translated():
        rows = connection.execute(
            "UPDATE slots SET renewed_at = clock_timestamp() WHERE owner = %s RETURNING slot", (owner,)
        )
        return {slot for (slot,) in rows}


def adopt_orphan(connection: psycopg.Connection[Any], owner: UUID) -> int | None:
    """Lease one slot that has unpublished batches and no living owner; None when there is none."""
    with translated(), connection.transaction():
        connection.execute(_ONE_AT_A_TIME)
        row = connection.execute(
            """
            SELECT slot FROM slots
            WHERE renewed_at < clock_timestamp() - make_interval(secs => %s)
              AND EXISTS (SELECT FROM batches WHERE batches.slot = slots.slot AND published_at IS NULL)
            ORDER BY slot LIMIT 1
            """,
            (LEASE_SECONDS,),
        ).fetchone()
        if row is None:
            return None
        connection.execute(
            "UPDATE slots SET owner = %s, renewed_at = clock_timestamp() WHERE slot = %s", (owner, row[0])
        )
        return int(row[0])


def release(connection: psycopg.Connection[Any], owner: UUID, slot: int) -> None:
    """Let others have the slot at once."""
    with translated():
        connection.execute(
            "UPDATE slots SET owner = gen_random_uuid(), renewed_at = '-infinity' WHERE slot = %s AND owner = %s",
            (slot, owner),
        )
