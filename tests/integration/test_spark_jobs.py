"""The jobs on a real Spark, PostgreSQL and Kafka: they report what the rows say, however often they are run."""

import asyncio
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from fastapi import FastAPI
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sql

from services.core import kafka_value
from services.core.dataset import Dataset
from services.core.errors import StoreDown
from services.core.ids import MAX_BATCH_ROWS
from services.core.ports import Message, OutgoingMessage
from services.core.rows import Row, RowCodec, Rows
from services.datasets.logs import DATASET
from services.generator.synthesis import Synthesizer
from services.lake.embedded import EmbeddedReader
from services.lake.table import LakePosition
from services.local import jars
from services.local.stack import Stack
from services.postgres.connection import connect
from services.query_api import reports as reports_api
from services.reports import windows
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import LakeSettings, ListenSettings, PostgresSettings
from services.streams.kafka import KafkaProducer
from services.streams.topics import ensure_topics
from spark_jobs import parsing, reports, warm_up, writer
from spark_jobs.session import open_session
from spark_jobs.settings import ReportSettings
from spark_jobs.tables import Tables
from spark_jobs.windows import counted
from tests.conftest import running
from tests.lake_tables import append
from tests.line_rules import DATASETS, bad, good
from tests.processes import Process, free_port
from tests.waiting import until

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),  # of each `collect`, by pyspark
]

DAY = date(2026, 10, 20)
MICROSECONDS = 86_400_000_000
TIME, LEVEL, SERVICE, MESSAGE, METADATA = (
    DATASET.column_names.index(name) for name in ("timestamp", "level", "service", "message", "metadata")
)
PARTITIONS = 4


def begin(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1e6)


def seeded(day: date, count: int, seed: int) -> Rows:
    """Spread evenly over the day."""
    made = Synthesizer(DATASET, seed, begin(day), MICROSECONDS / count)
    return RowCodec(DATASET).decode_lines(made.ndjson(0, count))


def line(at: int, level: str, service: str, message: str, metadata: str) -> Rows:
    values: dict[str, Any] = {"timestamp": at, "level": level, "service": service, "message": message}
    values |= {"host": "", "metadata": metadata}
    return Rows(1, [[values[column.name]] for column in DATASET.columns])


