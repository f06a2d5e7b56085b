"""The query API's parameters, replies and errors by contract; stores are stubs that record their queries."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from threading import Event
from typing import Any, cast
from unittest.mock import Mock

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from services.core.dataset import Column, Dataset
from services.core.errors import LogpipeError, QueryCancelled, QueryTimeout, StoreDown
from services.core.queries import AggregateQuery, Filters, ListQuery, Query, QueryResult, StatsQuery
from services.core.stopping import Stop
from services.core.stores import Store
from services.datasets.events import DATASET as EVENTS
from services.datasets.footprints import DATASET as FOOTPRINTS
from services.datasets.logs import DATASET as LOGS
from services.ledger import watermark as watermark_module
from services.ledger.reading import Lag
from services.ledger.watermark import Watermarks
from services.query_api import cursor as cursors
from services.query_api import query_threads
from services.query_api import service as service_module
from services.query_api.endpoints import router
from services.query_api.main import measuring_workers
from services.query_api.parameters import aggregate_parameters, compare_parameters, list_parameters
from services.query_api.service import QueryService
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import ListenSettings
from services.runtime.workers import Workers

CREATED = 1_795_262_653_055_211
CREATED_ISO, LATER_ISO = (f"2026-11-21T12:04:13.05521{n}+00:00" for n in (1, 2))
LOG_ROW = (131_072, CREATED, 1_763_700_009_999_001, "ERROR", "api", "", "über", '{"n": 1e200000, "n": 2}')


@asynccontextmanager
async def _no_lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


class StubReader:
    progress = "ledger"

    def __init__(self, name: str, source: str, watermark: int, elapsed_ms: float) -> None:
        self.name = name
        self.source = source
        self.watermark = watermark
        self.elapsed_ms = elapsed_ms
        self.down: LogpipeError | None = None
        self.seconds: float | None = None
        self.executed: list[tuple[Query, int]] = []
        self.rows: list[Any] = [LOG_ROW]

    def execute(self, query: Query, as_of: int, seconds: float, stop: Stop) -> QueryResult:
        self.executed.append((query, as_of))
        self.seconds = seconds
        if self.down:
            raise self.down
        match query:
            case ListQuery():
                return QueryResult(self.rows, self.elapsed_ms, total=7 if query.count else None)
            case AggregateQuery():
                return QueryResult(_counts(query), self.elapsed_ms)
        return QueryResult([(7,)], self.elapsed_ms)

    def close(self) -> None: ...


def _counts(query: AggregateQuery) -> list[Any]:
    times = [(CREATED,), (CREATED + 1,)] if query.bucket else [(), ()]
    keys = [("INFO",), ("ERROR",)] if query.group_by else [(), ()]
    return [(*time, *key, count) for time, key, count in zip(times, keys, (5, 2), strict=True)]


class StubWatermarks:
    ledger_down = False

    def __init__(self) -> None:
        self.hanging = ""
        self.released = Event()

    def of(self, reader: StubReader, dataset: Dataset) -> int:
        if reader.name == self.hanging:
            self.released.wait(30)
        if self.ledger_down:
            raise StoreDown("postgres", "connection refused")
        return reader.watermark

    def last_known(self, reader: StubReader, dataset: Dataset) -> int:
        return reader.watermark - 1

    def lag(self, dataset: Dataset, mark: int) -> Lag:
        return Lag(batches=20 - mark, seconds=20.0 - mark)


TOY = Dataset(
    name="toys",
    singular="toy",
    plural="toys",
    topic="toys",
    key="maker",
    time="sold_at",
    columns=(
        Column("sold_at", "timestamp", wire="soldAt", required=True),
        Column("maker", "category"),
        Column("serial", "uuid", required=True),
    ),
    groupings=("maker",),
    orderings=("sold_at", "id"),
    filters=("maker", "serial"),
)


class Api:
    def __init__(self, **listen: Any) -> None:
        self.postgres = StubReader("postgres", "postgresql", 12, 4.0)
        self.hdfs = StubReader("hdfs", "hdfs", 10, 9.0)
        self.spark = StubReader("hdfs", "hdfs", 10, 30.0)
        self.opened = 0
        self.clickhouse = StubReader("clickhouse", "clickhouse", 11, 2.5)
        self.stores = [self.postgres, self.hdfs, self.clickhouse]
        self.watermarks = StubWatermarks()
        datasets = (EVENTS, LOGS, TOY)
        service = QueryService(
            [self._described(reader) for reader in self.stores],
            datasets,
            self.watermarks,  # type: ignore[arg-type]
            seconds=7.0,
        )

        app = make_app("Query API", ListenSettings(**listen), [router(datasets)], _no_lifespan, Readiness())
        app.state.service = service
        self.app = app
        self.service = service
        self._transport = httpx.ASGITransport(app)

    def _described(self, reader: StubReader) -> Store:
        engines: Any = (
            {"engine": "embedded", "other_engines": {"spark": self.open_spark}} if reader is self.hdfs else {}
        )
        open_reader: Any = lambda: reader  # noqa: E731
        return Store(reader.name, reader.name, reader.source, reader.name, open_reader=open_reader, **engines)

    def hdfs_pool_places(self) -> int:
        """How many more queries of the lake would be taken."""
        return self.service._stores["hdfs"].default.threads._vacancies._value

    def open_spark(self) -> StubReader:
        self.opened += 1
        return self.spark

    def fetch(self, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://localhost") as client:
                return await client.get(path, **options)

        return asyncio.run(send())

    def get(self, path: str, status: int = 200, **parameters: Any) -> dict[str, Any]:
        reply = self.fetch(f"/api/query/{path}", params=parameters)
        assert reply.status_code == status, reply.text
        if status != 200:
            assert reply.headers["content-type"] == "application/problem+json"
        body: dict[str, Any] = reply.json()
        return body


@pytest.fixture
def api() -> Api:
    return Api()


def test_a_list_by_contract(api: Api) -> None:
    reply = api.get("postgres/logs")
    assert reply == {
        "source": "postgresql",
        "query_time_ms": 4.0,
        "total_count": 7,
        "returned_count": 1,
        "limit": 100,
        "offset": 0,
        "data": reply["data"],
        "as_of": 12,
        "method": "scan",
        "scanned": {},
        "total_ms": reply["total_ms"],
    }
    assert api.postgres.executed == [(ListQuery(LOGS), 12)]
    (row,) = reply["data"]
    assert list(row) == ["id", "timestamp", "level", "service", "host", "message", "metadata", "created_at"]
    assert row["timestamp"] == 1_763_700_009.999001
    assert row["created_at"] == CREATED_ISO
    assert row["metadata"] == {"n": 2}


def test_json_columns_are_passed_through_byte_for_byte(api: Api) -> None:
    assert b'"metadata":{"n": 1e200000, "n": 2}' in api.fetch("/api/query/hdfs/logs").content


@pytest.mark.parametrize("text", ["oops, not JSON", '1}],"total_count":0,"x":[{"y":1', "", '{"n": 1} {}'])
def test_a_json_column_that_another_program_filled_with_other_text_is_a_string(api: Api, text: str) -> None:
    api.postgres.rows = [(*LOG_ROW[:-1], text), LOG_ROW]
    reply = api.get("postgres/logs")
    assert [row["metadata"] for row in reply["data"]] == [text, {"n": 2}]
    assert reply["total_count"] == 7


def test_every_parameter_reaches_the_query(api: Api) -> None:
    api.get(
        "clickhouse/logs",
        level="ERROR",
        service="api",
        host="",
        start_time="1763700000.5",
        end_time="2026-11-21T12:00:00.000001+02:00",
        limit=10000,
        offset=3,
        order_by="service",
        order_dir="asc",
        count="none",
        q="50% ü",
        as_of=9,
        method="scan",
    )
    equals = (("level", "ERROR"), ("service", "api"), ("host", ""))
    filters = Filters(equals, 1_763_700_000_500_000, 1_795_255_200_000_001, "50% ü")
    query = ListQuery(LOGS, filters, "service", False, 10000, 3, False, scan=True)
    assert api.clickhouse.executed == [(query, 9)]
    assert api.clickhouse.seconds == pytest.approx(7.0, abs=0.5)


@pytest.mark.parametrize(
    ("path", "query", "name"),
    [
        ("postgres/logs", "level=INFO&level=ERROR", "level"),
        ("postgres/logs", "limit=5&limit=5", "limit"),
        ("postgres/logs", "start_time=1&end_time=9&start_time=2", "start_time"),
        ("postgres/events", "eventType=A&event_type=B", "event_type"),
        ("postgres/stats", "as_of=1&as_of=2", "as_of"),
        ("compare", "level=INFO&level=INFO", "level"),
        ("compare/events", "eventType=A&event_type=A", "event_type"),
    ],
)
def test_a_parameter_given_twice_is_refused(api: Api, path: str, query: str, name: str) -> None:
    reply = api.fetch(f"/api/query/{path}?{query}")
    assert reply.status_code == 422
    assert reply.headers["content-type"] == "application/problem+json"
    assert name in reply.json()["detail"]
    assert not api.postgres.executed


def test_levels_are_compared_as_they_were_sent_and_the_page_says_so(api: Api) -> None:
    api.get("postgres/logs", level="error")
    query = api.postgres.executed[0][0]
    assert isinstance(query, ListQuery)
    assert query.filters.equals == (("level", "error"),)
    parameters = api.fetch("/openapi.json").json()["paths"]["/api/query/{store}/logs"]["get"]["parameters"]
    [described] = [parameter["description"] for parameter in parameters if parameter["name"] == "level"]
    assert "as it was sent" in described


def test_no_count_leaves_total_count_out(api: Api) -> None:
    assert "total_count" not in api.get("postgres/logs", count="none")


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("0", 0),
        ("-5", 0),
        ("1763700000.000001", 1_763_700_000_000_001),
        ("1e9", 1_000_000_000_000_000),
        ("2026-11-21T12:00:00Z", 1_795_262_400_000_000),
        ("2026-11-21T12:00:00", 1_795_262_400_000_000),
        ("2026-11-21T14:00:00 02:00", 1_795_262_400_000_000),
        ("2026-11-21", 1_795_219_200_000_000),
        ("9999-12-31T23:59:59Z", 4_102_444_800_000_000),
        ("1e30", 4_102_444_800_000_000),
        ("1763700000000", 1_763_700_000_000_000),
        ("1763700000000000", 1_763_700_000_000_000),
        ("1763700000000000001", 1_763_700_000_000_000),
        ("1763700000.0000019", 1_763_700_000_000_001),
        ("2026-11-21T12:00:00.0000019Z", 1_795_262_400_000_001),
        ("20261121", 1_795_219_200_000_000),
        ("2026-11-21 14:00:00 0200", 1_795_262_400_000_000),
        ("20261121T140000+02", 1_795_262_400_000_000),
    ],
)
def test_times(api: Api, text: str, microseconds: int) -> None:
    api.get("postgres/logs", end_time=text)
    query = api.postgres.executed[0][0]
    assert isinstance(query, ListQuery)
    assert query.filters.end == microseconds


@pytest.mark.parametrize(
    ("path", "parameters", "told"),
    [
        ("postgres/logs", {"limit": 0}, "limit"),
        ("postgres/logs", {"limit": 10001}, "limit"),
        ("postgres/logs", {"offset": -1}, "offset"),
        ("postgres/logs", {"order_by": "message"}, "'timestamp', 'level', 'service', 'created_at' or 'id'"),
        ("postgres/logs", {"order_dir": "up"}, "'desc' or 'asc'"),
        ("postgres/logs", {"count": "maybe"}, "'exact' or 'none'"),
        ("postgres/logs", {"levle": "ERROR"}, "unknown: levle; there are: as_of, method, start_time, end_time"),
        ("postgres/events", {"q": "x"}, "unknown: q; there are:"),
        ("postgres/logs", {"start_time": "1e999999"}, "start_time"),
        ("postgres/logs", {"start_time": "1e999990"}, "start_time"),
        ("postgres/logs", {"level": "a\x00b"}, "NUL"),
        ("postgres/logs", {"start_time": "yesterday"}, "ISO 8601"),
        ("postgres/logs", {"start_time": "nan"}, "start_time"),
        ("postgres/logs", {"start_time": "Infinity"}, "start_time"),
        ("postgres/logs", {"start_time": 20, "end_time": 10}, "end_time is before start_time"),
        ("postgres/logs/aggregate", {"group_by": "message"}, "'level', 'service' or 'host'"),
        ("postgres/toys", {"serial": "not-a-uuid"}, "serial"),
        ("oracle/logs", {}, "postgres, hdfs, clickhouse"),
        ("oracle/stats", {}, "postgres, hdfs, clickhouse"),
        ("postgres/metrics", {}, "events, logs, toys"),
        ("postgres/metrics/aggregate", {}, "events, logs, toys"),
        (
            "postgres/logs",
            {"offset": 10_001},
            "at most 10000; go on from page to page with cursor",
        ),
        ("postgres/logs", {"as_of": 13}, "the latest is 12"),
        ("postgres/logs", {"as_of": -1}, "as_of"),
        ("postgres/logs", {"method": "cache"}, "'auto' or 'scan'"),
        ("postgres/logs", {"q": "a\x00"}, "NUL"),
        ("postgres/logs", {"bucket": "1h"}, "bucket"),
        ("postgres/logs", {"engine": "spark"}, "none to choose from"),
        ("postgres/logs/aggregate", {"bucket": "5m"}, "'1m', '1h' or '1d'"),
        ("postgres/logs/aggregate", {"limit": 5}, "limit"),
        ("postgres/events", {"q": "a"}, "q"),
        ("hdfs/logs", {"engine": "presto"}, "embedded, spark"),
        ("hdfs/stats", {"engine": "presto"}, "embedded, spark"),
        ("hdfs/stats", {"level": "ERROR"}, "level"),
        ("compare", {"order_by": "message"}, "order_by"),
        ("compare", {"as_of": 11}, "the latest is 10"),
        ("compare", {"question": "count"}, "'list', 'aggregate' or 'stats'"),
        ("compare", {"engines": "some"}, "'default' or 'all'"),
        ("compare", {"engine": "spark"}, "engine"),
        (
            "compare",
            {"question": "stats", "level": "ERROR", "limit": 3},
            "level, limit: no parameter of question=stats",
        ),
        ("compare", {"question": "aggregate", "offset": 3}, "offset: no parameter of question=aggregate"),
        ("compare", {"group_by": "level"}, "group_by: no parameter of question=list"),
        ("compare/metrics", {}, "events, logs, toys"),
    ],
)
def test_refused_with_the_reason(api: Api, path: str, parameters: dict[str, Any], told: str) -> None:
    problem = api.get(path, status=422, **parameters)
    assert told in problem["detail"]
    assert not any(store.executed for store in api.stores)


def test_an_aggregate_by_contract(api: Api) -> None:
    reply = api.get("hdfs/logs/aggregate", group_by="level", service="api", start_time=5)
    assert reply["group_by"] == "level"
    assert reply["data"] == [{"key": "INFO", "count": 5}, {"key": "ERROR", "count": 2}]
    assert api.hdfs.executed == [(AggregateQuery(LOGS, "level", Filters((("service", "api"),), 5_000_000)), 10)]


@pytest.mark.parametrize(
    ("parameters", "query", "data"),
    [
        (
            {"bucket": "1h"},
            AggregateQuery(LOGS, None, bucket=3_600_000_000),
            [{"time": CREATED_ISO, "count": 5}, {"time": LATER_ISO, "count": 2}],
        ),
        (
            {"bucket": "1d", "group_by": "host"},
            AggregateQuery(LOGS, "host", bucket=86_400_000_000),
            [{"time": CREATED_ISO, "key": "INFO", "count": 5}, {"time": LATER_ISO, "key": "ERROR", "count": 2}],
        ),
        ({}, AggregateQuery(LOGS, "level"), [{"key": "INFO", "count": 5}, {"key": "ERROR", "count": 2}]),
    ],
)
def test_an_aggregate_by_time(
    api: Api, parameters: dict[str, Any], query: AggregateQuery, data: list[dict[str, Any]]
) -> None:
    reply = api.get("postgres/logs/aggregate", **parameters)
    assert api.postgres.executed == [(query, 12)]
    assert (reply["group_by"], reply.get("bucket")) == (query.group_by, parameters.get("bucket"))
    assert reply["data"] == data


@pytest.mark.parametrize("name", ["eventType", "event_type"])
def test_wire_and_column_names_are_both_taken(api: Api, name: str) -> None:
    api.postgres.rows = []
    assert api.get("postgres/events/aggregate", group_by=name)["group_by"] == "eventType"
    parameters: dict[str, Any] = {name: "CLICK", "order_by": name}
    api.get("postgres/events", **parameters)
    aggregate, listed = (query for query, _ in api.postgres.executed)
    assert aggregate == AggregateQuery(EVENTS, "event_type")
    assert listed == ListQuery(EVENTS, Filters((("event_type", "CLICK"),)), "event_type")


def test_a_column_named_as_a_parameter_is_filtered_under_another_name() -> None:
    sent = {"method": "scan", "footprint_method": "GET"}
    listed, _ = list_parameters(FOOTPRINTS).model_validate(sent).listed(FOOTPRINTS)
    aggregate, _ = aggregate_parameters(FOOTPRINTS).model_validate(sent).aggregated(FOOTPRINTS)
    compared, _ = compare_parameters(FOOTPRINTS).model_validate(sent).compared(FOOTPRINTS)
    for query in (listed, aggregate, compared):
        assert isinstance(query, ListQuery | AggregateQuery)
        assert (query.filters, query.scan) == (Filters((("method", "GET"),)), True)
    with pytest.raises(ValidationError, match="'auto' or 'scan'"):
        list_parameters(FOOTPRINTS).model_validate({"method": "GET"})


def test_events_answer_with_wire_names(api: Api) -> None:
    api.postgres.rows = [(1, CREATED, 5_000_000, "u")]
    event = (131_073, CREATED, "00000000-0000-0000-0000-000000000001", 5_000_000, "u", "s", "VIEW", "{}", "[]", "")
    api.postgres.rows = [event]
    (row,) = api.get("postgres/events")["data"]
    assert row["eventId"] == "00000000-0000-0000-0000-000000000001"
    assert (row["timestamp"], row["eventData"], row["device"], row["deviceType"]) == (5.0, {}, [], "")


def test_a_new_dataset_has_its_routes(api: Api) -> None:
    api.postgres.rows = [(131_072, CREATED, 5_000_000, "a", "00000000-0000-0000-0000-000000000001")]
    (row,) = api.get("postgres/toys", serial="00000000-0000-0000-0000-00000000000A")["data"]
    assert row["soldAt"] == "1970-01-01T00:00:05.000000+00:00"
    (query, _) = api.postgres.executed[0]
    assert query == ListQuery(TOY, Filters((("serial", "00000000-0000-0000-0000-00000000000a"),)), order_by="sold_at")
    assert "/api/query/{store}/toys/aggregate" in api.fetch("/openapi.json").json()["paths"]


def test_the_openapi_page_names_each_parameter(api: Api) -> None:
    described = api.fetch("/openapi.json").json()["paths"]["/api/query/{store}/events"]["get"]["parameters"]
    assert {"store", "eventType", "userId", "start_time", "limit", "order_by", "count"} <= {
        p["name"] for p in described
    }


def test_the_openapi_page_needs_no_other_host(api: Api) -> None:
    linked = re.findall(r"""(?:src|href)=["']([^"']+)["']""", api.fetch("/docs").text)
    assert len(linked) == 3
    assert [api.fetch(link).status_code for link in linked if link.startswith("/")] == [200] * 3


def test_stats_by_contract(api: Api) -> None:
    reply = api.get("clickhouse/stats")
    assert (reply["source"], reply["logs_count"], reply["events_count"], reply["as_of"]) == ("clickhouse", 7, 7, 11)
    assert [query for query, _ in api.clickhouse.executed] == [StatsQuery(d) for d in (EVENTS, LOGS, TOY)]


def test_compare_asks_all_at_the_lowest_watermark(api: Api) -> None:
    reply = api.get("compare", level="ERROR", limit=5)
    assert reply["comparison"] == {
        "postgresql_ms": 4.0,
        "hdfs_ms": 9.0,
        "clickhouse_ms": 2.5,
        "faster": "clickhouse",
        "difference_ms": 1.5,
    }
    for store in api.stores:
        assert store.executed == [(ListQuery(LOGS, Filters((("level", "ERROR"),)), limit=5, scan=True), 10)]
        assert (reply[store.source]["count"], reply[store.source]["total"]) == (1, 7)
    assert (reply["as_of"], reply["answers_agree"], reply["missing"]) == (10, True, {})


def test_compare_tells_results_that_differ(api: Api) -> None:
    api.hdfs.rows = [(*LOG_ROW[:-1], "{}")]
    reply = api.get("compare")
    assert reply["answers_agree"] is False
    assert reply["postgresql"]["digest"] == reply["clickhouse"]["digest"] != reply["hdfs"]["digest"]


def test_compare_goes_on_without_a_store_that_is_down(api: Api) -> None:
    api.hdfs.down = StoreDown("lake", "NameNode refused the connection")
    reply = api.get("compare")
    assert reply["missing"] == {"hdfs": "lake: NameNode refused the connection"}
    assert reply["hdfs"] == {"count": None, "total": None}
    assert reply["comparison"]["hdfs_ms"] is None
    assert (reply["answers_agree"], reply["as_of"]) == (True, 11)
    assert [as_of for _, as_of in api.postgres.executed] == [10, 11]
    api.clickhouse.down = StoreDown("clickhouse", "unreachable")
    assert api.get("compare")["answers_agree"] is None
    api.postgres.down = StoreDown("postgres", "unreachable")
    api.get("compare", status=503)


def test_a_store_that_is_down_answers_503_with_its_name(api: Api) -> None:
    api.clickhouse.down = StoreDown("clickhouse", "connection refused")
    problem = api.get("clickhouse/logs", status=503)
    assert problem["store"] == "clickhouse"
    assert "connection refused" in problem["detail"]


def test_without_the_ledger_others_answer_as_of_the_last_known_batch(api: Api) -> None:
    api.watermarks.ledger_down = True
    assert api.get("clickhouse/logs")["as_of"] == 10
    assert api.get("postgres/logs", status=503)["store"] == "postgres"


def test_reads_need_the_token() -> None:
    api = Api(token="secret")
    assert api.fetch("/health").json() == {"status": "UP"}
    api.get("postgres/logs", status=401)
    allowed = api.fetch("/api/query/postgres/logs", headers={"Authorization": "Bearer secret"})
    assert allowed.status_code == 200
    Api(token="secret", public_reads=True).get("postgres/logs")


def test_a_cached_reply_says_what_it_took_and_what_the_first_took(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = QueryResult([LOG_ROW], 0.25, "cache", total=7, first_ms=1409.0)
    monkeypatch.setattr(api.postgres, "execute", lambda *_: kept)
    reply = api.get("postgres/logs")
    assert (reply["query_time_ms"], reply["first_query_time_ms"], reply["method"]) == (0.25, 1409.0, "cache")
    monkeypatch.setattr(
        api.postgres, "execute", lambda query, *_: replace(kept, rows=[(7,)], first_ms=None if query.scan else 9.0)
    )
    stats = api.get("postgres/stats")
    assert (stats["query_time_ms"], stats["first_query_time_ms"]) == (0.75, 27.0)
    assert "first_query_time_ms" not in api.get("postgres/stats", method="scan")


def test_query_time_is_measured(api: Api) -> None:
    api.get("postgres/logs")
    text = api.fetch("/metrics").text
    assert 'logpipe_query_seconds_count{dataset="logs",question="list",store="postgres"}' in text


def test_a_store_that_hangs_does_not_freeze_the_gauges_of_the_others(api: Api) -> None:
    api.watermarks.hanging = "postgres"  # the first one
    measuring = Workers(*measuring_workers(api.service, late_seconds=9.5))
    measuring.start()
    try:
        while not api.service.late():
            time.sleep(0.01)
        assert api.service.late() == "; ".join(
            f"hdfs/{dataset}: 10 s behind: see /readyz of the process that fills the store"
            for dataset in ("events", "logs", "toys")
        )
        text = api.fetch("/metrics").text
        assert 'logpipe_watermark_lag_seconds{dataset="logs",store="hdfs"} 10.0' in text
    finally:
        api.watermarks.released.set()
        measuring.stop(10)


def test_pages_by_cursor_keep_order_and_as_of(api: Api) -> None:
    first = api.get("postgres/logs", limit=1, order_by="level", order_dir="asc", level="ERROR", q="ü")
    api.postgres.watermark = 20
    parameters = {"cursor": first["next_cursor"], "level": "ERROR", "q": "ü"}
    second = api.get("postgres/logs", limit=1, **parameters)
    query, as_of = api.postgres.executed[1]
    filters = Filters((("level", "ERROR"),), text="ü")
    assert query == ListQuery(LOGS, filters, "level", False, 1, after=("ERROR", LOG_ROW[0]))
    assert as_of == second["as_of"] == 12
    assert api.get("postgres/logs", order_by="level", as_of=12, **parameters).keys() & {"next_cursor"} == set()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"level": "INFO"}, "other filters"),
        ({"q": "ü"}, "other filters"),
        ({"order_by": "id"}, "order_by: the cursor has its own"),
        ({"order_dir": "asc"}, "order_dir: the cursor has its own"),
        ({"offset": 1}, "offset: the cursor has its own"),
        ({"as_of": 11}, "as_of: the cursor has its own"),
    ],
)
def test_a_cursor_belongs_to_its_query(api: Api, changed: dict[str, Any], told: str) -> None:
    cursor = api.get("postgres/logs", limit=1)["next_cursor"]
    assert told in api.get("postgres/logs", status=422, cursor=cursor, **changed)["detail"]
    assert "other filters" in api.get("postgres/toys", status=422, cursor=cursor)["detail"]
    assert len(api.postgres.executed) == 1


FILTERS = cursors._digest(Filters())


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "x", "é", "====", "' OR 1=1 --", "AAAA", "k" * 5000),
        cursors.Cursor("logs", FILTERS, "message", True, 12, "", 5).encode(),
        cursors.Cursor("logs", FILTERS, "level", True, 12, 5, 5).encode(),
        cursors.Cursor("logs", FILTERS, "level", True, 12, "a\x00", 5).encode(),
        cursors.Cursor("logs", FILTERS, "level", True, -1, "", 5).encode(),
        cursors.Cursor("logs", FILTERS, "timestamp", True, 12, "1; DROP TABLE logs", 5).encode(),
        cursors.Cursor("logs", FILTERS, "timestamp", True, 12, -1, 5).encode(),
        cursors.Cursor("logs", FILTERS, "created_at", True, 12, cast(Any, None), 5).encode(),
        cursors.Cursor("logs", FILTERS, "id", True, 12, 4, 5).encode(),
        cursors.Cursor("logs", FILTERS, "id", True, 12, 1 << 60, 1 << 60).encode(),
    ],
)
def test_a_broken_cursor_is_refused(api: Api, cursor: str) -> None:
    assert "cursor: broken" in api.get("postgres/logs", status=422, cursor=cursor)["detail"]
    assert not api.postgres.executed


def test_a_cursor_beyond_the_watermark_is_refused(api: Api) -> None:
    cursor = cursors.Cursor("logs", FILTERS, "id", True, 13, 5, 5).encode()
    assert "the latest is 12" in api.get("postgres/logs", status=422, cursor=cursor)["detail"]


def test_an_engine_is_opened_when_it_is_asked_for(api: Api) -> None:
    assert api.get("hdfs/logs", engine="embedded")["source"] == "hdfs"
    assert api.opened == 0
    assert api.get("hdfs/logs/aggregate", engine="spark")["source"] == "hdfs_spark"
    assert api.get("hdfs/stats", engine="spark")["source"] == "hdfs_spark"
    assert (api.opened, len(api.hdfs.executed), len(api.spark.executed)) == (1, 1, 4)
    api.spark.down = StoreDown("lake (spark)", "connection refused")
    assert api.get("hdfs/logs", status=503, engine="spark")["store"] == "lake (spark)"


def test_compare_by_all_engines(api: Api) -> None:
    assert "hdfs_spark" not in api.get("compare")
    reply = api.get("compare", engines="all")
    assert reply["comparison"]["hdfs_spark_ms"] == 30.0
    assert reply["hdfs_spark"] == {**reply["hdfs"]}
    assert api.spark.executed == [(ListQuery(LOGS, scan=True), 10)]
    api.spark.down = StoreDown("lake (spark)", "connection refused")
    reply = api.get("compare", engines="all")
    assert reply["missing"] == {"hdfs_spark": "lake (spark): connection refused"}
    assert (reply["hdfs"]["count"], reply["as_of"], reply["answers_agree"]) == (1, 10, True)


def test_compare_any_query(api: Api) -> None:
    grouped = api.get("compare", question="aggregate", group_by="service", level="ERROR", method="auto")
    assert (grouped["postgresql"]["count"], grouped["postgresql"]["total"]) == (2, 7)
    stats = api.get("compare/events", question="stats", as_of=4)
    assert (stats["postgresql"]["count"], stats["postgresql"]["total"], stats["as_of"]) == (1, 7, 4)
    assert api.hdfs.executed == [
        (AggregateQuery(LOGS, "service", Filters((("level", "ERROR"),))), 10),
        (StatsQuery(EVENTS, scan=True), 4),
    ]


def test_out_of_time(api: Api) -> None:
    api.hdfs.down = QueryTimeout("lake", 7.0)
    problem = api.get("hdfs/logs", status=504)
    assert problem["store"] == "lake"
    assert "no result within 7 s" in problem["detail"]
    reply = api.get("compare")
    assert "no result within 7 s" in reply["missing"]["hdfs"]
    assert (reply["as_of"], reply["answers_agree"]) == (10, True)  # the store exists: its watermark still holds
    for store in api.stores:
        store.down = QueryTimeout(store.name, 7.0)
    api.get("compare", status=504)


def hanging(api: Api, monkeypatch: pytest.MonkeyPatch) -> Event:
    """The lake hangs until the returned event is set, and counts as down soon."""
    monkeypatch.setattr(service_module, "_GRACE_SECONDS", -6.9)
    released = Event()
    monkeypatch.setattr(api.hdfs, "execute", lambda *_: released.wait())
    return released


def test_no_more_queries_wait_for_a_store_than_it_has_places(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    released = hanging(api, monkeypatch)
    try:
        for _ in range(query_threads.THREADS):
            assert "hangs" in api.get("hdfs/logs", status=503)["detail"]
        for _ in range(query_threads.MOST_QUERIES):  # no thread is left for these, and they give their places back
            assert "no result within" in api.get("hdfs/logs", status=504)["detail"]
        assert "hdfs" in api.get("compare")["missing"]
        assert api.get("postgres/logs")["returned_count"] == 1
    finally:
        released.set()


def test_queries_beyond_the_places_of_a_store_are_refused_and_others_answered(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests hang than the server has threads for endpoints that block."""
    monkeypatch.setattr(query_threads, "MOST_QUERIES", 60)
    api = Api()
    released = Event()
    monkeypatch.setattr(api.hdfs, "execute", lambda *_: released.wait(20) and QueryResult([], 0.0, total=0))

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=api._transport, base_url="http://localhost") as client:
            waiting = [asyncio.create_task(client.get("/api/query/hdfs/logs")) for _ in range(60)]
            while api.hdfs_pool_places():  # noqa: ASYNC110 - a thread's semaphore
                await asyncio.sleep(0)
            refused = await client.get("/api/query/hdfs/logs")
            answered = await client.get("/api/query/postgres/logs")
            released.set()
            return [refused, answered, *await asyncio.gather(*waiting)]

    refused, answered, *waited = asyncio.run(ask())
    assert (refused.status_code, refused.json()["store"], refused.headers["retry-after"]) == (503, "hdfs", "1")
    assert answered.status_code == 200
    assert {reply.status_code for reply in waited} == {200}


