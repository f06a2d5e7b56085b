"""The tables that all datasets share, `rollup_chunks` and `closed_days`, and views on datasets: their migrations."""

from pathlib import Path

from services.postgres import migrations
from services.postgres.connection import Connection

MIGRATIONS = migrations.Migrations(Path(__file__).with_name("migrations"))
VIEWS = migrations.Migrations(Path(__file__).with_name("views"))
"""Views for people who query by SQL; applied after the datasets have their tables. No process needs them."""


def require(connection: Connection) -> None:
    """Raise StoreDown, which names `logpipe migrate`, while these tables are older than this release."""
    migrations.require(connection, MIGRATIONS)
