"""Questions as SQL: names come from dataset descriptions, every value is a parameter."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, cast

from psycopg import sql

from services.core.bounds import MAX_GROUPS, few_groups, gathered
from services.core.dataset import CREATED_AT, ID, Dataset
from services.core.ids import end_id
from services.core.instants import DAY, to_datetime
from services.core.queries import (
    AggregateQuestion,
    Answer,
    Filters,
    ListQuestion,
    Question,
    StatsQuestion,
    like_pattern,
)
from services.core.rows import Row
from services.rollups import postgres as rollup
from services.stores.postgres import closed_days
from services.stores.postgres.closed_days import ClosedDay
from services.stores.postgres.tables import Connection

_NEWEST_DAYS = 2  # closed days read first, beside those that are not closed
_ROWS_AT_ONCE = 20  # taken from the server: a row may have a quarter of a megabyte


class Asked:
    """The statements of one question: all within its time, which is summed up without what lies between them."""

    def __init__(self, connection: Connection, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self.milliseconds = 0.0

    def fetch(self, query: sql.Composed, parameters: Sequence[Any]) -> list[Row]:
        left = max(1, int((self._deadline - time.monotonic()) * 1e3))  # milliseconds; 0 would be no limit
        self._connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(left),))
        start = time.perf_counter()
        with closing(self._parts(query, parameters)) as parts:  # the connection is locked until the stream is closed
            rows = gathered(parts)
        self.milliseconds += (time.perf_counter() - start) * 1e3
        return rows

    def _parts(self, query: sql.Composed, parameters: Sequence[Any]) -> Generator[list[Row], None, None]:
        stream = self._connection.cursor().stream(query, parameters, binary=True, size=_ROWS_AT_ONCE)
        with closing(cast(Generator[Row, None, None], stream)) as rows:
            while part := list(islice(rows, _ROWS_AT_ONCE)):
                yield part


def answer(asked: Asked, question: Question, as_of: int) -> Answer:
    table = sql.Identifier(question.dataset.name)
    days = closed_days.known(asked.fetch, question.dataset)
    where, parameters = _where(question.filters, question.dataset, as_of)
    outside = closed_days.outside(days, question.filters.start, question.filters.end)
    where += closed_days.without(outside)
    count = sql.SQL("SELECT count(*) FROM {} WHERE {}").format(table, where)
    counted = rollup.counted(asked.fetch, question, as_of, partial(_elsewhere, days))
    total = None
    match question:
        case ListQuestion():
            rows = _page(asked, question, as_of, days)
            if question.count:
                total = (counted or asked.fetch(count, parameters))[0][0]
        case AggregateQuestion():
            rows = few_groups(
                asked.fetch(_aggregate(question, table, where), parameters) if counted is None else counted
            )
        case StatsQuestion():
            rows = counted or asked.fetch(count, parameters)
    return Answer(rows, asked.milliseconds, "scan" if counted is None else "rollup", total)


def _elsewhere(days: Sequence[ClosedDay], start: int | None, end: int | None, first_id: int) -> sql.Composable:
    return closed_days.without(closed_days.outside(days, start, end, first_id))


def _page(asked: Asked, question: ListQuestion, as_of: int, days: Sequence[ClosedDay]) -> list[Row]:
    """The rows of a list. Of one newest first, the days that are likely to hold its page are read first."""
    filters, by_time = question.filters, question.order_by == question.dataset.time
    end = question.beyond if question.newest_first else filters.end
    outside = closed_days.outside(days, filters.start, end)
    if question.descending and (by_time or question.order_by == CREATED_AT.name):
        newest_last = sorted((_newest(day, by_time), day) for day in set(days) - set(outside))
        older = newest_last[:-_NEWEST_DAYS]
        rows = _rows(asked, question, as_of, [*outside, *(day for _, day in older)])
        last = rows[-1][question.dataset.column_names.index(question.order_by)] if len(rows) == question.limit else -1
        if not older or last > older[-1][0]:
            return rows
        # Whatever is older than the last row of a full page has no place in it.
        outside += [day for newest, day in older if newest < last]
    return _rows(asked, question, as_of, outside)


def _newest(day: ClosedDay, by_time: bool) -> int:
    """No row of the day is newer, by the dataset's time or by its acceptance."""
    return day.greatest if by_time else (day.day + 1) * DAY - 1