@dataclass
class World:
    """A ledger and a lake in a folder, without the processes that fill them."""

    stack: Stack
    lake: LakeSettings
    spark: SparkSession
    rows: list[Row] = field(default_factory=list)
    batches: int = 0

    def __post_init__(self) -> None:
        self.postgres_url = self.stack.settings.urls()["LOGPIPE_POSTGRES_URL"]
        self.connection = connect(self.postgres_url)

    def accept(self, created_at: int) -> int:
        """A batch published and not loaded."""
        self.batches += 1
        self.connection.execute(
            "INSERT INTO batches (batch_id, slot, dataset, rows, checksum, xid, created_at, parts)"
            " VALUES (nextval('batch_ids'), 0, 'logs', 1, 0, pg_current_xact_id(), %s, %s::jsonb)",
            (created_at, json.dumps([[0, self.batches]])),
        )
        return self.batches

    def load(self, batch: int, created_at: int, parts: list[Rows]) -> None:
        rows = list(Rows.joined(parts).tuples(batch, created_at))
        append(self.lake, DATASET, rows, LakePosition("t", {0: batch + 1}))
        self.rows += rows

    def of(self, day: date, service: str | None = None) -> list[Row]:
        first, end = begin(day), begin(day) + MICROSECONDS
        return [row for row in self.rows if first <= row[TIME] < end and service in (None, row[SERVICE])]

    def run(self, command: str, day: date | str) -> tuple[int, str]:
        done = CliRunner().invoke(getattr(reports, command), ["--day", str(day)])
        return done.exit_code, done.output


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with (
        running("postgres", "kafka") as stack,
        tempfile.TemporaryDirectory(prefix="logpipe-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        environment = {
            "LOGPIPE_POSTGRES_URL": stack.settings.urls()["LOGPIPE_POSTGRES_URL"],
            "LOGPIPE_HDFS_URL": "file://",
            "LOGPIPE_LAKE_PATH": f"{folder}/lake",
            "LOGPIPE_SPARK_JARS": ",".join(jars.spark_jars()),
            "LOGPIPE_KAFKA_URL": stack.settings.urls()["LOGPIPE_KAFKA_URL"],
            "SPARK_LOCAL_DIRS": f"{folder}/scratch",
            "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1",  # these runs are too short to be worth optimising
        }
        for name, value in environment.items():
            patch.setenv(name, value)
        spark = open_session("test", ReportSettings())
        patch.setattr(reports, "open_session", lambda name, settings: spark)  # a session takes ten seconds to start
        with pytest.MonkeyPatch.context() as kept:
            kept.setattr(spark, "stop", lambda: None, raising=True)
            world = World(stack, LakeSettings(), spark)
            yield world
            world.connection.close()
        spark.stop()


class Client:
    """Of the query API's reports."""

    def __init__(self) -> None:
        router = reports_api.router(PostgresSettings())
        self._app = make_app("test", ListenSettings(), [router], nothing, Readiness())

    def get(self, path: str) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with (
                self._app.router.lifespan_context(self._app),
                httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
            ):
                return await client.get(path)

        return asyncio.run(asked())


@asynccontextmanager
async def nothing(app: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.fixture(scope="module")
def client(world: World) -> Client:
    return Client()


def volume(rows: list[Row]) -> dict[str, Any]:
    errors = sum(row[LEVEL] == "ERROR" for row in rows)
    return {"rows": len(rows), "errors": errors, "error_rate": errors / len(rows) if rows else None}


def milliseconds(rows: list[Row]) -> list[float]:
    found = [json.loads(row[METADATA]) for row in rows]
    values = [each.get("response_time_ms") for each in found if isinstance(each, dict)]
    return [value for value in values if isinstance(value, int | float) and value >= 0]


def percentiles(values: list[float]) -> dict[str, Any]:
    at = [float(np.percentile(values, q)) for q in (50, 95, 99)] if values else [None] * 3
    return {"p50_ms": pytest.approx(at[0]), "p95_ms": pytest.approx(at[1]), "p99_ms": pytest.approx(at[2])}


def ranked(counts: Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def test_a_day_without_logs_has_an_empty_report(world: World, client: Client) -> None:
    for command, name in (("daily_report", "daily"), ("service_analysis", "services")):
        assert client.get(f"/api/reports/{name}?day={DAY}").status_code == 404
        code, output = world.run(command, DAY)
        assert code == 0, output
    empty = {"rows": 0, "errors": 0, "error_rate": None}
    daily = client.get(f"/api/reports/daily?day={DAY}").json()
    assert daily.pop("computed_at")
    assert daily == {
        "day": str(DAY), "as_of": 0, **empty, "levels": [], "services": [], "totals": [], "hours": [], "endpoints": []
    }  # fmt: skip
    services = client.get(f"/api/reports/services?day={DAY}").json()
    assert services["services"] == []
    assert {name: services["all"][name] for name in empty} == empty
    assert [day["day"] for day in services["all"]["trend"]] == [str(DAY - timedelta(days=n)) for n in range(1, 8)]


def test_the_daily_report_says_what_the_rows_say(world: World, client: Client) -> None:
    created = begin(DAY + timedelta(days=1)) + 1
    edges = [
        line(begin(DAY), "INFO", "edge", "first", "[1]"),
        line(begin(DAY) + MICROSECONDS - 1, "ERROR", "edge", "last\nat line 2", '{"response_time_ms": "x"}'),
        line(begin(DAY) + MICROSECONDS, "ERROR", "edge", "the next day", '{"response_time_ms": 1}'),
        line(begin(DAY) - 1, "ERROR", "edge", "the day before", '{"response_time_ms": 1}'),
        line(begin(DAY), "INFO", "edge", "", '{"response_time_ms": -1, "endpoint": "/api/cart"}'),
        line(begin(DAY), "INFO", "edge", "", '{"response_time_ms": 12.5, "endpoint": "/a \\u00e9"}'),
    ]
    before = [seeded(DAY - timedelta(days=n), 400 + 10 * n, n) for n in range(1, 8) if n != 3]
    wave = [
        line(begin(DAY) + n * 1000, "ERROR", "api-gateway", f"wave {n % 3}", '{"response_time_ms": 9000}')
        for n in range(60)
    ]
    world.load(world.accept(created), created, [*edges, *before, *wave, seeded(DAY, 900, 9)])
    code, output = world.run("daily_report", DAY)
    assert code == 0, output
    assert output.strip().endswith(f"report daily of {DAY}: {len(world.of(DAY)):,} logs, as of batch 1")
    assert_daily(world, client, as_of=1)


def assert_daily(world: World, client: Client, as_of: int) -> None:
    rows = world.of(DAY)
    by_service, by_hour, by_endpoint = (defaultdict[Any, list[Row]](list) for _ in range(3))
    for row in rows:
        by_service[row[SERVICE]].append(row)
        by_hour[(row[TIME] - begin(DAY)) // 3_600_000_000].append(row)
        found = json.loads(row[METADATA])
        if isinstance(found, dict) and "endpoint" in found and milliseconds([row]):
            by_endpoint[found["endpoint"]].append(row)
    report = client.get(f"/api/reports/daily?day={DAY}").json()
    assert datetime.fromisoformat(report.pop("computed_at")) <= datetime.now(UTC)
    endpoints = {name: np.percentile(milliseconds(each), 95) for name, each in by_endpoint.items()}
    totals = ranked(Counter((row[LEVEL], row[SERVICE]) for row in rows))
    assert report == {
        "day": str(DAY),
        "as_of": as_of,
        **volume(rows),
        "levels": [{"level": level, "rows": n} for level, n in ranked(Counter(row[LEVEL] for row in rows))],
        "services": [
            {"service": service, **volume(by_service[service])}
            for service, _ in ranked(Counter(row[SERVICE] for row in rows))
        ],
        "totals": [{"level": level, "service": service, "rows": n} for (level, service), n in totals],
        "hours": [
            {"hour": hour, **volume(by_hour[hour])}
            for hour, _ in ranked(Counter({hour: len(each) for hour, each in by_hour.items()}))
        ],
        "endpoints": [
            {
                "endpoint": name,
                "requests": len(by_endpoint[name]),
                **percentiles(milliseconds(by_endpoint[name])),
            }
            for name in sorted(endpoints, key=lambda name: (-endpoints[name], name))
        ],
    }


def test_the_analysis_compares_each_service_with_the_days_before(world: World, client: Client) -> None:
    code, output = world.run("service_analysis", DAY)
    assert code == 0, output
    report = client.get(f"/api/reports/services?day={DAY}").json()
    names = sorted({row[SERVICE] for row in world.of(DAY)})
    assert [each["service"] for each in report["services"]] == names
    for each in [report["all"], *report["services"]]:
        service, rows = each["service"], world.of(DAY, each["service"])
        assert {name: each[name] for name in volume(rows)} == volume(rows)
        assert {name: each[name] for name in ("p50_ms", "p95_ms", "p99_ms")} == percentiles(milliseconds(rows))
        for n, before in enumerate(each["trend"], 1):
            past = world.of(DAY - timedelta(days=n), service)
            p95 = percentiles(milliseconds(past))["p95_ms"]
            assert before == {"day": str(DAY - timedelta(days=n)), **volume(past), "p95_ms": p95}
        errors = Counter(row[MESSAGE].split("\n")[0] for row in rows if row[LEVEL] == "ERROR")
        assert each["messages"] == [{"message": message, "rows": n} for message, n in ranked(errors)[:10]]
    found = {each["service"]: {a["measure"] for a in each["anomalies"]} for each in report["services"]}
    assert found["api-gateway"] == {"error_rate", "p95_ms"}
    assert found["edge"] == set()  # a handful of rows
    (rate,) = (a for a in by_name(report, "api-gateway")["anomalies"] if a["measure"] == "error_rate")
    past_rates = [d["error_rate"] for d in by_name(report, "api-gateway")["trend"] if d["rows"]]
    assert len(past_rates) == 6
    assert rate["mean"] == pytest.approx(np.mean(past_rates))
    assert rate["sigma"] == pytest.approx(np.std(past_rates, ddof=1))
    assert rate["value"] > rate["threshold"] >= rate["mean"] + 3 * rate["sigma"]
    one = client.get(f"/api/reports/services?day={DAY}&service=api-gateway").json()
    assert one["services"] == [by_name(report, "api-gateway")]


def by_name(report: dict[str, Any], service: str) -> dict[str, Any]:
    return next(each for each in report["services"] if each["service"] == service)


def test_made_again_a_report_replaces_its_day_and_no_other(world: World, client: Client) -> None:
    code, output = world.run("daily_report", DAY - timedelta(days=1))
    assert code == 0, output
    other = client.get(f"/api/reports/daily?day={DAY - timedelta(days=1)}").json()
    late = begin(DAY + timedelta(days=2))
    world.load(world.accept(late), late, [seeded(DAY, 50, 11)])
    for _ in range(2):
        code, output = world.run("daily_report", DAY)
        assert code == 0, output
        assert_daily(world, client, as_of=2)
    assert client.get(f"/api/reports/daily?day={DAY - timedelta(days=1)}").json() == other
    assert client.get("/api/reports").json() == {
        "reports": [
            {"name": "daily", "days": [str(DAY), str(DAY - timedelta(days=1))]},
            {"name": "services", "days": [str(DAY)]},
        ]
    }


def test_rows_above_the_point_are_left_out_and_a_lake_that_lags_is_waited_for(world: World, client: Client) -> None:
    later = begin(DAY + timedelta(days=3))
    batch = world.accept(later)
    rows = list(seeded(DAY, 30, 12).tuples(batch, later))
    append(world.lake, DATASET, rows)  # half of what is to come: the table's position says nothing of it yet
    code, output = world.run("daily_report", DAY)
    assert code == 0, output
    assert_daily(world, client, as_of=2)
    world.accept(begin(DAY) + 5)
    world.load(batch, later, [line(begin(DAY + timedelta(days=5)), "INFO", "api", "", "{}")])
    code, output = world.run("daily_report", DAY)
    assert code == 1
    assert f"lake: it is still loading what was accepted before the end of {DAY}" in output


def test_a_day_that_retention_has_dropped_keeps_its_report(world: World, client: Client) -> None:
    first_kept = world.accept(begin(DAY + timedelta(days=4)))
    world.connection.execute(
        "INSERT INTO floors SELECT 'logs', %(kept)s, max(created_at) FROM batches WHERE batch_id < %(kept)s",
        {"kept": first_kept},
    )
    code, output = world.run("daily_report", DAY)
    assert code == 1
    assert f"the logs of {DAY} were dropped by retention" in output
    assert_daily(world, client, as_of=2)
    world.connection.execute("DELETE FROM floors")


def test_bad_questions_are_answered_with_what_there_is(world: World, client: Client) -> None:
    asked = {
        "daily?day=2026-02-30": (422, "day: "),
        "daily?day=1": (422, "day: "),
        "daily": (422, "day: "),
        "services?day=2001-01-01": (404, f"the latest is of {DAY}"),
        f"services?day={DAY}&service=nobody": (404, "no logs of service 'nobody'"),
        "realtime?minutes=0": (422, "minutes: "),
        "realtime?minutes=1441": (422, "minutes: "),
        "realtime": (404, "logpipe realtime-aggregator"),
    }
    for path, (status, said) in asked.items():
        reply = client.get(f"/api/reports/{path}")
        assert (reply.status_code, said in reply.json()["detail"]) == (status, True), reply.text
    code, output = world.run("daily_report", "tomorrow")
    assert code == 2
    assert "'tomorrow' does not match the format" in output


@dataclass
class Realtime:
    """Publishes rows of a level and service at chosen seconds after `start`, the beginning of a window."""

    world: World
    start: int
    batch: int = 0

    def publish(self, *rows: tuple[float, str]) -> None:
        self.batch += 1
        created = time.time_ns() // 1000
        tuples = [(0, 0, int((self.start + after) * 1e6), level, "api", "", "m", "{}") for after, level in rows]
        accepted = Rows.of(tuples)
        lines = RowCodec(DATASET).encode(accepted.tuples(self.batch, created))
        made = kafka_value.encode(DATASET, self.batch, created, accepted, lines, PARTITIONS)
        producer = KafkaProducer(os.environ["LOGPIPE_KAFKA_URL"], "test")
        producer.publish([message for message in made if message.topic == DATASET.topic])
        producer.close()

    def found(self) -> dict[tuple[float, str], int]:
        rows = windows.latest(self.world.connection, 60) or []
        return {(row.start.timestamp() - self.start, row.level): row.rows for row in rows}


def test_windows_are_counted_once_whatever_is_killed_or_comes_late(world: World, client: Client, hdfs_url: str) -> None:
    url = os.environ["LOGPIPE_KAFKA_URL"]
    ensure_topics(url, {DATASET.topic: PARTITIONS, "alerts.realtime": PARTITIONS}, 1)
    realtime = Realtime(world, int(time.time()) // 10 * 10 - 60)
    port = free_port()
    settings = {
        "LOGPIPE_REALTIME_PORT": str(port),
        "LOGPIPE_REALTIME_TRIGGER_SECONDS": "0.2",
        "LOGPIPE_HDFS_URL": hdfs_url,
        "LOGPIPE_LAKE_PATH": "/realtime",
    }
    process = Process("realtime-aggregator", settings, port)
    process.launch()
    try:
        realtime.publish((1, "INFO"), (2, "INFO"), (9.999, "ERROR"), (10, "INFO"), (86_400, "INFO"))
        expected = {(0, "INFO"): 2, (0, "ERROR"): 1, (10, "INFO"): 1}
        until(lambda: realtime.found() == expected, about=process.output)
        process.kill()
        realtime.publish((3, "INFO"), (12, "WARN"))
        process.launch()
        expected |= {(0, "INFO"): 3, (10, "WARN"): 1}
        until(lambda: realtime.found() == expected, about=process.output)
        # The watermark comes to 25 s; late rows are told by it from the next batch but one.
        realtime.publish((55, "INFO"))
        until(lambda: (50, "INFO") in realtime.found(), about=process.output)
        realtime.publish((56, "INFO"))
        until(lambda: realtime.found().get((50, "INFO")) == 2, about=process.output)
        realtime.publish((4, "INFO"), (29, "INFO"), (57, "INFO"))
        until(lambda: realtime.found().get((50, "INFO")) == 3, about=process.output)
        assert realtime.found() == expected | {(20, "INFO"): 1, (50, "INFO"): 3}
        assert httpx.get(f"{process.url}/readyz", timeout=60).json() == {"status": "READY"}
        assert process.stop() == 0
    finally:
        process.stop()
    reply = client.get("/api/reports/realtime?minutes=60").json()
    assert [(w["start"], w["level"], w["service"], w["rows"]) for w in reply["windows"][:2]] == [
        (f"{datetime.fromtimestamp(realtime.start + after, UTC):%Y-%m-%dT%H:%M:%SZ}", "INFO", "api", rows)
        for after, rows in ((50, 3), (20, 1))
    ]


def test_the_lines_of_a_message_do_not_carry_the_message(world: World) -> None:
    """A batch of large messages would not fit into the driver's memory when its rejects are written after a crash."""
    valid = warm_up.made_up_message(DATASET)
    refused = replace(valid, headers={**valid.headers, "rows": b"1"})

    def values(message: OutgoingMessage) -> list[bytes | None]:
        lines = parsing.lines(from_kafka(world, message), DATASET)
        return [row.value for row in lines.select("value").collect()]

    assert values(valid) == [None] * 250
    assert values(refused) == [valid.value]


def test_a_line_with_a_long_category_is_no_row_and_one_with_nul_is_in_no_window(world: World) -> None:
    valid = warm_up.made_up_message(DATASET)
    services = ("é" * 256, "x" * 257, "a\0b")
    texts = [
        json.loads(text) | {"service": name} for text, name in zip(valid.value.splitlines(), services, strict=False)
    ]
    value = b"".join(json.dumps(text).encode() + b"\n" for text in texts)
    messages = from_kafka(world, replace(valid, value=value, headers={**valid.headers, "rows": b"3"}))
    lines = parsing.lines(messages, DATASET)
    refused = parsing.rejects(lines.where(f"NOT {parsing.validity(DATASET)}"), DATASET).collect()
    assert [(row.line, row.reason) for row in refused] == [(1, "service has more than 256 characters")]
    assert [row.service for row in counted(messages, DATASET).collect()] == ["é" * 256]


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda dataset: dataset.name)
def test_a_line_that_breaks_one_rule_is_refused_by_spark(world: World, dataset: Dataset) -> None:
    broken = [
        (name, line)
        for name, line in bad(dataset)
        # Spark takes a value of any JSON type for a text.
        if line.get(name) is None or isinstance(good(dataset)[name], int | float) or isinstance(line[name], str)
    ]
    value = kafka_value.join([json.dumps(line).encode() for line in (good(dataset), *(line for _, line in broken))])
    headers = {"created_at": b"5", "rows": b"%d" % (len(broken) + 1)}
    lines = parsing.lines(from_kafka(world, OutgoingMessage(dataset.topic, 0, b"1:0", value, headers)), dataset)
    refused = {
        row.line: row.reason
        for row in parsing.rejects(lines.where(f"NOT {parsing.validity(dataset)}"), dataset).collect()
    }
    assert sorted(refused) == list(range(1, len(broken) + 1))
    for number, (name, line) in enumerate(broken, 1):
        assert refused[number].startswith((name, "not a JSON object")), (refused[number], name, line)
    assert len(parsing.rows(lines.where(parsing.validity(dataset)), dataset).collect()) == 1


def test_a_message_of_a_newer_release_stops_the_query(world: World) -> None:
    def problems(message: OutgoingMessage) -> set[str | None]:
        return {row.problem for row in parsing.lines(from_kafka(world, message), DATASET).select("problem").collect()}

    present = warm_up.made_up_message(DATASET)
    former = {name: value for name, value in present.headers.items() if name not in ("version", "columns")}
    assert problems(present) == problems(replace(present, headers=former)) == {None}
    for newer in ({"version": b"2"}, {"version": b"2", "rows": b"1"}, {"columns": b"7"}):
        with pytest.raises(PySparkException, match=parsing.NEWER):
            problems(replace(present, headers={**present.headers, **newer}))
        without = {name: value for name, value in present.headers.items() if name != kafka_value.HASH_HEADER}
        for wrong in ({}, {kafka_value.HASH_HEADER: b"0" * 15}, {kafka_value.HASH_HEADER: b"0" * 16 + b"\n"}):
            found = problems(replace(present, headers={**without, **newer, **wrong}))
            assert found == ({"its header announces another number of lines"} if "rows" in newer else {None})
    foreign = replace(present, key=b"foreign", headers={**present.headers, "version": b"2", "columns": b"7"})
    for key in (b"foreign", present.key + b"\n", present.key + b"\r", present.key + b"\xc2\x85", b"5:1234567890"):
        assert problems(replace(foreign, key=key)) == {"its key is not <batch>:<part>"}
    assert problems(replace(present, headers={**present.headers, "version": b"+2", "columns": b" 7"})) == {None}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"x" * (kafka_value.MAX_VALUE_BYTES - 1) + b"\n", None),
        (b"x" * kafka_value.MAX_VALUE_BYTES + b"\n", "its value has more than 524288 bytes"),
        (b"{}\n" * MAX_BATCH_ROWS, None),
        (b"{}\n" * (MAX_BATCH_ROWS + 1), "its value has more than 131072 lines"),
        (b"\xff\n" * 300_000, "its value has more than 524288 bytes"),
    ],
)
def test_a_message_larger_than_ours_cannot_be_loaded(world: World, value: bytes, problem: str | None) -> None:
    """As `kafka_value.decode` decides."""
    rows = value.count(b"\n")
    message = OutgoingMessage(DATASET.topic, 0, b"5:0", value, {"created_at": b"7", "rows": b"%d" % rows})
    lines = parsing.lines(from_kafka(world, message), DATASET)
    assert {(row.problem, row.size) for row in lines.select("problem", "size").collect()} == {(problem, rows)}
    decoded = kafka_value.decode(Message(DATASET.topic, 0, 0, message.key, value, message.headers))
    assert bool(decoded.problem) is bool(problem)


@pytest.mark.parametrize("name", [kafka_value.CREATED_AT_HEADER, kafka_value.ROWS_HEADER])
def test_a_header_that_is_not_decimal_digits_makes_a_message_unloadable(world: World, name: str) -> None:
    valid = warm_up.made_up_message(DATASET)
    for spelling in (b"+%b", b" %b", b"%b\n", b"%b.0"):
        headers = {**valid.headers, name: spelling % valid.headers[name]}
        lines = parsing.lines(from_kafka(world, replace(valid, headers=headers)), DATASET)
        problems = {row.problem for row in lines.select("problem").collect()}
        assert problems == {"a header, created_at or rows, is missing or not a number"}


def from_kafka(world: World, message: OutgoingMessage) -> DataFrame:
    """As if Spark had read the message from a topic."""
    headers = [
        sql.struct(sql.lit(key).alias("key"), sql.lit(value).alias("value")) for key, value in message.headers.items()
    ]
    return world.spark.range(1).select(
        sql.lit(0).alias("partition"),
        sql.col("id").alias("offset"),
        sql.lit(message.key).alias("key"),
        sql.lit(message.value).alias("value"),
        sql.array(*headers).alias("headers"),
    )


def test_a_query_stores_nothing_more_once_its_table_was_released(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that was suspended meanwhile wakes, and would double what the next writer has stored."""
    monkeypatch.setattr(writer, "_METRICS_SECONDS", 1.0)
    lake = world.lake.model_copy(update={"lake_path": f"{world.lake.lake_path}/released"})
    tables = Tables(lake, DATASET)
    tables.prepare()
    messages = from_kafka(world, warm_up.made_up_message(DATASET))
    position = LakePosition("t", {0: 1}, {0: 0}, "query-1", 0, generation="g")
    writer.write_rows(messages, DATASET, tables.rows.uri, "query-1", 0, position.encode())
    handle, found = tables.rows.current_version()
    assert found == position
    tables.release(handle, LakePosition("t", {0: 1}, generation="g"), {"query-1"})
    later = LakePosition("t", {0: 2}, {0: 1}, "query-1", 1, generation="g")
    with pytest.raises(StoreDown, match="stored by another driver"):
        writer.write_rows(messages, DATASET, tables.rows.uri, "query-1", 1, later.encode())
    assert tables.rows.position() == LakePosition("t", {0: 1}, generation="g")
    with closing(EmbeddedReader(lake)) as reader:
        assert list(reader.counts(DATASET, 0, 10)) == [(1, 250, 250)]
