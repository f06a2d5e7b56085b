"""The ledger's tables: their migrations, and the one index that is built while the ledger is in use."""

from pathlib import Path

from services.postgres import migrations
from services.postgres.connection import Connection, translated

MIGRATIONS = migrations.Migrations(Path(__file__).with_name("migrations"))

_INDEX_LOCK = 7_316_006  # advisory lock: one process at a time builds the index


def require(connection: Connection) -> None:
    """Raise StoreDown, which names `logpipe migrate`, while the ledger's tables are older than this release.

    Called before the ledger is first used. Tables of a newer release are accepted.
    """
    migrations.require(connection, MIGRATIONS)


def build_index(connection: Connection) -> None:
    """Build the index on batches that a ledger of version 1 lacks. Blocks for a minute for 50 million batches.

    Called by the maintenance of a process that accepts rows. Other processes go on writing meanwhile. Nothing happens
    when the index exists, or while another process builds it. `connection` is in no transaction. Raises StoreDown.
    """
    with translated():
        if _has_index(connection):
            return
        if connection.execute("SELECT pg_try_advisory_lock(%s)", (_INDEX_LOCK,)).fetchone() != (True,):
            return
        try:
            if _has_index(connection) is False:  # a build was interrupted
                connection.execute("DROP INDEX CONCURRENTLY IF EXISTS batches_dataset")
            connection.execute("CREATE INDEX CONCURRENTLY IF NOT EXISTS batches_dataset ON batches (dataset, batch_id)")
        finally:
            connection.execute("SELECT pg_advisory_unlock(%s)", (_INDEX_LOCK,))


def _has_index(connection: Connection) -> bool | None:
    """Return whether the index is valid: None without an index, False if its build was interrupted."""
    query = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('batches_dataset')"
    row = connection.execute(query).fetchone()
    return None if row is None else bool(row[0])