def _rows(asked: Asked, question: ListQuestion, as_of: int, left_out: Sequence[ClosedDay]) -> list[Row]:
    where, parameters = _where(question.filters, question.dataset, as_of)
    later, place = _after(question)
    page = [*parameters, *place, question.limit, question.offset]
    table = sql.Identifier(question.dataset.name)
    return asked.fetch(_list(question, table, where + later + closed_days.without(left_out)), page)


def _list(question: ListQuestion, table: sql.Identifier, where: sql.Composable) -> sql.Composed:
    direction = sql.SQL(" DESC" if question.descending else " ASC")
    order = sql.SQL(", ").join(sql.Identifier(name) + direction for name in _order(question))
    return sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s OFFSET %s").format(
        columns(question.dataset), table, where, order
    )


def _order(question: ListQuestion) -> list[str]:
    return list(dict.fromkeys((question.order_by, ID.name)))


def _after(question: ListQuestion) -> tuple[sql.Composed, list[Any]]:
    """The condition for what comes later than `after`, to be added to others, and its parameters."""
    if question.after is None:
        return sql.Composed([]), []
    names = _order(question)
    operator = sql.SQL("<" if question.descending else ">")
    columns = sql.SQL(", ").join(map(sql.Identifier, names))
    places = sql.SQL(", ").join(sql.Placeholder() * len(names))
    kinds = {column.name: column.kind for column in (ID, CREATED_AT, *question.dataset.columns)}
    value: Any
    value, row_id = question.after
    if kinds[question.order_by] == "timestamp":
        value = to_datetime(value)
    return sql.SQL(" AND ({}) {} ({})").format(columns, operator, places), [value, row_id][: len(names)]


def _aggregate(question: AggregateQuestion, table: sql.Identifier, where: sql.Composable) -> sql.Composed:
    keys: list[sql.Composable] = []
    if question.bucket:
        keys.append(rollup.time_bin(timedelta(microseconds=question.bucket), question.dataset.time))
    if question.group_by:
        keys.append(sql.Identifier(question.group_by))
    numbers = sql.SQL(", ").join(map(sql.Literal, range(1, len(keys) + 1)))
    order = numbers if question.bucket else sql.SQL("count(*) DESC, ") + numbers
    return sql.SQL("SELECT {}, count(*) FROM {} WHERE {} GROUP BY {} ORDER BY {} LIMIT {}").format(
        sql.SQL(", ").join(keys), table, where, numbers, order, MAX_GROUPS + 1
    )


def columns(dataset: Dataset) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, dataset.column_names))


def _where(filters: Filters, dataset: Dataset, as_of: int) -> tuple[sql.Composed, list[Any]]:
    conditions: list[sql.Composable] = [sql.SQL("id < %s")]
    parameters: list[Any] = [end_id(as_of)]
    for name, value in filters.equals:
        conditions.append(sql.SQL("{} = %s").format(sql.Identifier(name)))
        parameters.append(value)
    for operator, bound in ((sql.SQL(">="), filters.start), (sql.SQL("<"), filters.end)):
        if bound is not None:
            conditions.append(sql.SQL("{} {} %s").format(sql.Identifier(dataset.time), operator))
            parameters.append(to_datetime(bound))
    if filters.text and dataset.search:
        conditions.append(sql.SQL("{} LIKE %s").format(sql.Identifier(dataset.search)))
        parameters.append(like_pattern(filters.text))
    elif filters.text:
        conditions.append(sql.SQL("false"))
    return sql.SQL(" AND ").join(conditions), parameters
