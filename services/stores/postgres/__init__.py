"""PostgreSQL: the store that shares its transaction with the ledger.

Each dataset has a table that is partitioned by the day of acceptance. All rows of a batch are accepted on one day, so
the process that accepts them copies them directly into that day's partition (`copy_statement`), in the transaction that
writes their ledger entry. This package holds the tables, the reader, the rollups and the retention.
"""

from services.core.dataset import Dataset
from services.core.stores import Store
from services.postgres.connection import NAME, Connection
from services.runtime.settings import PostgresSettings
from services.stores.postgres import rollups, tables
from services.stores.postgres.closed_days import close as close_days
from services.stores.postgres.copying import copy_rows, copy_statement, copy_types
from services.stores.postgres.reader import PostgresReader
from services.stores.postgres.retention import drop_days
from services.stores.postgres.tables import (
    days_with_rows_from,
    ensure_partitions,
    index_search,
    partition_name,
    require,
)

__all__ = [
    "STORE",
    "PostgresReader",
    "close_days",
    "copy_rows",
    "copy_statement",
    "copy_types",
    "days_with_rows_from",
    "ensure_partitions",
    "index_search",
    "partition_name",
    "prepare",
    "require",
]


def prepare(connection: Connection, dataset: Dataset) -> None:
    """Create the dataset's table and its rollup, or add what they lack. Called by `logpipe migrate`; blocks.

    The migrations (`schema`) must have been applied. Raises StoreDown, NeedsOperator.
    """
    tables.prepare(connection, dataset)
    rollups.prepare(connection, dataset)


def _open_reader() -> PostgresReader:
    return PostgresReader(PostgresSettings().postgres_url.get_secret_value())


STORE = Store(
    name=NAME,
    route="postgres",
    reply_name="postgresql",
    label="PostgreSQL",
    open_reader=_open_reader,
    drop_days=drop_days,
)
