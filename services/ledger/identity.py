"""The identity of the ledger, for programs that keep a position in it."""

from uuid import UUID

from services.postgres.connection import Connection, translated


def ledger_id(connection: Connection) -> UUID:
    """Return the ledger's id, which changes when the ledger is deleted and created again. Raises StoreDown."""
    with translated():
        row = connection.execute("SELECT id FROM ledger").fetchone()
    assert row is not None
    return UUID(str(row[0]))


def former_ids(connection: Connection) -> list[UUID]:
    """Return the ids that the ledger had before it was restored from backups, the oldest first. Raises StoreDown."""
    with translated():
        rows = connection.execute("SELECT id FROM former_ledgers ORDER BY restored_at").fetchall()
    return [UUID(str(former)) for (former,) in rows]
