"""All migrations: those of each room with tables of its own, the table of each dataset, and the views on them."""

from contextlib import closing

from services import datasets
from services.alerts import repository as alerts
from services.ledger import schema
from services.postgres import migrations
from services.postgres.connection import connect
from services.reports import windows
from services.stores import postgres
from services.stores.postgres import schema as rows

ROOMS = (schema.MIGRATIONS, alerts.MIGRATIONS, rows.MIGRATIONS, windows.MIGRATIONS)
"""In the order in which their migrations are applied. A room that brings migrations has a line here."""


def migrate(postgres_url: str) -> list[str]:
    """Bring all tables to this release; return the names of the migrations that were missing. Blocks.

    Called by `logpipe migrate` and `logpipe up`. Calling it again changes nothing, and of several callers at once one
    works and the others wait. A caller that was killed leaves whole migrations behind, and the next one goes on there.
    Raises StoreDown, and NeedsOperator when a table differs from its dataset's description in what cannot be added.
    """
    with closing(connect(postgres_url, closed_when_idle=False)) as connection, migrations.exclusive(connection):
        applied = migrations.apply(connection, *ROOMS)
        for dataset in datasets.all_datasets():
            postgres.prepare(connection, dataset)
        applied += migrations.apply(connection, rows.VIEWS)
    return applied
