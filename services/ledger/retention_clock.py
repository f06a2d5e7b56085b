"""The guard of PostgreSQL's clock: whatever is deleted because of its age asks here for the time.

Table `retention_clock` holds the time at which the clock was last read here; before the first look, the newest batch
tells the time. A clock that is days ahead of that is probably wrong, and nothing is deleted by it until an operator
says that it is right.
"""

from psycopg.sql import SQL

from services.core.errors import NeedsOperator
from services.core.instants import to_datetime
from services.postgres.clock import NOW_MICROSECONDS
from services.postgres.connection import Connection, translated

LONGEST_JUMP = 2 * 86_400 * 1_000_000
"""Microseconds that the clock may seem to have jumped ahead between two looks without being suspected."""

_NOW = SQL("SELECT {}").format(NOW_MICROSECONDS)
_LAST_SEEN = """
    SELECT coalesce((SELECT (extract(epoch FROM seen_at) * 1000000)::bigint FROM retention_clock),
                    (SELECT created_at FROM batches ORDER BY batch_id DESC LIMIT 1))"""


def now_microseconds(connection: Connection, *, trust_clock: bool = False) -> int:
    """Return the time by PostgreSQL's clock, in microseconds since 1970, UTC; the time is kept as the last one seen.

    Raises NeedsOperator when the clock is more than two days ahead of the last time seen, and keeps that time.
    `trust_clock`: an operator says that the clock is right. Raises StoreDown.
    """
    with translated(), connection.transaction():
        ((now,),) = connection.execute(_NOW).fetchall()
        ((seen,),) = connection.execute(_LAST_SEEN).fetchall()
        if seen is not None and now > seen + LONGEST_JUMP and not trust_clock:
            raise NeedsOperator(
                f"PostgreSQL's clock says {to_datetime(now)}, and it was last seen at {to_datetime(seen)}: nothing"
                " is deleted because of its age. If the clock is right, run `logpipe maintain --once --trust-clock`"
                " with the same LOGPIPE_RETENTION_DAYS; if not, set the clock first"
            )
        connection.execute(
            "INSERT INTO retention_clock (seen_at) VALUES (to_timestamp(%s::numeric / 1000000))"
            " ON CONFLICT (only_row) DO UPDATE SET seen_at = excluded.seen_at",
            (now,),
        )
        return int(now)
