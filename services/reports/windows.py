"""The windows of the last hours, counted while rows arrive: a table in PostgreSQL, updated many times a minute.

A window's count only grows. So the higher of two counts is the later one, and writing them again, in any order, or
counting anew what had been counted already, leaves the table as it was.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from psycopg.rows import class_row

from services.core.bounds import MAX_GROUPS
from services.core.errors import ResultTooLarge
from services.postgres.connection import Connection, translated

WINDOW_SECONDS = 10
KEPT_MINUTES = 24 * 60

_TABLE = """
CREATE TABLE IF NOT EXISTS realtime_windows (
    start      timestamptz NOT NULL,
    service    text NOT NULL,
    level      text NOT NULL,
    rows       bigint NOT NULL,
    PRIMARY KEY (start, service, level)
)"""


class Window(NamedTuple):
    """How many rows of this level and service have an event time in the ten seconds from `start`."""

    start: datetime
    level: str
    service: str
    rows: int


def prepare(connection: Connection) -> None:
    """Create the table if it is missing. Raises StoreDown."""
    with translated():
        connection.execute(_TABLE)


def upsert(connection: Connection, windows: Sequence[Window]) -> None:
    """In one transaction; drops those too old to be kept. Raises StoreDown."""
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
    """Those that began in the last `minutes`, the latest first; None when nobody ever counted.

    Raises StoreDown, or ResultTooLarge.
    """
    with translated(), connection.cursor(row_factory=class_row(Window)) as cursor:
        if connection.execute("SELECT to_regclass('realtime_windows')").fetchone() == (None,):
            return None
        found = cursor.execute(
            "SELECT start, level, service, rows FROM realtime_windows"
            " WHERE start >= now() - make_interval(mins => %s) ORDER BY start DESC, service, level LIMIT %s",
            [minutes, MAX_GROUPS + 1],
        ).fetchall()
    if len(found) > MAX_GROUPS:
        raise ResultTooLarge(f"there are more than {MAX_GROUPS} windows: ask for fewer minutes")
    return found
