"""ClickHouse, over HTTP by clickhouse-connect: the NDJSON of a block goes through as it is, one block one part.

A time column of the description is two columns here: `<name>` takes the integer microseconds of the line and is not
stored (EPHEMERAL), `<name>_utc` is what is stored and asked for.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any, ClassVar

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from urllib3.exceptions import HTTPError

from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.errors import Backpressure, LogpipeError, NeedsOperator, QueryTimeout, RowRejected, StoreDown
from services.core.ids import MAX_BATCH_ROWS, ROW_BITS, end_id, first_id
from services.core.ports import QUESTION_SECONDS, Block, Progress
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
from services.rollups import clickhouse as rollup
from services.runtime.settings import ClickHouseSettings

NAME = "clickhouse"

_CONNECT_TIMEOUT = 5
_WRITE_TIMEOUT = 60
_READ_TIMEOUT = 660  # longer than any question may take: the server ends those
_REMEMBERED_BLOCKS = 100_000  # whose repetition is noticed: most of a day of blocks, one a second and partition

# Changed between two attempts, these would cut the same block differently and store it twice.
_INSERT_SETTINGS = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "input_format_parallel_parsing": 0,
    "max_insert_threads": 1,
    "max_insert_block_size": 1 << 24,
    "input_format_json_read_arrays_as_strings": 0,
    "input_format_json_read_bools_as_strings": 0,
    "input_format_json_read_numbers_as_strings": 0,
    "input_format_json_read_objects_as_strings": 0,
}
_TYPES = {
    "category": "LowCardinality(String)",
    "text": "String",
    "timestamp": "DateTime64(6, 'UTC')",
    "number": "Nullable(Float64)",
    "json": "String",
    "uuid": "UUID",
}
_STORAGE = {
    "category": "",
    "text": "CODEC(ZSTD(1))",
    "timestamp": "CODEC(Delta, ZSTD(1))",
    "number": "CODEC(ZSTD(1))",
    "json": "DEFAULT '{}' CODEC(ZSTD(1))",
    "uuid": "",
}
# By this, whatever lacks a sequence of four bytes of the text is passed over; finer indexes cost more (ADR 0007).
_SEARCH_INDEX = "TYPE ngrambf_v1(4, 32768, 2, 0) GRANULARITY 1"
_PARAMETERS = {"number": "Float64", "uuid": "UUID"}  # every other kind is compared as a String

_BATCHES = "id >= {start:Int64} AND id < {end:Int64}"

_AT_ROW = re.compile(r"\bat row (\d+)\b")
_TIMEOUT = 159
_OVERLOADED = {_TIMEOUT, 202, 241, 252, 439}  # … too many queries, memory, too many parts, no thread to be had


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (ClickHouseError, HTTPError, OSError) as error:
        raise _translate(error) from error


def _translate(error: Exception) -> LogpipeError:
    code = error.code if isinstance(error, Error) else None
    detail = str(error).strip()[:500]
    if code in _OVERLOADED:
        return Backpressure(f"{NAME}: {detail}", retry_after=1.0)
    return StoreDown(NAME, detail)


def _connect(url: str, timeout: int) -> Client:
    with _translated():
        return clickhouse_connect.get_client(
            dsn=url,
            connect_timeout=_CONNECT_TIMEOUT,
            send_receive_timeout=timeout,
            autogenerate_session_id=False,  # a session would let only one question through at a time
            dedicated_pool=True,
        )


def _quoted(name: str) -> str:
    return f"`{name}`"


def _stored(column: Column) -> str:
    return _quoted(f"{column.name}_utc" if column.kind == "timestamp" else column.name)


class ClickHouseWriter:
    """StoreWriter; connects at its first use."""

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _client(self) -> Client:
        return _connect(self._url, _WRITE_TIMEOUT)

    def prepare(self, dataset: Dataset) -> None:
        with _translated():
            self._client.command(create_table(dataset))
            found = _column_types(self._client, dataset)
            for column in dataset.columns:
                wanted = _TYPES[column.kind]
                actual = found.get(_stored(column).strip("`"))
                if actual is None:
                    for definition in _definitions(column):
                        self._client.command(
                            f"ALTER TABLE {_quoted(dataset.name)} ADD COLUMN IF NOT EXISTS {definition}"
                        )
                elif actual != wanted:
                    raise NeedsOperator(
                        f"clickhouse: table {dataset.name}: column {column.name} is {actual}, its description says"
                        f" {wanted}"
                    )
            if dataset.search:
                index = f"search {_stored(dataset.by_name[dataset.search])} {_SEARCH_INDEX}"
                self._client.command(f"ALTER TABLE {_quoted(dataset.name)} ADD INDEX IF NOT EXISTS {index}")
            rollup.prepare(self._client, dataset, _stored(dataset.by_name[dataset.time]))

    def write(self, block: Block) -> None:
        if not block.rows:
            return
        settings = {**_INSERT_SETTINGS, "insert_deduplication_token": block.token}
        columns = block.dataset.column_names
        try:
            with _translated():
                self._client.raw_insert(block.dataset.name, columns, block.lines, settings, "JSONEachRow")
        except StoreDown as error:
            rows = _AT_ROW.findall(
                str(error.__cause__)
            )  # the last is ClickHouse's own word: a row's text may say it, too
            if rows and 1 <= int(rows[-1]) <= block.rows:
                raise RowRejected(int(rows[-1]) - 1, str(error)) from error
            raise


def create_table(dataset: Dataset) -> str:
    columns = [f"{_quoted(ID.name)} Int64 CODEC(Delta, ZSTD(1))", *_definitions(CREATED_AT)]
    for column in dataset.columns:
        columns += _definitions(column)
    # Newest first is read off the end of the order; batches arrive about in the order of time, so ids prune too.
    return f"""
        CREATE TABLE IF NOT EXISTS {_quoted(dataset.name)} (
            {", ".join(columns)},
            INDEX ids id TYPE minmax GRANULARITY 1,
            CONSTRAINT has_id CHECK id >= {MAX_BATCH_ROWS}
        )
        ENGINE = MergeTree
        PARTITION BY toYYYYMMDD({_stored(CREATED_AT)})
        ORDER BY ({_stored(dataset.by_name[dataset.time])}, id)
        SETTINGS non_replicated_deduplication_window = {_REMEMBERED_BLOCKS}"""


def _definitions(column: Column) -> list[str]:
    kind, storage = _TYPES[column.kind], _STORAGE[column.kind]
    if column.kind != "timestamp":
        return [f"{_stored(column)} {kind} {storage}"]
    name = _quoted(column.name)
    return [
        f"{name} Int64 EPHEMERAL",
        f"{_stored(column)} {kind} DEFAULT fromUnixTimestamp64Micro({name}, 'UTC') {storage}",
    ]


def drop_days(dataset: Dataset, before: int) -> int:
    """Drop the partitions of all days below `before` (days since 1970-01-01 UTC); how many. Raises StoreDown."""
    query = """SELECT DISTINCT partition_id FROM system.parts
               WHERE active AND database = currentDatabase() AND table = {table:String}
                 AND toUInt32(partition_id) < toYYYYMMDD(toDate({before:UInt32}))"""
    client = _connect(ClickHouseSettings().clickhouse_url.get_secret_value(), _WRITE_TIMEOUT)
    with _translated(), closing(client):
        old: Any = client.query(query, {"table": dataset.name, "before": before}).result_rows
        for (partition,) in old:
            client.command(f"ALTER TABLE {_quoted(dataset.name)} DROP PARTITION ID '{int(partition)}'")
    return len(old)


def _column_types(client: Client, dataset: Dataset) -> dict[str, str]:
    query = "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = {table:String}"
    rows: Any = client.query(query, {"table": dataset.name}).result_rows
    return dict(rows)


class ClickHouseReader:
    """StoreReader; connects at its first use, one client for all threads."""

    name: ClassVar[str] = NAME
    route: ClassVar[str] = "clickhouse"
    source: ClassVar[str] = "clickhouse"
    engine: ClassVar[str] = ""
    progress: ClassVar[Progress] = "sink"

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _client(self) -> Client:
        return _connect(self._url, _READ_TIMEOUT)

    def answer(self, question: Question, as_of: int, seconds: float = QUESTION_SECONDS) -> Answer:
        asked = _Asked(self._client, seconds, scan=question.scan)
        dataset = question.dataset
        filters = Filters() if isinstance(question, StatsQuestion) else question.filters
        where, parameters = _where(dataset, filters, as_of)
        rolled = rollup.query(question, as_of, _stored(dataset.by_name[dataset.time]))
        counting = rolled or (_select("count()", dataset, where), parameters)
        total = None
        match question:
            case ListQuestion():
                rows = asked.fetch(*_list(question, where, parameters))
                if question.count:
                    total = asked.fetch(*counting)[0][0]
            case AggregateQuestion():
                rows = asked.fetch(*(rolled or (_aggregate(question, where), parameters)))
            case StatsQuestion():
                rows = asked.fetch(*counting)
        return Answer(rows, asked.milliseconds, "rollup" if rolled else "scan", total, asked.scanned)

    def position(self, dataset: Dataset) -> Mapping[int, int]:
        raise NotImplementedError("ClickHouse's progress is in sink_progress")

    def counts(self, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        what = f"bitShiftRight(id, {ROW_BITS}) AS batch, count(), uniqExact(id)"
        yield from self._stream(_select(what, dataset, _BATCHES, "GROUP BY batch ORDER BY batch"), first, last)

    def rows(self, dataset: Dataset, first: int, last: int) -> Iterator[Row]:
        yield from self._stream(_select(_columns(dataset), dataset, _BATCHES), first, last)

    def close(self) -> None:
        if "_client" in self.__dict__:
            self._client.close()

    def _stream(self, query: str, first: int, last: int) -> Iterator[Row]:
        bounds = {"start": first_id(first), "end": end_id(last)}
        with _translated(), self._client.query_rows_stream(query, bounds) as rows:
            for row in rows:
                yield tuple(row)


class _Asked:
    """The statements of one question: all within its time; what they cost by the server's word, or as measured here."""

    def __init__(self, client: Client, seconds: float, *, scan: bool) -> None:
        self._client = client
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        # The server remembers which parts of a table a condition does not hold for: no scan to compare others with.
        self._settings = {"use_query_condition_cache": 0} if scan else {}
        self.milliseconds = 0.0
        self.scanned: dict[str, Any] = {}

    def fetch(self, query: str, parameters: dict[str, Any]) -> list[Row]:
        left = max(0.001, self._deadline - time.monotonic())  # 0 would be no limit
        start = time.perf_counter()
        with _translated():
            try:
                result = self._client.query(
                    query,
                    parameters,
                    settings={**self._settings, "max_execution_time": f"{left:.3f}"},
                    transport_settings={"wait_end_of_query": "1"},  # only then does the server know what it cost
                )
            except Error as error:
                if error.code == _TIMEOUT:
                    raise QueryTimeout(NAME, self._seconds) from error
                raise
        self._add(result.summary, time.perf_counter() - start)
        return [tuple(row) for row in result.result_rows]

    def _add(self, summary: Mapping[str, Any], measured: float) -> None:
        self.milliseconds += int(summary["elapsed_ns"]) / 1e6 if summary.get("elapsed_ns") else measured * 1e3
        for ours, theirs in (("rows", "read_rows"), ("bytes", "read_bytes")):
            if theirs in summary:
                self.scanned[ours] = self.scanned.get(ours, 0) + int(summary[theirs])


