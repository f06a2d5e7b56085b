"""The identity of the ledger, for whoever keeps a position that counts in it."""

from uuid import UUID

from services.postgres.connection import Connection, translated


def ledger_id(connection: Connection) -> UUID:
    """Changes when the ledger is deleted and made anew. Call after `schema.require`. Raises StoreDown."""
    with translated():
        row = connection.execute("SELECT id FROM ledger").fetchone()
    assert row is not None
    return UUID(str(row[0]))
