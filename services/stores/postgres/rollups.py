"""The rollup in PostgreSQL is a table of counts, to which `rollup_chunks` adds chunk by chunk.

A query as of a batch adds up the chunks below that batch, and counts the rows themselves from the last chunk on.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

from psycopg import sql

from services.core import rollups
from services.core.dataset import Dataset
from services.core.instants import DAY, to_datetime
from services.core.local_week import FIRST_MONDAY, Offset
from services.core.queries import AggregateQuery, Query, TrafficQuery
from services.core.result_size import MAX_GROUPS
from services.core.rollups import Plan, Times
from services.postgres.connection import Connection, translated
from services.stores.postgres import closed_days
from services.stores.postgres.closed_days import ClosedDay, Fetch

LOCK = 7_316_004  # advisory lock of the process that creates a rollup or adds to it

_DELETED_AT_ONCE = 20  # chunks of one transaction


def prepare(connection: Connection, dataset: Dataset) -> None:
    """Create what the dataset's rollup lacks: its table of counts, and the indexes. The dataset's table must exist.

    Several processes may call it at once. Raises StoreDown.
    """
    name = rollups.name(dataset)
    table = sql.Identifier(name)
    with translated(), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        if connection.execute("SELECT to_regclass(%s)", (f'"{name}"',)).fetchone() == (None,):
            connection.execute("DELETE FROM rollup_chunks WHERE rollup = %s", (name,))
            create = sql.SQL(
                "CREATE TABLE {} AS SELECT 0::bigint AS until_batch, {}, 0::bigint AS row_count FROM {} WITH NO DATA"
            )
            connection.execute(create.format(table, keys(dataset), sql.Identifier(dataset.name)))
            connection.execute(sql.SQL("CREATE INDEX ON {} (at_minute)").format(table))
    # This is a transaction of its own: an index over a large rollup takes long, and queries wait for rollup_chunks.
    with translated(), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
        if connection.execute(_FOUND_BY_CHUNK, (f'"{name}"',)).fetchone() is None:
            connection.execute(sql.SQL("CREATE INDEX ON {} (until_batch)").format(table))


_FOUND_BY_CHUNK = """SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
                     WHERE indrelid = to_regclass(%s) AND attname = 'until_batch'"""


def forget(connection: Connection, dataset: Dataset, before: int, keep: Collection[int] = ()) -> None:
    """Delete the chunks of days of acceptance below `before`, except those in `keep`, before their rows are dropped.

    Days are counted from 1970-01-01 UTC. A few chunks are deleted in each transaction. The newest chunk of a rollup
    stays as a row without counts, because it marks the batch up to which the rollup has counted. Raises StoreDown.
    """
    name = rollups.name(dataset)
    values: dict[str, Any] = {
        "rollup": name,
        "before": to_datetime(before * DAY).date(),
        "keep": [to_datetime(day * DAY).date() for day in keep],
        "limit": _DELETED_AT_ONCE,
    }
    delete = sql.SQL("DELETE FROM {} WHERE until_batch = ANY(%s)").format(sql.Identifier(name))
    with translated():
        while True:
            with connection.transaction():
                # This waits for a chunk that is being added or merged.
                connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (LOCK, name))
                chunks = [until for (until,) in connection.execute(_FORGETTABLE, values)]
                if not chunks:
                    return
                connection.execute(delete, (chunks,))
                connection.execute(
                    "DELETE FROM rollup_chunks WHERE rollup = %(rollup)s AND until_batch = ANY(%(chunks)s)"
                    " AND until_batch < (SELECT max(until_batch) FROM rollup_chunks WHERE rollup = %(rollup)s)",
                    {**values, "chunks": chunks},
                )
                connection.execute(
                    "UPDATE rollup_chunks SET row_count = 0 WHERE rollup = %s AND until_batch = ANY(%s)",
                    (name, chunks),
                )


_FORGETTABLE = """
    SELECT until_batch FROM rollup_chunks
    WHERE rollup = %(rollup)s AND day < %(before)s AND day <> ALL(%(keep)s::date[])
      AND (row_count > 0 OR until_batch < (SELECT max(until_batch) FROM rollup_chunks WHERE rollup = %(rollup)s))
    ORDER BY day LIMIT %(limit)s"""


def keys(dataset: Dataset) -> sql.Composed:
    """Return the columns by which rows are counted: their minute, named `at_minute`, and the groupings."""
    minute = sql.SQL("{} AS at_minute").format(time_bin(timedelta(minutes=1), dataset.time))
    return sql.SQL(", ").join([minute, *map(sql.Identifier, dataset.groupings)])


def until(fetch: Fetch, rollup: str, limit: int) -> int:
    """Return the highest end of a chunk that is not above batch `limit`, 0 when there is none."""
    statement = sql.SQL(
        "SELECT coalesce(max(until_batch), 0) FROM rollup_chunks WHERE rollup = {} AND until_batch <= {}"
    )
    return int(fetch(statement.format(rollup, limit), ())[0][0])


def plan(fetch: Fetch, query: Query, as_of: int) -> Plan | None:
    """Plan the query for the chunks that exist now. None when a scan must answer. Reads nothing for other queries."""
    if not rollups.covers(query):
        return None
    return rollups.plan(query, until(fetch, rollups.name(query.dataset), as_of + 1), as_of)


def statement(plan: Plan, days: Sequence[ClosedDay]) -> tuple[sql.Composed, list[Any]]:
    """Return the statement that counts by this plan, and its parameters. Its rows have the form of a QueryResult.

    `days`: the notes of closed days, by which it leaves out partitions that hold none of the rows to be counted.
    """
    query, name = plan.query, rollups.name(plan.query.dataset)
    below = sql.SQL("until_batch <= {}").format(plan.until)
    table = name
    if plan.minutes == Times(None, None) and not query.filters.equals and not plan.keys:
        table = "rollup_chunks"  # which has the sums already: a few rows a day, however many counts a day has
        below += sql.SQL(" AND rollup = {}").format(name)
    counts = [_counts(plan, sql.SQL("sum(row_count)"), table, below, "at_minute", plan.minutes)]
    for rows in plan.rows:
        ids = sql.SQL("id >= {} AND id < {}").format(rows.first_id, rows.end_id)
        ids += closed_days.without(closed_days.outside(days, rows.times.start, rows.times.end, rows.first_id))
        counts.append(_counts(plan, sql.SQL("count(*)"), query.dataset.name, ids, query.dataset.time, rows.times))
    groups = [sql.SQL(key) for key in plan.keys]
    count = sql.SQL("coalesce(sum(term), 0)::bigint AS counted")
    text = sql.SQL("SELECT {} FROM ({}) AS terms").format(
        _listed([*groups, count]), sql.SQL(" UNION ALL ").join(counts)
    )
    if groups:
        order = map(sql.SQL, plan.order)
        text += sql.SQL(" GROUP BY {} ORDER BY {} LIMIT {}").format(_listed(groups), _listed(order), MAX_GROUPS + 1)
    return text, [value for _, value in query.filters.equals] * len(counts)


def _counts(plan: Plan, count: sql.SQL, table: str, batches: sql.Composed, time: str, times: Times) -> sql.Composed:
    query, conditions, values = plan.query, [batches], list[sql.Composable]()
    for operator, bound in ((sql.SQL(">="), times.start), (sql.SQL("<"), times.end)):
        if bound is not None:
            instant = to_datetime(bound)
            conditions.append(sql.SQL("{} {} {}").format(sql.Identifier(time), operator, instant))
    for column, _ in query.filters.equals:
        conditions.append(sql.SQL("{} = %s").format(sql.Identifier(column)))
    if isinstance(query, AggregateQuery):
        if query.bucket:
            values.append(time_bin(timedelta(microseconds=query.bucket), time))
        if query.group_by:
            values.append(sql.Identifier(query.group_by))
    if isinstance(query, TrafficQuery) and plan.keys:
        values.append(minute_of_week(query.offsets, time))
    columns = [sql.SQL("{} AS {}").format(value, sql.SQL(key)) for value, key in zip(values, plan.keys, strict=True)]
    text = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        _listed([*columns, sql.SQL("{} AS term").format(count)]),
        sql.Identifier(table),
        sql.SQL(" AND ").join(conditions),
    )
    return text + sql.SQL(" GROUP BY ") + _listed(map(sql.SQL, plan.keys)) if plan.keys else text


def time_bin(width: timedelta, time: str) -> sql.Composed:
    """Return the start of the bucket that contains the column `time`. Buckets are counted from 1970 UTC."""
    return sql.SQL("date_bin({}, {}, TIMESTAMPTZ 'epoch')").format(width, sql.Identifier(time))


def minute_of_week(offsets: Sequence[Offset], time: str) -> sql.Composed:
    """Return the minute of the local week of the column `time`, as `local_week.minute_of_week` does."""
    ahead = sql.SQL("{}").format(offsets[-1].ahead)
    for offset, following in reversed(list(pairwise(offsets))):
        ahead = sql.SQL("CASE WHEN {} < {} THEN {} ELSE {} END").format(
            sql.Identifier(time), to_datetime(following.start), offset.ahead, ahead
        )
    # An interval of microseconds only: days of an interval would follow the time zone of the session.
    local = sql.SQL("({} + ({}) * interval '1 microsecond')").format(sql.Identifier(time), ahead)
    monday = to_datetime(FIRST_MONDAY)
    return sql.SQL(
        "(extract(epoch FROM date_bin('1 minute', {local}, {monday}) - date_bin('7 days', {local}, {monday}))"
        " * 1000000)::bigint"
    ).format(local=local, monday=monday)


def _listed(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)
