"""Notes about the partitions of closed days, by which a query excludes partitions that hold none of its rows.

A day is closed once it is over. `close` then notes the least and the greatest time and id of the day's rows. A row that
arrives later, because a clock was put back, deletes the note in its own transaction, by a trigger. So the bounds of a
note are never too narrow, and a day without a note is always read.

With hundreds of partitions, planning is what makes a query slow. PostgreSQL plans only the partitions that a condition
on `created_at` does not exclude.
"""

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from services.core.dataset import Dataset
from services.core.instants import DAY
from services.core.rows import Row
from services.postgres.clock import now_microseconds
from services.postgres.connection import Connection, translated
from services.stores.postgres import schema
from services.stores.postgres.tables import day_of, midnight, partition_name, partitions, summarize_ids

_DAYS_AT_ONCE = 40
_LOCK_TIMEOUT = "2s"  # to wait for writers of a closed day, which end within milliseconds unless one hangs

_NONE_LEAST, _NONE_GREATEST = (1 << 63) - 1, -1  # bounds of a day without rows, which match no condition
_EDGE_PAGES = 64  # that are read at the start and at the end of a partition's table

Fetch = Callable[[sql.Composed, Sequence[Any]], list[Row]]


class ClosedDay(NamedTuple):
    """The note of a day. `least` and `greatest` are bounds of the times of its rows, in microseconds."""

    day: int
    least: int
    greatest: int
    last_id: int


def close(connection: Connection, dataset: Dataset) -> int:
    """Note the bounds of closed days that have no note yet, and return how many were noted.

    One call handles a few days, the newest first, each in a transaction of its own. It reads each partition's indexes
    and a few pages of its table. Called by `logpipe maintain`; blocks. Raises StoreDown.
    """
    closed = 0
    with translated():
        schema.require(connection)
        query = "SELECT day FROM closed_days WHERE dataset = %s AND first_id IS NOT NULL"
        days = connection.execute(query, (dataset.name,))
        noted = {partition_name(dataset, day) for (day,) in days}
        today = partition_name(dataset, now_microseconds(connection) // DAY)
        over = (name for name in partitions(connection, dataset) - noted if name < today)
        for name in sorted(over, reverse=True)[:_DAYS_AT_ONCE]:
            closed += _close(connection, dataset, name)
    return closed


def _close(connection: Connection, dataset: Dataset, partition: str) -> bool:
    """Note one day. Return False when a writer still holds the partition; the next call tries again."""
    leaf, day = sql.Identifier(partition), day_of(partition)
    try:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
            # The lock of this statement waits for all writers of the partition; later writers fire the trigger. It is a
            # row trigger, because a statement trigger would not fire for rows that are written by way of the table.
            trigger = sql.SQL(
                "CREATE OR REPLACE TRIGGER reopen_day AFTER INSERT OR UPDATE ON {} FOR EACH ROW"
                " EXECUTE FUNCTION reopen_day({}, {})"
            )
            connection.execute(trigger.format(leaf, sql.Literal(dataset.name), sql.Literal(str(day))))
            times = sql.SQL(
                "SELECT coalesce((extract(epoch FROM min({time})) * 1000000)::bigint, {none_least}),"
                " coalesce((extract(epoch FROM max({time})) * 1000000)::bigint, {none_greatest}) FROM {leaf}"
            ).format(time=sql.Identifier(dataset.time), leaf=leaf, none_least=_NONE_LEAST, none_greatest=_NONE_GREATEST)
            # Each statement reads one index only: one statement for times and ids would read the times row by row.
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
    """Return the least and the greatest id in a partition that has no writers.

    Rows are stored roughly in the order of their ids, so the table's first and last pages give a bound. The BRIN index
    then finds the few ranges of pages that may hold an id beyond that bound.
    """
    leaf = sql.Identifier(partition)
    size = "SELECT (pg_relation_size(%s::regclass) / current_setting('block_size')::int)::int"
    ((pages,),) = connection.execute(size, (f'"{partition}"',)).fetchall()
    low = high = None
    if pages > 2 * _EDGE_PAGES:
        summarize_ids(connection, partition)
        connection.execute("SET LOCAL enable_seqscan = off")  # without statistics, the planner might not use the index
        edges = sql.SQL("SELECT (SELECT min(id) FROM {} WHERE ctid < {}), (SELECT max(id) FROM {} WHERE ctid >= {})")
        first_pages, last_pages = (sql.SQL("'({},0)'::tid").format(at) for at in (_EDGE_PAGES, pages - _EDGE_PAGES))
        ((low, high),) = connection.execute(edges.format(leaf, first_pages, leaf, last_pages)).fetchall()
    below = sql.SQL("" if low is None else "WHERE id <= {}").format(low)
    above = sql.SQL("" if high is None else "WHERE id >= {}").format(high)
    bounds = sql.SQL("SELECT (SELECT min(id) FROM {} {}), (SELECT max(id) FROM {} {})").format(leaf, below, leaf, above)
    ((first, last),) = connection.execute(bounds).fetchall()
    return (_NONE_LEAST, -1) if first is None else (first, last)


def known(fetch: Fetch, dataset: Dataset) -> list[ClosedDay]:
    """Return the notes that are valid now; each query reads them again."""
    query = sql.SQL("SELECT day, least, greatest, last_id FROM closed_days WHERE dataset = {}").format(dataset.name)
    return [ClosedDay(*row) for row in fetch(query, ())]


def without_ids(connection: Connection, dataset: Dataset, first_id: int, end_id: int) -> sql.Composable:
    """Return a condition, to be added to others, that excludes the days without any row of first_id <= id < end_id.

    A note is used only while its partition has the trigger that deletes the note. So a partition that was restored or
    attached by hand is read, whatever the note of its predecessor says. `verify` depends on this.
    """
    guarded = connection.execute(_GUARDED, (f'"{dataset.name}"',)).fetchall()
    query = "SELECT day FROM closed_days WHERE dataset = %s AND (last_id < %s OR first_id >= %s)"
    days = {day for (day,) in connection.execute(query, (dataset.name, first_id, end_id))}
    return _without(days & {day_of(name) for (name,) in guarded})


_GUARDED = """SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
              JOIN pg_trigger ON tgrelid = inhrelid AND tgname = 'reopen_day' AND tgenabled IN ('O', 'A')
              WHERE inhparent = to_regclass(%s)"""


def without(days: Iterable[ClosedDay]) -> sql.Composable:
    """Return a condition, to be added to others, that excludes these days."""
    return _without({day.day for day in days})


def _without(days: Set[int]) -> sql.Composable:
    conditions = [
        sql.SQL(" AND (created_at < {} OR created_at >= {})").format(_midnight(first), _midnight(last + 1))
        for first, last in _ranges(sorted(days))
    ]
    return sql.Composed(conditions)


def outside(days: Iterable[ClosedDay], start: int | None, end: int | None, first_id: int = 0) -> list[ClosedDay]:
    """Return the days that hold no row with start <= time < end and first_id <= id."""
    return [
        day
        for day in days
        if (start is not None and day.greatest < start)
        or (end is not None and day.least >= end)
        or day.last_id < first_id
    ]


def _ranges(days: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges of consecutive days, as pairs of first and last day."""
    ranges: list[tuple[int, int]] = []
    for day in days:
        if ranges and ranges[-1][1] == day - 1:
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return ranges


def _midnight(day: int) -> sql.Literal:
    return sql.Literal(midnight(day))