def test_a_store_is_told_to_stop_when_the_client_goes_away(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    running, ended = Event(), Event()

    def execute(query: Query, as_of: int, seconds: float, stop: Stop) -> QueryResult:
        with stop.calling(ended.set):
            running.set()
            ended.wait(20)
        raise QueryCancelled("ended")

    monkeypatch.setattr(api.hdfs, "execute", execute)

    async def ask() -> bool:
        path = "/api/query/hdfs/logs"
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
            "http_version": "1.1",
        }

        async def receive() -> dict[str, Any]:
            await asyncio.to_thread(running.wait, 20)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None: ...

        await api.app(scope, receive, send)
        return await asyncio.to_thread(ended.wait, 20)

    assert asyncio.run(ask())


def test_a_store_that_hangs_is_told_to_stop(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_GRACE_SECONDS", -6.9)
    ended = Event()

    def execute(query: Query, as_of: int, seconds: float, stop: Stop) -> QueryResult:
        with stop.calling(ended.set):
            ended.wait(20)
        raise QueryCancelled("ended")

    monkeypatch.setattr(api.hdfs, "execute", execute)
    assert "hangs" in api.get("hdfs/logs", status=503)["detail"]
    assert ended.wait(20)


def test_a_ledger_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark_module, "_PATIENCE", 0.01)
    watermarks = Watermarks(Mock())
    assert watermarks._settling.acquire()
    with pytest.raises(StoreDown, match="postgres"):
        watermarks.settled()


def test_a_store_that_hangs_counts_as_down(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    released = hanging(api, monkeypatch)
    try:
        assert "hangs" in api.get("hdfs/logs", status=503)["detail"]
        assert "hangs" in api.get("compare")["missing"]["hdfs"]
    finally:
        released.set()
