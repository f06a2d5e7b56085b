"""Questions as SQL: names come from dataset descriptions, every value is a parameter, bound by the server."""

import time
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import Error

from services.core.bounds import MAX_GROUPS, MAX_RESULT_BYTES, few_groups, gathered, too_large
from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.errors import QueryTimeout
from services.core.ids import end_id
from services.core.instants import DAY
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
from services.core.stopping import Stop
from services.rollups import clickhouse as rollup
from services.stores.clickhouse.client import NAME, TIMEOUT, TOO_LARGE, translated
from services.stores.clickhouse.tables import quoted, stored

_RECENT = (10_000_000, DAY)  # microseconds within which the newest rows are looked for before all others (ADR 0011)
# The server counts the memory of its blocks, which is more than the size of the rows: it is to stop what is far too
# large, and `gathered` decides about the rest as it does for every store.
_SERVER_BYTES = 4 * MAX_RESULT_BYTES


class Asked:
    """The statements of one question: all within its time; what they cost by the server's word, or as measured here."""

    def __init__(self, client: Client, seconds: float, stop: Stop | None = None, *, scan: bool) -> None:
        self._client = client
        self._stop = stop or Stop()
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        # The server remembers which parts of a table a condition does not hold for: no scan to compare others with.
        self._settings = {"use_query_condition_cache": 0} if scan else {}
        self.milliseconds = 0.0
        self.scanned: dict[str, Any] = {}

    def fetch(self, query: str, parameters: dict[str, Any]) -> list[Row]:
        left = max(0.001, self._deadline - time.monotonic())  # 0 would be no limit
        query_id = str(uuid.uuid4())
        settings = {
            **self._settings,
            "max_execution_time": f"{left:.3f}",
            "max_result_bytes": _SERVER_BYTES,
            "query_id": query_id,
        }
        start = time.perf_counter()
        with translated(), self._stop.by(partial(_kill, self._client, query_id)):
            try:
                result = self._client.query(query, parameters, settings=settings)
            except Error as error:
                if error.code == TIMEOUT:
                    raise QueryTimeout(NAME, self._seconds) from error
                if error.code == TOO_LARGE:
                    raise too_large() from error
                raise
        self._add(result.summary, time.perf_counter() - start)
        return gathered([[tuple(row) for row in result.result_rows]])

    def _add(self, summary: Mapping[str, Any], measured: float) -> None:
        self.milliseconds += int(summary["elapsed_ns"]) / 1e6 if summary.get("elapsed_ns") else measured * 1e3
        for ours, theirs in (("rows", "read_rows"), ("bytes", "read_bytes")):
            if theirs in summary:
                self.scanned[ours] = self.scanned.get(ours, 0) + int(summary[theirs])


def _kill(client: Client, query_id: str) -> None:
    """The statement returns before the query has ended."""
    with translated():
        client.raw_query(f"KILL QUERY WHERE query_id = '{query_id}' ASYNC")


def answer(asked: Asked, question: Question, as_of: int) -> Answer:
    dataset = question.dataset
    where, parameters = _where(dataset, question.filters, as_of)
    rolled = rollup.query(question, as_of, stored(dataset.by_name[dataset.time]))
    counting = rolled or (select("count()", dataset, where), parameters)
    total = None
    match question:
        case ListQuestion():
            for statement in (*_recent(question, where, parameters), _list(question, where, parameters)):
                if len(rows := asked.fetch(*statement)) == question.limit:
                    break
            if question.count:
                total = asked.fetch(*counting)[0][0]
        case AggregateQuestion():
            rows = few_groups(asked.fetch(*(rolled or (_aggregate(question, where), parameters))))
        case StatsQuestion():
            rows = asked.fetch(*counting)
    return Answer(rows, asked.milliseconds, "rollup" if rolled else "scan", total, asked.scanned)


def select(
    what: str, dataset: Dataset, where: str, rest: str = "", clause: Literal["WHERE", "PREWHERE"] = "WHERE"
) -> str:
    """Names come from dataset descriptions; every value is a parameter, bound by the server."""
    return f"SELECT {what} FROM {quoted(dataset.name)} {clause} {where} {rest}"  # noqa: S608


