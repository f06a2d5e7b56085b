"""PostgreSQL's clock, the only one that decides about rows: when they were accepted, and when they may be dropped."""

from psycopg.sql import SQL

from services.postgres.connection import Connection, translated

NOW_MICROSECONDS = SQL("(extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
"""An expression: microseconds since 1970, UTC."""


def now_microseconds(connection: Connection) -> int:
    """Return the time on PostgreSQL's server, in microseconds since 1970, UTC. Raises StoreDown."""
    with translated():
        row = connection.execute(SQL("SELECT {}").format(NOW_MICROSECONDS)).fetchone()
    assert row is not None
    return int(row[0])
