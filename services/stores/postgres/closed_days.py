"""What is known of each closed day's partition, so that a query leaves out those that cannot hold what it asks for.

A day is closed once it is over. `close` then notes the least and the greatest time and id of its rows. A
row that comes later all the same, because a clock was put back, deletes the note in its own transaction, by a trigger.
So a note never claims too little, and a day without a note is always read.

With hundreds of partitions, what costs is their planning: PostgreSQL plans only those that a condition on `created_at`
leaves.
"""

from collections.abc import Callable, Iterable, Sequence, Set
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
    first_id   bigint,             -- NULL in notes of an earlier release, which are made anew
    PRIMARY KEY (dataset, day)
);
CREATE OR REPLACE FUNCTION reopen_day() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM closed_days WHERE dataset = TG_ARGV[0] AND day = TG_ARGV[1]::int;
    RETURN NULL;
END $$;
"""
_NONE_LEAST, _NONE_GREATEST = (1 << 63) - 1, -1  # of a day without rows: no condition holds
_EDGE_PAGES = 64  # of a partition's table, at its beginning and at its end

Fetch = Callable[[sql.Composed, Sequence[Any]], list[Row]]


class ClosedDay(NamedTuple):
    """`least`, `greatest`: of the times of its rows, in microseconds."""

    day: int
    least: int
    greatest: int
    last_id: int


def close(connection: Connection, dataset: Dataset) -> int:
    """Note what the partitions of days that are over hold, as far as that is not noted yet; how many.

    The newest come first, and no more than a few in one call, each in a transaction of its own. Of each partition the
    indexes are read and a few pages of its table. Raises StoreDown.
    """
    closed = 0
    with translated():
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            if connection.execute("SELECT to_regclass('closed_days')").fetchone() == (None,):
                connection.execute(_TABLE)
            elif not _knows_first_ids(connection):
                connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                connection.execute("ALTER TABLE closed_days ADD COLUMN first_id bigint")
        query = "SELECT day FROM closed_days WHERE dataset = %s AND first_id IS NOT NULL"
        days = connection.execute(query, (dataset.name,))
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
            times = sql.SQL(
                "SELECT coalesce((extract(epoch FROM min({time})) * 1000000)::bigint, {none_least}),"
                " coalesce((extract(epoch FROM max({time})) * 1000000)::bigint, {none_greatest}) FROM {leaf}"
            ).format(time=sql.Identifier(dataset.time), leaf=leaf, none_least=_NONE_LEAST, none_greatest=_NONE_GREATEST)
            # Each statement asks for what one index answers: beside the ids, the times would be read row by row.
            least, greatest = connection.execute(times).fetchone() or (_NONE_LEAST, _NONE_GREATEST)
            first_id, last_id = _ids(connection, partition)
            connection.execute(
                "INSERT INTO closed_days (dataset, day, least, greatest, first_id, last_id)"
                " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (dataset, day) DO UPDATE SET least = excluded.least,"
                " greatest = excluded.greatest, first_id = excluded.first_id, last_id = excluded.last_id",
                (dataset.name, day, least, greatest, first_id, last_id),
            )
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def _ids(connection: Connection, partition: str) -> tuple[int, int]:
    """The least and the greatest id in a partition that nobody writes.

    Rows come about in the order of their ids, so a bound is found in the table's first and last pages. The BRIN index
    then finds the ranges of pages that may hold an id beyond that bound; these are few.
    """
    leaf = sql.Identifier(partition)
    size = "SELECT (pg_relation_size(%s::regclass) / current_setting('block_size')::int)::int"
    ((pages,),) = connection.execute(size, (f'"{partition}"',)).fetchall()
    low = high = None
    if pages > 2 * _EDGE_PAGES:
        summarize_ids(connection, partition)
        connection.execute("SET LOCAL enable_seqscan = off")  # without statistics, the index might look too expensive
        edges = sql.SQL("SELECT (SELECT min(id) FROM {} WHERE ctid < {}), (SELECT max(id) FROM {} WHERE ctid >= {})")
        first_pages, last_pages = (sql.SQL("'({},0)'::tid").format(at) for at in (_EDGE_PAGES, pages - _EDGE_PAGES))
        ((low, high),) = connection.execute(edges.format(leaf, first_pages, leaf, last_pages)).fetchall()
    below = sql.SQL("" if low is None else "WHERE id <= {}").format(low)
    above = sql.SQL("" if high is None else "WHERE id >= {}").format(high)
    bounds = sql.SQL("SELECT (SELECT min(id) FROM {} {}), (SELECT max(id) FROM {} {})").format(leaf, below, leaf, above)
    ((first, last),) = connection.execute(bounds).fetchall()
    return (_NONE_LEAST, -1) if first is None else (first, last)


def summarize_ids(connection: Connection, partition: str) -> None:
    """Bring the BRIN index of a partition's ids up to date: pages that it does not cover are read by every query."""
    query = """SELECT brin_summarize_new_values(indexrelid) FROM pg_index
               JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam
               WHERE amname = 'brin' AND indrelid = %s::regclass"""
    connection.execute(query, (f'"{partition}"',))


def known(fetch: Fetch, dataset: Dataset) -> list[ClosedDay]:
    """The notes that hold now: read them anew for each query. None when no day was ever closed."""
    if fetch(sql.SQL("SELECT to_regclass('closed_days')").format(), ()) == [(None,)]:
        return []
    query = sql.SQL("SELECT day, least, greatest, last_id FROM closed_days WHERE dataset = {}").format(dataset.name)
    return [ClosedDay(*row) for row in fetch(query, ())]


def without_ids(connection: Connection, dataset: Dataset, first_id: int, end_id: int) -> sql.Composable:
    """A condition to be added to others: no row of the days on which no row has first_id <= id < end_id.

    A note counts only while its partition has the trigger that deletes the note: a partition that was restored or
    attached by hand is read, whatever was noted of the one before it. `verify` depends on this.
    """
    if connection.execute("SELECT to_regclass('closed_days')").fetchone() == (None,):
        return sql.SQL("")
    if not _knows_first_ids(connection):
        return sql.SQL("")
    guarded = connection.execute(_GUARDED, (f'"{dataset.name}"',)).fetchall()
    query = "SELECT day FROM closed_days WHERE dataset = %s AND (last_id < %s OR first_id >= %s)"
    days = {day for (day,) in connection.execute(query, (dataset.name, first_id, end_id))}
    return _without(days & {day_of(name) for (name,) in guarded})


_GUARDED = """SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
              JOIN pg_trigger ON tgrelid = inhrelid AND tgname = 'reopen_day' AND tgenabled IN ('O', 'A')
              WHERE inhparent = to_regclass(%s)"""


def _knows_first_ids(connection: Connection) -> bool:
    query = """SELECT FROM pg_attribute WHERE attrelid = to_regclass('closed_days') AND attname = 'first_id'
               AND NOT attisdropped"""
    return connection.execute(query).fetchone() is not None


def without(days: Iterable[ClosedDay]) -> sql.Composable:
    """A condition to be added to others: no row of these days."""
    return _without({day.day for day in days})


def _without(days: Set[int]) -> sql.Composable:
    conditions = [
        sql.SQL(" AND (created_at < {} OR created_at >= {})").format(_midnight(first), _midnight(last + 1))
        for first, last in _ranges(sorted(days))
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
