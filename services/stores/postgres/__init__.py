"""PostgreSQL: the store that shares its transaction with the ledger.

A table per dataset, partitioned by the day of acceptance. A batch lies in one day, so ingest COPYs straight into that
day's partition (`copy_statement`) and no row is routed. This package holds the tables' shape and the reader; the
ingest API writes the rows, in the same transaction as their ledger entry.
"""

from services.runtime.settings import PostgresSettings
from services.stores.postgres.closed_days import close as close_days
from services.stores.postgres.copying import copy_rows, copy_statement, copy_types
from services.stores.postgres.reader import NAME, PostgresReader
from services.stores.postgres.retention import drop_days
from services.stores.postgres.tables import (
    copy_target,
    days_with_rows_from,
    ensure_partitions,
    index_search,
    prepare,
)

__all__ = [
    "NAME",
    "PostgresReader",
    "close_days",
    "copy_rows",
    "copy_statement",
    "copy_target",
    "copy_types",
    "days_with_rows_from",
    "drop_days",
    "ensure_partitions",
    "index_search",
    "open_reader",
    "prepare",
]


def open_reader() -> PostgresReader:
    return PostgresReader(PostgresSettings().postgres_url.get_secret_value())