def _recent(question: ListQuestion, where: str, parameters: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The page of the newest rows, of the last seconds only, and of the last day only.

    Where these rows fill the page, few parts had to be opened: those of all other days were not.
    """
    dataset, filters = question.dataset, question.filters
    if not question.newest_first:
        return
    now, beyond = time.time_ns() // 1000, question.beyond
    for span in _RECENT:
        since = min(now, now if beyond is None else beyond) - span
        if filters.start is not None and filters.start >= since:  # the whole question asks for no more
            return
        recent = f"{stored(dataset.by_name[dataset.time])} >= fromUnixTimestamp64Micro({{since:Int64}}, 'UTC')"
        query, page = _list(question, f"{recent} AND {where}", {**parameters, "since": since})
        yield f"{query} SETTINGS max_threads = 1", page


def _list(question: ListQuestion, where: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    dataset = question.dataset
    by_name = {column.name: column for column in (ID, CREATED_AT, *dataset.columns)}
    names = dict.fromkeys((question.order_by, ID.name))
    direction = "DESC" if question.descending else "ASC"
    order = ", ".join(f"{stored(by_name[name])} {direction}" for name in names)
    page = {**parameters, "limit": question.limit, "offset": question.offset}
    if question.after:
        where += f" AND {_after(by_name[question.order_by], '<' if question.descending else '>')}"
        page |= {"after": question.after[0], "after_id": question.after[1]}
    rest = f"ORDER BY {order} LIMIT {{limit:UInt64}} OFFSET {{offset:UInt64}}"
    # Little is read: to plan what of it to read first, as WHERE would, takes longer.
    return select(columns(dataset), dataset, where, rest, "PREWHERE"), page


def _after(column: Column, operator: str) -> str:
    """What comes later than (`after`, `after_id`); written so that the first part alone can use the table's order."""
    if column is ID:
        return f"id {operator} {{after_id:Int64}}"
    name, value = stored(column), "{after:String}"
    if column.kind == "timestamp":
        value = "fromUnixTimestamp64Micro({after:Int64}, 'UTC')"
    return f"{name} {operator}= {value} AND ({name} {operator} {value} OR id {operator} {{after_id:Int64}})"


def _aggregate(question: AggregateQuestion, where: str) -> str:
    keys = []
    if question.bucket:
        time = _canonical(question.dataset.by_name[question.dataset.time])
        keys.append(f"{time} - {time} % {question.bucket:d}")
    if question.group_by:
        keys.append(quoted(question.group_by))
    order = [*([] if question.bucket else ["count() DESC"]), *keys]
    rest = f"GROUP BY {', '.join(keys)} ORDER BY {', '.join(order)} LIMIT {MAX_GROUPS + 1}"
    return select(", ".join([*keys, "count()"]), question.dataset, where, rest)


def columns(dataset: Dataset) -> str:
    """All columns, in canonical order and form."""
    return ", ".join(map(_canonical, (ID, CREATED_AT, *dataset.columns)))


def _canonical(column: Column) -> str:
    match column.kind:
        case "timestamp":
            return f"toUnixTimestamp64Micro({stored(column)})"
        case "uuid":
            return f"toString({stored(column)})"
    return stored(column)


def _where(dataset: Dataset, filters: Filters, as_of: int) -> tuple[str, dict[str, Any]]:
    conditions: list[str] = ["id < {end_id:Int64}"]
    parameters: dict[str, Any] = {"end_id": end_id(as_of)}
    for index, (name, value) in enumerate(filters.equals):
        kind = "UUID" if dataset.by_name[name].kind == "uuid" else "String"
        conditions.append(f"{quoted(name)} = {{equals{index}:{kind}}}")
        parameters[f"equals{index}"] = value
    for operator, name, bound in ((">=", "start", filters.start), ("<", "end", filters.end)):
        if bound is not None:
            column = stored(dataset.by_name[dataset.time])
            conditions.append(f"{column} {operator} fromUnixTimestamp64Micro({{{name}:Int64}}, 'UTC')")
            parameters[name] = bound
    if filters.text:
        conditions.append(f"{quoted(dataset.search)} LIKE {{text:String}}" if dataset.search else "false")
        parameters["text"] = like_pattern(filters.text)
    return " AND ".join(conditions), parameters
