"""Queries as SQL, and their execution."""

import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error

from services.core.dataset import CREATED_AT, ID, Column
from services.core.errors import QueryTimeout
from services.core.instants import DAY
from services.core.queries import AggregateQuery, ListQuery, Query, QueryResult, StatsQuery, TrafficQuery
from services.core.result_size import MAX_GROUPS, MAX_RESULT_BYTES, gather_pages, refuse_many_groups, too_large
from services.core.rows import Row
from services.core.stopping import Stop
from services.stores.clickhouse import STORE, rollups, traffic
from services.stores.clickhouse.client import TIMEOUT, TOO_LARGE, translated
from services.stores.clickhouse.names import quoted, stored_name
from services.stores.clickhouse.statements import Statement, canonical, columns, select, where

_RECENT = (10_000_000, DAY)  # microseconds: rows of this age are searched first for the newest rows (ADR 0011)
# The server counts the memory of its blocks, which is more than the size of the rows. So the server stops only results
# that are far too large, and `gather_pages` decides about the others, as it does for every store.
_SERVER_BYTES = 4 * MAX_RESULT_BYTES


class Execution:
    """Runs the statements of one query, all within the query's time, and adds up what they cost.

    `milliseconds` is the time that the server reports, or the time measured here where the server reports none.
    """

    def __init__(self, client: Client, seconds: float, stop: Stop | None = None, *, scan: bool) -> None:
        self._client = client
        self._stop = stop or Stop()
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        # The server caches which ranges of rows a condition excludes. A scan for comparison must read these rows, too.
        self._settings = {"use_query_condition_cache": 0} if scan else {}
        self.milliseconds = 0.0
        self.scanned: dict[str, Any] = {}

    def fetch(self, statement: str, parameters: dict[str, Any]) -> list[Row]:
        left = max(0.001, self._deadline - time.monotonic())  # 0 would be no limit
        query_id = str(uuid.uuid4())
        settings = {
            **self._settings,
            "max_execution_time": f"{left:.3f}",
            "max_result_bytes": _SERVER_BYTES,
            "query_id": query_id,
        }
        start = time.perf_counter()
        with translated(), self._stop.calling(partial(_kill, self._client, query_id)):
            try:
                result = self._client.query(statement, parameters, settings=settings)
            except Error as error:
                if error.code == TIMEOUT:
                    raise QueryTimeout(STORE.name, self._seconds) from error
                if error.code == TOO_LARGE:
                    raise too_large() from error
                raise
        self._add(result.summary, time.perf_counter() - start)
        return gather_pages([[tuple(row) for row in result.result_rows]])

    def _add(self, summary: Mapping[str, Any], measured: float) -> None:
        self.milliseconds += int(summary["elapsed_ns"]) / 1e6 if summary.get("elapsed_ns") else measured * 1e3
        for ours, theirs in (("rows", "read_rows"), ("bytes", "read_bytes")):
            if theirs in summary:
                self.scanned[ours] = self.scanned.get(ours, 0) + int(summary[theirs])


def _kill(client: Client, query_id: str) -> None:
    """Ask the server to end a statement. Returns before the statement has ended."""
    with translated():
        client.raw_query(f"KILL QUERY WHERE query_id = '{query_id}' ASYNC")


def run(execution: Execution, query: Query, as_of: int) -> QueryResult:
    """Return the query's result as of batch `as_of`. Raises as `StoreReader.execute` does."""
    plan = rollups.plan(query, as_of)
    counting = rollups.statement(plan) if plan else None
    total = None
    match query:
        case ListQuery():
            rows = _page(execution, query, as_of)
            if query.count:
                total = execution.fetch(*(counting or _count(query, as_of)))[0][0]
        case AggregateQuery():
            rows = refuse_many_groups(execution.fetch(*(counting or _aggregate(query, as_of))))
        case TrafficQuery():
            rows = execution.fetch(*(counting or traffic.statement(query, as_of)))
        case StatsQuery():
            rows = execution.fetch(*(counting or _count(query, as_of)))
    return QueryResult(rows, execution.milliseconds, "rollup" if plan else "scan", total, execution.scanned)


def _page(execution: Execution, query: ListQuery, as_of: int) -> list[Row]:
    """Return the rows of a list. For the newest rows, the last seconds and the last day are read first.

    A page that these fill needs few of the table's ClickHouse parts.
    """
    conditions, parameters = where(query.dataset, query.filters, as_of)
    for since in _recent(query):
        time_column = stored_name(query.dataset.by_name[query.dataset.time])
        recent = f"{time_column} >= fromUnixTimestamp64Micro({{since:Int64}}, 'UTC')"
        text, values = _list(query, f"{recent} AND {conditions}", {**parameters, "since": since})
        rows = execution.fetch(f"{text} SETTINGS max_threads = 1", values)
        if len(rows) == query.limit:
            return rows
    return execution.fetch(*_list(query, conditions, parameters))


def _recent(query: ListQuery) -> list[int]:
    """Return the times from which rows are searched first; none if the query excludes older rows anyway."""
    if not query.newest_first:
        return []
    now, before, start = time.time_ns() // 1000, query.before, query.filters.start
    times = [min(now, now if before is None else before) - span for span in _RECENT]
    return [since for since in times if start is None or start < since]


def _list(query: ListQuery, where: str, parameters: Mapping[str, Any]) -> Statement:
    dataset = query.dataset
    by_name = {column.name: column for column in (ID, CREATED_AT, *dataset.columns)}
    names = dict.fromkeys((query.order_by, ID.name))
    direction = "DESC" if query.descending else "ASC"
    order = ", ".join(f"{stored_name(by_name[name])} {direction}" for name in names)
    page = {**parameters, "limit": query.limit, "offset": query.offset}
    if query.after:
        where += f" AND {_after(by_name[query.order_by], '<' if query.descending else '>')}"
        page |= {"after": query.after[0], "after_id": query.after[1]}
    rest = f"ORDER BY {order} LIMIT {{limit:UInt64}} OFFSET {{offset:UInt64}}"
    # A page reads little: planning which columns to read first, as WHERE does, would take longer than reading.
    return select(columns(dataset), dataset, where, rest, "PREWHERE"), page


def _after(column: Column, operator: str) -> str:
    """Return the condition for rows beyond (`after`, `after_id`). Its first part alone can use the table's order."""
    if column is ID:
        return f"id {operator} {{after_id:Int64}}"
    name, value = stored_name(column), "{after:String}"
    if column.kind == "timestamp":
        value = "fromUnixTimestamp64Micro({after:Int64}, 'UTC')"
    return f"{name} {operator}= {value} AND ({name} {operator} {value} OR id {operator} {{after_id:Int64}})"


def _count(query: Query, as_of: int) -> Statement:
    conditions, parameters = where(query.dataset, query.filters, as_of)
    return select("count()", query.dataset, conditions), parameters


def _aggregate(query: AggregateQuery, as_of: int) -> Statement:
    conditions, parameters = where(query.dataset, query.filters, as_of)
    keys = []
    if query.bucket:
        instant = canonical(query.dataset.by_name[query.dataset.time])
        keys.append(f"{instant} - {instant} % {query.bucket:d}")
    if query.group_by:
        keys.append(quoted(query.group_by))
    order = [*([] if query.bucket else ["count() DESC"]), *keys]
    rest = f"GROUP BY {', '.join(keys)} ORDER BY {', '.join(order)} LIMIT {MAX_GROUPS + 1}"
    return select(", ".join([*keys, "count()"]), query.dataset, conditions, rest), parameters
