"""The tables that all datasets share, `rollup_chunks` and `closed_days`: their migrations."""

from pathlib import Path

from services.postgres import migrations
from services.postgres.connection import Connection

MIGRATIONS = migrations.Migrations(Path(__file__).with_name("migrations"))


def require(connection: Connection) -> None:
    """Raise StoreDown, which names `logpipe migrate`, while these tables are older than this release."""
    migrations.require(connection, MIGRATIONS)
