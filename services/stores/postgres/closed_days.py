"""What is known of each closed day's partition, so that a query leaves out those that cannot hold what it asks for.

A day is closed once it is over. `close` then notes the least and the greatest time and the greatest id of its rows. A
row that comes later all the same, because a clock was put back, deletes the note in its own transaction, by a trigger.
So a note never claims too little, and a day without a note is always read.

With hundreds of partitions, what costs is their planning: PostgreSQL plans only those that a condition on `created_at`
leaves.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from services.core.dataset import Dataset
from services.core.instants import DAY
from services.core.rows import Row
from services.postgres.clock import now_microseconds
from services.postgres.connection import translated
from services.stores.postgres.tables import Connection, copy_target, day_of, midnight, partitions

_LOCK = 7_316_005  # advisory lock: one process at a time makes the table
_DAYS_AT_ONCE = 40
_LOCK_TIMEOUT = "2s"  # for writers of a day that is over: they end in milliseconds, unless one hangs

_TABLE = """
CREATE TABLE IF NOT EXISTS closed_days (
    dataset    text NOT NULL,
    day        int NOT NULL,       -- days since 1970-01-01 UTC
    least      bigint NOT NULL,    -- microseconds since 1970, UTC
    greatest   bigint NOT NULL,
    last_id    bigint NOT NULL,
    PRIMARY KEY (dataset, day)
);
CREATE OR REPLACE FUNCTION reopen_day() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM closed_days WHERE dataset = TG_ARGV[0] AND day = TG_ARGV[1]::int;
    RETURN NULL;
END $$;
"""
_NONE_LEAST, _NONE_GREATEST = (1 << 63) - 1, -1  # of a day without rows: no condition holds

Fetch = Callable[[sql.Composed, Sequence[Any]], list[Row]]


class ClosedDay(NamedTuple):
    """`least`, `greatest`: of the times of its rows, in microseconds."""

    day: int
    least: int
    greatest: int
    last_id: int


def close(connection: Connection, dataset: Dataset) -> int:
    """Note what the partitions of days that are over hold, as far as that is not noted yet; how many.

    The newest come first, and no more than a few in one call. Each partition is read once, in a transaction of its own.
    Raises StoreDown.
    """
    closed = 0
    with translated():
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            if connection.execute("SELECT to_regclass('closed_days')").fetchone() == (None,):
                connection.execute(_TABLE)
        days = connection.execute("SELECT day FROM closed_days WHERE dataset = %s", (dataset.name,))
        noted = {copy_target(dataset, day) for (day,) in days}
        today = copy_target(dataset, now_microseconds(connection) // DAY)
        over = (name for name in partitions(connection, dataset) - noted if name < today)
        for name in sorted(over, reverse=True)[:_DAYS_AT_ONCE]:
            closed += _close(connection, dataset, name)
    return closed


def _close(connection: Connection, dataset: Dataset, partition: str) -> bool:
    """False when a writer still holds the partition: the next call tries again."""
    leaf, day = sql.Identifier(partition), day_of(partition)
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            # The lock that this takes waits for all writers of the partition; later ones fire the trigger. One for each
            # row: one for each statement would not see rows that are written by way of the table.
            trigger = sql.SQL(
                "CREATE OR REPLACE TRIGGER reopen_day AFTER INSERT OR UPDATE ON {} FOR EACH ROW"
                " EXECUTE FUNCTION reopen_day({}, {})"
            )
            connection.execute(trigger.format(leaf, sql.Literal(dataset.name), sql.Literal(str(day))))
            note = sql.SQL(
                "INSERT INTO closed_days SELECT {dataset}, {day}, coalesce((extract(epoch FROM min({time})) * 1000000)"
                "::bigint, {least}), coalesce((extract(epoch FROM max({time})) * 1000000)::bigint, {greatest}),"
                " coalesce(max(id), -1) FROM {leaf} ON CONFLICT DO NOTHING"
            )
            values = {"dataset": dataset.name, "day": day, "least": _NONE_LEAST, "greatest": _NONE_GREATEST}
            connection.execute(note.format(time=sql.Identifier(dataset.time), leaf=leaf, **values))
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def known(fetch: Fetch, dataset: Dataset) -> list[ClosedDay]:
    """The notes that hold now: read them anew for each query. None when no day was ever closed."""
    if fetch(sql.SQL("SELECT to_regclass('closed_days')").format(), ()) == [(None,)]:
        return []
    query = sql.SQL("SELECT day, least, greatest, last_id FROM closed_days WHERE dataset = {}").format(dataset.name)
    return [ClosedDay(*row) for row in fetch(query, ())]


def without(days: Iterable[ClosedDay]) -> sql.Composable:
    """A condition to be added to others: no row of these days."""
    conditions = [
        sql.SQL(" AND (created_at < {} OR created_at >= {})").format(_midnight(first), _midnight(last + 1))
        for first, last in _ranges(sorted(day.day for day in days))
    ]
    return sql.Composed(conditions)


def outside(days: Iterable[ClosedDay], start: int | None, end: int | None, first_id: int = 0) -> list[ClosedDay]:
    """Those that hold no row with start <= time < end and first_id <= id."""
    return [
        day
        for day in days
        if (start is not None and day.greatest < start)
        or (end is not None and day.least >= end)
        or day.last_id < first_id
    ]


def _ranges(days: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of consecutive days, first and last."""
    ranges: list[tuple[int, int]] = []
    for day in days:
        if ranges and ranges[-1][1] == day - 1:
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return ranges


def _midnight(day: int) -> sql.Literal:
    return sql.Literal(midnight(day))
