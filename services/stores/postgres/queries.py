"""Queries as SQL, and their execution. Names come from dataset descriptions, and every value is a parameter."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from datetime import timedelta
from itertools import islice
from typing import Any, cast

from psycopg import sql

from services.core.dataset import CREATED_AT, ID, Dataset
from services.core.instants import DAY, to_datetime
from services.core.queries import AggregateQuery, ListQuery, Query, QueryResult, StatsQuery, TrafficQuery
from services.core.result_size import MAX_GROUPS, gather_pages, refuse_many_groups
from services.core.rows import Row
from services.postgres.connection import Connection
from services.stores.postgres import closed_days, rollups, traffic
from services.stores.postgres.closed_days import ClosedDay
from services.stores.postgres.conditions import Statement, where, where_in

_NEWEST_DAYS = 2  # closed days that are read first, with the days that are not closed
_ROWS_AT_ONCE = 20  # fetched from the server: a row may have a quarter of a megabyte


class Execution:
    """Runs the statements of one query in one transaction, all before `deadline` (a monotonic time).

    `milliseconds` adds up the time of the statements, without the time between them.
    """

    def __init__(self, connection: Connection, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self.milliseconds = 0.0

    def fetch(self, statement: sql.Composed, parameters: Sequence[Any]) -> list[Row]:
        left = max(1, int((self._deadline - time.monotonic()) * 1e3))  # milliseconds; 0 would be no limit
        self._connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(left),))
        start = time.perf_counter()
        with closing(self._pages(statement, parameters)) as pages:  # an open stream would block the connection
            rows = gather_pages(pages)
        self.milliseconds += (time.perf_counter() - start) * 1e3
        return rows

    def _pages(self, statement: sql.Composed, parameters: Sequence[Any]) -> Generator[list[Row], None, None]:
        stream = self._connection.cursor().stream(statement, parameters, binary=True, size=_ROWS_AT_ONCE)
        with closing(cast(Generator[Row, None, None], stream)) as rows:
            while page := list(islice(rows, _ROWS_AT_ONCE)):
                yield page


def run(execution: Execution, query: Query, as_of: int) -> QueryResult:
    """Return the query's result as of batch `as_of`. Raises as `StoreReader.execute` does, with psycopg's errors."""
    days = closed_days.known(execution.fetch, query.dataset)
    plan = rollups.plan(execution.fetch, query, as_of)
    counted = execution.fetch(*rollups.statement(plan, days)) if plan else None
    total = None
    match query:
        case ListQuery():
            rows = _page(execution, query, as_of, days)
            if query.count:
                total = (counted or execution.fetch(*_count(query, as_of, days)))[0][0]
        case AggregateQuery():
            rows = refuse_many_groups(execution.fetch(*_aggregate(query, as_of, days)) if counted is None else counted)
        case TrafficQuery():
            rows = execution.fetch(*traffic.statement(query, as_of, days)) if counted is None else counted
        case StatsQuery():
            rows = counted or execution.fetch(*_count(query, as_of, days))
    return QueryResult(rows, execution.milliseconds, "rollup" if plan else "scan", total)


def _page(execution: Execution, query: ListQuery, as_of: int, days: Sequence[ClosedDay]) -> list[Row]:
    """Return the rows of a list. For the newest rows, the days that are likely to hold the page are read first."""
    filters, by_time = query.filters, query.order_by == query.dataset.time
    end = query.before if query.newest_first else filters.end
    outside = closed_days.outside(days, filters.start, end)
    if query.descending and (by_time or query.order_by == CREATED_AT.name):
        newest_last = sorted((_newest(day, by_time), day) for day in set(days) - set(outside))
        older = newest_last[:-_NEWEST_DAYS]
        rows = _rows(execution, query, as_of, [*outside, *(day for _, day in older)])
        last = rows[-1][query.dataset.column_names.index(query.order_by)] if len(rows) == query.limit else -1
        if not older or last > older[-1][0]:
            return rows
        # Days whose rows are all older than the last row of a full page cannot contribute to the page.
        outside += [day for newest, day in older if newest < last]
    return _rows(execution, query, as_of, outside)


def _newest(day: ClosedDay, by_time: bool) -> int:
    """Return an upper bound of the times of the day's rows: of the dataset's time, or of their acceptance."""
    return day.greatest if by_time else (day.day + 1) * DAY - 1


def _rows(execution: Execution, query: ListQuery, as_of: int, left_out: Sequence[ClosedDay]) -> list[Row]:
    conditions, parameters = where(query.filters, query.dataset, as_of)
    later, place = _after(query)
    page = [*parameters, *place, query.limit, query.offset]
    table = sql.Identifier(query.dataset.name)
    return execution.fetch(_list(query, table, conditions + later + closed_days.without(left_out)), page)


def _list(query: ListQuery, table: sql.Identifier, where: sql.Composable) -> sql.Composed:
    direction = sql.SQL(" DESC" if query.descending else " ASC")
    order = sql.SQL(", ").join(sql.Identifier(name) + direction for name in _order(query))
    return sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s OFFSET %s").format(
        columns(query.dataset), table, where, order
    )


def _order(query: ListQuery) -> list[str]:
    return list(dict.fromkeys((query.order_by, ID.name)))


def _after(query: ListQuery) -> Statement:
    """Return the condition for rows that are sorted after `query.after`, to be added to others, and its parameters."""
    if query.after is None:
        return sql.Composed([]), []
    names = _order(query)
    operator = sql.SQL("<" if query.descending else ">")
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    places = sql.SQL(", ").join(sql.Placeholder() * len(names))
    kinds = {column.name: column.kind for column in (ID, CREATED_AT, *query.dataset.columns)}
    value: Any
    value, row_id = query.after
    if kinds[query.order_by] == "timestamp":
        value = to_datetime(value)
    return sql.SQL(" AND ({}) {} ({})").format(columns, operator, places), [value, row_id][: len(names)]


def _count(query: Query, as_of: int, days: Sequence[ClosedDay]) -> Statement:
    conditions, parameters = where_in(query, as_of, days)
    statement = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(sql.Identifier(query.dataset.name), conditions)
    return statement, parameters


def _aggregate(query: AggregateQuery, as_of: int, days: Sequence[ClosedDay]) -> Statement:
    conditions, parameters = where_in(query, as_of, days)
    keys: list[sql.Composable] = []
    if query.bucket:
        keys.append(rollups.time_bin(timedelta(microseconds=query.bucket), query.dataset.time))
    if query.group_by:
        keys.append(sql.Identifier(query.group_by))
    numbers = sql.SQL(", ").join(map(sql.Literal, range(1, len(keys) + 1)))
    order = numbers if query.bucket else sql.SQL("count(*) DESC, ") + numbers
    statement = sql.SQL("SELECT {}, count(*) FROM {} WHERE {} GROUP BY {} ORDER BY {} LIMIT {}").format(
        sql.SQL(", ").join(keys), sql.Identifier(query.dataset.name), conditions, numbers, order, MAX_GROUPS + 1
    )
    return statement, parameters


def columns(dataset: Dataset) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, dataset.column_names))
