"""The query API's parameters, replies and errors by contract; stores are stubs that say what they were asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from services.core.dataset import Choice, Column, Dataset
from services.core.errors import StoreDown
from services.core.queries import AggregateQuestion, Answer, Filters, ListQuestion, Question, StatsQuestion
from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.query_api.endpoints import router
from services.query_api.service import QueryService
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import ListenSettings

CREATED = 1_795_262_653_055_211
LOG_ROW = (131_072, CREATED, 1_763_700_009_999_001, "ERROR", "api", "", "über", '{"n": 1e200000, "n": 2}')


@asynccontextmanager
async def _no_lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


class StubReader:
    progress = "ledger"

    def __init__(self, route: str, source: str, watermark: int, elapsed_ms: float) -> None:
        self.name = self.route = route
        self.source = source
        self.watermark = watermark
        self.elapsed_ms = elapsed_ms
        self.down: StoreDown | None = None
        self.asked: list[tuple[Question, int]] = []
        self.rows: list[Any] = [LOG_ROW]

    def answer(self, question: Question, as_of: int) -> Answer:
        self.asked.append((question, as_of))
        if self.down:
            raise self.down
        match question:
            case ListQuestion():
                return Answer(self.rows, self.elapsed_ms, total=7 if question.count else None)
            case AggregateQuestion():
                return Answer([("INFO", 5), ("ERROR", 2)], self.elapsed_ms)
        return Answer([(7,)], self.elapsed_ms)

    def close(self) -> None: ...


class StubWatermarks:
    ledger_down = False

    def of(self, reader: StubReader, dataset: Dataset) -> int:
        if self.ledger_down:
            raise StoreDown("postgres", "connection refused")
        return reader.watermark

    def last_known(self, reader: StubReader, dataset: Dataset) -> int:
        return reader.watermark - 1


TOY = Dataset(
    name="toys",
    singular="toy",
    plural="toys",
    topic="toys",
    key="maker",
    time="sold_at",
    columns=(
        Column("sold_at", "timestamp", wire="soldAt", required=True),
        Column("maker", "category", Choice(("a",))),
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
        self.clickhouse = StubReader("clickhouse", "clickhouse", 11, 2.5)
        self.stores = [self.postgres, self.hdfs, self.clickhouse]
        self.watermarks = StubWatermarks()
        datasets = (EVENTS, LOGS, TOY)
        service = QueryService(self.stores, datasets, self.watermarks)  # type: ignore[arg-type]

        app = make_app("Query API", ListenSettings(**listen), [router(datasets)], _no_lifespan, Readiness())
        app.state.service = service
        self._transport = httpx.ASGITransport(app)

    def fetch(self, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://test") as client:
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
    assert api.postgres.asked == [(ListQuestion(LOGS), 12)]
    (row,) = reply["data"]
    assert list(row) == ["id", "timestamp", "level", "service", "host", "message", "metadata", "created_at"]
    assert row["timestamp"] == 1_763_700_009.999001
    assert row["created_at"] == "2026-11-21T12:04:13.055211+00:00"
    assert row["metadata"] == {"n": 2}


def test_json_columns_are_passed_through_byte_for_byte(api: Api) -> None:
    assert b'"metadata":{"n": 1e200000, "n": 2}' in api.fetch("/api/query/hdfs/logs").content


def test_every_parameter_reaches_the_question(api: Api) -> None:
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
    )
    filters = Filters(
        (("level", "ERROR"), ("service", "api"), ("host", "")), 1_763_700_000_500_000, 1_795_255_200_000_001
    )
    assert api.clickhouse.asked == [(ListQuestion(LOGS, filters, "service", False, 10000, 3, False), 11)]


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
    ],
)
def test_times(api: Api, text: str, microseconds: int) -> None:
    api.get("postgres/logs", end_time=text)
    question = api.postgres.asked[0][0]
    assert isinstance(question, ListQuestion)
    assert question.filters.end == microseconds


@pytest.mark.parametrize(
    ("path", "parameters", "told"),
    [
        ("postgres/logs", {"limit": 0}, "limit"),
        ("postgres/logs", {"limit": 10001}, "limit"),
        ("postgres/logs", {"offset": -1}, "offset"),
        ("postgres/logs", {"order_by": "message"}, "'timestamp', 'level', 'service', 'created_at' or 'id'"),
        ("postgres/logs", {"order_dir": "up"}, "'desc' or 'asc'"),
        ("postgres/logs", {"count": "maybe"}, "'exact' or 'none'"),
        ("postgres/logs", {"levle": "ERROR"}, "levle"),
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
        ("compare", {"order_by": "message"}, "order_by"),
        ("compare/metrics", {}, "events, logs, toys"),
    ],
)
def test_refused_with_the_reason(api: Api, path: str, parameters: dict[str, Any], told: str) -> None:
    problem = api.get(path, status=422, **parameters)
    assert told in problem["detail"]
    assert not any(store.asked for store in api.stores)


def test_an_aggregate_by_contract(api: Api) -> None:
    reply = api.get("hdfs/logs/aggregate", group_by="level", service="api", start_time=5)
    assert reply["group_by"] == "level"
    assert reply["data"] == [{"key": "INFO", "count": 5}, {"key": "ERROR", "count": 2}]
    assert api.hdfs.asked == [(AggregateQuestion(LOGS, "level", Filters((("service", "api"),), 5_000_000)), 10)]


@pytest.mark.parametrize("name", ["eventType", "event_type"])
def test_wire_and_column_names_are_both_taken(api: Api, name: str) -> None:
    api.postgres.rows = []
    assert api.get("postgres/events/aggregate", group_by=name)["group_by"] == "eventType"
    parameters: dict[str, Any] = {name: "CLICK", "order_by": name}
    api.get("postgres/events", **parameters)
    aggregate, listed = (question for question, _ in api.postgres.asked)
    assert aggregate == AggregateQuestion(EVENTS, "event_type")
    assert listed == ListQuestion(EVENTS, Filters((("event_type", "CLICK"),)), "event_type")


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
    (question, _) = api.postgres.asked[0]
    assert question == ListQuestion(
        TOY, Filters((("serial", "00000000-0000-0000-0000-00000000000a"),)), order_by="sold_at"
    )
    assert "/api/query/{store}/toys/aggregate" in api.fetch("/openapi.json").json()["paths"]


def test_the_openapi_page_names_each_parameter(api: Api) -> None:
    described = api.fetch("/openapi.json").json()["paths"]["/api/query/{store}/events"]["get"]["parameters"]
    assert {"store", "eventType", "userId", "start_time", "limit", "order_by", "count"} <= {
        p["name"] for p in described
    }


def test_stats_by_contract(api: Api) -> None:
    reply = api.get("clickhouse/stats")
    assert (reply["source"], reply["logs_count"], reply["events_count"], reply["as_of"]) == ("clickhouse", 7, 7, 11)
    assert [question for question, _ in api.clickhouse.asked] == [StatsQuestion(d) for d in (EVENTS, LOGS, TOY)]


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
        assert store.asked == [(ListQuestion(LOGS, Filters((("level", "ERROR"),)), limit=5), 10)]
        assert (reply[store.source]["count"], reply[store.source]["total"]) == (1, 7)
    assert (reply["as_of"], reply["answers_agree"], reply["missing"]) == (10, True, {})


def test_compare_tells_answers_that_differ(api: Api) -> None:
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
    assert [as_of for _, as_of in api.postgres.asked] == [10, 11]
    api.clickhouse.down = StoreDown("clickhouse", "away")
    assert api.get("compare")["answers_agree"] is None
    api.postgres.down = StoreDown("postgres", "away")
    api.get("compare", status=503)


def test_a_store_that_is_down_answers_503_with_its_name(api: Api) -> None:
    api.clickhouse.down = StoreDown("clickhouse", "connection refused")
    problem = api.get("clickhouse/logs", status=503)
    assert problem["store"] == "clickhouse"
    assert "connection refused" in problem["detail"]


def test_without_the_ledger_others_answer_as_of_the_last_known_point(api: Api) -> None:
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


def test_question_time_is_measured(api: Api) -> None:
    api.get("postgres/logs")
    text = api.fetch("/metrics").text
    assert 'logpipe_query_seconds_count{dataset="logs",question="list",store="postgres"}' in text
