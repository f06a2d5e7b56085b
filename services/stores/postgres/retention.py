"""Retention: drops the partitions of old days, and what is kept about them."""

from collections.abc import Collection

from psycopg import sql

from services.core.dataset import Dataset
from services.postgres.connection import Connection, connect, translated
from services.runtime.settings import PostgresSettings
from services.stores.postgres import rollups, schema
from services.stores.postgres.tables import day_of, partition_name


def drop_days(dataset: Dataset, before: int, keep: Collection[int] = ()) -> int:
    """Drop the partitions of all days below `before`, except those in `keep`, and return how many. Raises StoreDown.

    Days are counted from 1970-01-01 UTC. Each partition is detached first, which neither waits for running queries nor
    blocks any. A later call completes a detachment that was interrupted. Called by `logpipe maintain`; blocks.
    """
    dropped = 0
    kept = {partition_name(dataset, day) for day in keep}
    names = {"names": rf"^{dataset.name}_y\d{{4}}m\d{{2}}d\d{{2}}$"}
    with connect(PostgresSettings().postgres_url.get_secret_value()) as connection, translated():
        schema.require(connection)
        rollups.forget(connection, dataset, before, keep)
        for name, pending in connection.execute(_DAYS, names).fetchall():
            if name >= partition_name(dataset, before) or name in kept:
                continue
            leaf = sql.Identifier(name)
            _forget_note(connection, dataset, day_of(name))
            if pending is not None:
                how = sql.SQL("FINALIZE" if pending else "CONCURRENTLY")
                detach = sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}")
                connection.execute(detach.format(sql.Identifier(dataset.name), leaf, how))
            connection.execute(sql.SQL("DROP TABLE {}").format(leaf))
            dropped += 1
    return dropped


def _forget_note(connection: Connection, dataset: Dataset, day: int) -> None:
    """Delete the note of a closed day: a new partition for the day would have no trigger to delete it."""
    connection.execute("DELETE FROM closed_days WHERE dataset = %s AND day = %s", (dataset.name, day))


# Includes the partitions that a killed drop left: detached by half (`inhdetachpending` is true), or wholly (null).
_DAYS = """SELECT relname, inhdetachpending FROM pg_class LEFT JOIN pg_inherits ON inhrelid = pg_class.oid
           WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace AND relname ~ %(names)s"""
