"""The windows of the last hours, counted while rows arrive: a table in PostgreSQL, updated many times a minute.

A window's count only grows, so the higher of two counts is the later one. The counts may therefore be written again, in
any order, and rows may be counted again: the table stays as it was.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from psycopg.rows import class_row

from services.core.errors import ResultTooLarge
from services.core.result_size import MAX_GROUPS
from services.postgres import migrations
from services.postgres.connection import Connection, translated

WINDOW_SECONDS = 10
KEPT_MINUTES = 24 * 60

MIGRATIONS = migrations.Migrations(Path(__file__).with_name("migrations"))


class Window(NamedTuple):
    """How many rows of this level and service have an event time in the ten seconds from `start`."""

    start: datetime
    level: str
    service: str
    rows: int


def require(connection: Connection) -> None:
    """Raise StoreDown, which names `logpipe migrate`, while the table is older than this release."""
    migrations.require(connection, MIGRATIONS)


def upsert(connection: Connection, windows: Sequence[Window]) -> None:
    """Add these windows, and delete those that are too old, in one transaction. Raises StoreDown."""
    starts, levels, services, rows = zip(*windows, strict=True) if windows else ((), (), (), ())
    with translated(), connection.transaction():
        connection.execute(
            "INSERT INTO realtime_windows AS old (start, level, service, rows)"
            " SELECT * FROM unnest(%s::timestamptz[], %s::text[], %s::text[], %s::bigint[])"
            " ON CONFLICT (start, service, level) DO UPDATE SET rows = greatest(old.rows, excluded.rows)",
            [list(starts), list(levels), list(services), list(rows)],
        )
        connection.execute(
            "DELETE FROM realtime_windows WHERE start < now() - make_interval(mins => %s)", [KEPT_MINUTES]
        )


def latest(connection: Connection, minutes: int) -> list[Window] | None:
    """Return the windows that began in the last `minutes`, the latest first; None if no window was ever counted.

    Raises StoreDown, or ResultTooLarge.
    """
    with translated(), connection.cursor(row_factory=class_row(Window)) as cursor:
        if connection.execute("SELECT FROM realtime_windows LIMIT 1").fetchone() is None:
            return None
        found = cursor.execute(
            "SELECT start, level, service, rows FROM realtime_windows"
            " WHERE start >= now() - make_interval(mins => %s) ORDER BY start DESC, service, level LIMIT %s",
            [minutes, MAX_GROUPS + 1],
        ).fetchall()
    if len(found) > MAX_GROUPS:
        raise ResultTooLarge(f"there are more than {MAX_GROUPS} windows: ask for fewer minutes")
    return found