def _select(what: str, dataset: Dataset, where: str, rest: str = "") -> str:
    """Names come from dataset descriptions; every value is a parameter, bound by the server."""
    return f"SELECT {what} FROM {_quoted(dataset.name)} WHERE {where} {rest}"  # noqa: S608


def _list(question: ListQuestion, where: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    dataset = question.dataset
    columns = {column.name: column for column in (ID, CREATED_AT, *dataset.columns)}
    names = dict.fromkeys((question.order_by, ID.name))
    direction = "DESC" if question.descending else "ASC"
    order = ", ".join(f"{_stored(columns[name])} {direction}" for name in names)
    page = {**parameters, "limit": question.limit, "offset": question.offset}
    if question.after:
        where += f" AND {_after(columns[question.order_by], '<' if question.descending else '>')}"
        page |= {"after": question.after[0], "after_id": question.after[1]}
    rest = f"ORDER BY {order} LIMIT {{limit:UInt64}} OFFSET {{offset:UInt64}}"
    return _select(_columns(dataset), dataset, where, rest), page


def _after(column: Column, operator: str) -> str:
    """What comes later than (`after`, `after_id`); written so that the first part alone can use the table's order."""
    if column is ID:
        return f"id {operator} {{after_id:Int64}}"
    stored, value = _stored(column), "{after:String}"
    if column.kind == "timestamp":
        value = "fromUnixTimestamp64Micro({after:Int64}, 'UTC')"
    elif column.kind in _PARAMETERS:
        value = f"{{after:{_PARAMETERS[column.kind]}}}"
    return f"{stored} {operator}= {value} AND ({stored} {operator} {value} OR id {operator} {{after_id:Int64}})"


def _aggregate(question: AggregateQuestion, where: str) -> str:
    keys = []
    if question.bucket:
        time = _canonical(question.dataset.by_name[question.dataset.time])
        keys.append(f"{time} - {time} % {question.bucket:d}")
    if question.group_by:
        keys.append(_quoted(question.group_by))
    order = [*([] if question.bucket else ["count() DESC"]), *keys]
    rest = f"GROUP BY {', '.join(keys)} ORDER BY {', '.join(order)}"
    return _select(", ".join([*keys, "count()"]), question.dataset, where, rest)


def _columns(dataset: Dataset) -> str:
    """All columns, in canonical order and form."""
    return ", ".join(map(_canonical, (ID, CREATED_AT, *dataset.columns)))


def _canonical(column: Column) -> str:
    match column.kind:
        case "timestamp":
            return f"toUnixTimestamp64Micro({_stored(column)})"
        case "uuid":
            return f"toString({_stored(column)})"
    return _stored(column)


def _where(dataset: Dataset, filters: Filters, as_of: int) -> tuple[str, dict[str, Any]]:
    conditions: list[str] = ["id < {end_id:Int64}"]
    parameters: dict[str, Any] = {"end_id": end_id(as_of)}
    for index, (name, value) in enumerate(filters.equals):
        kind = _PARAMETERS.get(dataset.by_name[name].kind, "String")
        conditions.append(f"{_quoted(name)} = {{equals{index}:{kind}}}")
        parameters[f"equals{index}"] = value
    for operator, name, bound in ((">=", "start", filters.start), ("<", "end", filters.end)):
        if bound is not None:
            column = _stored(dataset.by_name[dataset.time])
            conditions.append(f"{column} {operator} fromUnixTimestamp64Micro({{{name}:Int64}}, 'UTC')")
            parameters[name] = bound
    if filters.text:
        conditions.append(f"{_quoted(dataset.search)} LIKE {{text:String}}" if dataset.search else "false")
        parameters["text"] = like_pattern(filters.text)
    return " AND ".join(conditions), parameters


def open_reader() -> ClickHouseReader:
    return ClickHouseReader(ClickHouseSettings().clickhouse_url.get_secret_value())


def open_writer() -> ClickHouseWriter:
    return ClickHouseWriter(ClickHouseSettings().clickhouse_url.get_secret_value())
