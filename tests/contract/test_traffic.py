"""One suite of the dashboard's panels for every store: the same requests stored, the same figures.

The oracle is plain Python. It takes local times from `datetime`, and percentiles from a search of the definition.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from psycopg import sql

from services.core import rollups
from services.core.ids import first_id
from services.core.instants import LAST_INSTANT, from_datetime, to_datetime
from services.core.local_week import offsets
from services.core.ports import Block, StoreReader, StoreWriter
from services.core.queries import Filters, Panel, TrafficQuery
from services.core.rows import Row, RowCodec
from services.datasets.footprints import DATASET as FOOTPRINTS
from services.lake.processes import ProcessReader
from services.postgres.connection import connect
from services.runtime.settings import LakeSettings
from services.stores import postgres
from services.stores.clickhouse.reader import ClickHouseReader
from services.stores.clickhouse.writer import ClickHouseWriter
from services.stores.memory import MemoryStore
from services.stores.postgres import rollup_chunks
from tests import lake_tables
from tests.contract.test_store_readers import copy_rows

DATASET = replace(FOOTPRINTS, name="traffic_footprints")
DAY = 86_400_000_000
MINUTE = 60_000_000
CREATED = 20_778 * DAY
BATCHES, ROWS = 70, 12  # ClickHouse's rollup has whole spans of 64 batches
LAST = BATCHES
SIZES = (1, 19, 20, 21, 99, 100, 101, 200, 1000)

# The clocks are changed on 2026-03-29 and 2026-10-25 in Berlin, by half an hour on 2026-04-05 on Lord Howe Island, and
# thrice a year in Casablanca. Monrovia was 44 minutes and 30 seconds behind UTC until 1972.
ZONES = ("UTC", "Asia/Seoul", "Europe/Berlin", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Kathmandu")
CHANGES = [
    from_datetime(datetime.fromisoformat(text))
    for text in ("2026-03-29T01:00Z", "2026-10-25T01:00Z", "2026-04-04T15:00Z", "2026-02-15T02:00Z")
]
YEAR = (
    from_datetime(datetime.fromisoformat("2026-01-01T00:00Z")),
    from_datetime(datetime.fromisoformat("2027-01-01T00:00Z")),
)
PERIODS = [
    YEAR,
    (0, 3653 * DAY),
    (LAST_INSTANT - 3653 * DAY, LAST_INSTANT),
    (CHANGES[0] - 90 * MINUTE - 1, CHANGES[0] + 90 * MINUTE + 1),
    (CHANGES[2] - 1, CHANGES[2] + 1),
    (5, 5),
]
PANELS: tuple[Panel, ...] = ("total", "week", "endpoints", "statuses", "durations")

STATUSES = [None, 0.0, -0.0, -1.0, 99.0, 99.9, 100.0, 200.0, 200.0, 204.5, 301.0, 404.0, 499.9, 599.0, 600.0, 1e308]
DURATIONS = [None, 0.0, -0.0, 0.001, 0.1, 0.2, 3.0, 3.0, 7.125, 1e308, -5e-324, -2.5]
LINKS = ["/", "/users/1", "/users/2", "/é", "/e\u0301", "/😀", "/\uffff", "/a'b\\", "/x\ny", "/" + "long" * 1000]
ROUTES = ["", "", "/users/{id}", "/é", "/%s"]
METHODS = ["GET", "POST", "get", ""]


def _time(chance: random.Random) -> int:
    near = chance.choice(CHANGES) + chance.choice([-MINUTE, -1, 0, 1, MINUTE, chance.randrange(-DAY, DAY)])
    return chance.choice([near, near, chance.randrange(*YEAR), chance.randrange(LAST_INSTANT), 0, LAST_INSTANT - 1])


def _batch(batch_id: int) -> list[Row]:
    chance = random.Random(batch_id)
    choose = chance.choice
    return [
        (
            first_id(batch_id) + n,
            CREATED + batch_id,
            *(choose(METHODS), choose(LINKS), _time(chance), choose(STATUSES), choose(DURATIONS)),
            *(choose(ROUTES), choose(["", "shop"])),
        )
        for n in range(ROWS)
    ]


def _ranked(batch_id: int) -> list[Row]:
    """As many requests to each of some routes as SIZES says, with the durations 0, 1, 2 and so on."""
    durations = [(f"/of/{size}", float(duration)) for size in SIZES for duration in range(size)]
    random.Random(batch_id).shuffle(durations)
    return [
        (first_id(batch_id) + n, CREATED + batch_id, "GET", "/", 9 * DAY + n, None, duration, route, "ranks")
        for n, (route, duration) in enumerate(durations)
    ]


ACCEPTED = {**{batch_id: _batch(batch_id) for batch_id in range(1, BATCHES)}, BATCHES: _ranked(BATCHES)}


def _fill(writer: StoreWriter) -> None:
    writer.prepare(DATASET)
    for batch_id, rows in ACCEPTED.items():
        lines = b"".join(line + b"\n" for line in RowCodec(DATASET).encode(rows))
        writer.write([Block(DATASET, "topic", 0, batch_id, batch_id, CREATED // DAY, len(rows), lines)])


def _fill_postgres(url: str) -> None:
    with connect(url) as connection:
        postgres.prepare(connection, DATASET)
        postgres.ensure_partitions(connection, DATASET, CREATED // DAY, 1)
        for rows in ACCEPTED.values():
            copy_rows(connection, DATASET, rows)


def _roll_up(url: str) -> None:
    """Count the batches of one chunk, which is not the whole of them."""
    until = BATCHES - 3
    with connect(url) as connection, connection.transaction():
        counted = rollup_chunks._add(connection, DATASET, 0, until, sql.Composed([sql.SQL("true")]))
        connection.execute(
            "INSERT INTO rollup_chunks (rollup, until_batch, day, row_count) VALUES (%s, %s, %s, %s)",
            (rollups.name(DATASET), until, to_datetime(CREATED).date(), counted),
        )


@pytest.fixture(scope="module", params=["memory", "postgres", "postgres, rolled up", "clickhouse", "lake"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreReader]:
    reader: StoreReader
    match request.param:
        case "memory":
            reader = MemoryStore()
            _fill(reader)
        case "postgres":
            url = request.getfixturevalue("postgres_url")
            _fill_postgres(url)
            reader = postgres.PostgresReader(url)
        case "postgres, rolled up":
            url = request.getfixturevalue("postgres_url")
            _roll_up(url)
            reader = postgres.PostgresReader(url)
        case "clickhouse":
            url = request.getfixturevalue("clickhouse_url")
            _fill(ClickHouseWriter(url))
            reader = ClickHouseReader(url)
        case "lake":
            settings = LakeSettings(hdfs_url=tmp_path_factory.mktemp("lake").as_uri())
            lake_tables.append(settings, DATASET, [row for rows in ACCEPTED.values() for row in rows])
            reader = ProcessReader(settings)
    yield reader
    reader.close()


def _expected(query: TrafficQuery, zone: str, as_of: int) -> list[Row]:
    requests = [
        request
        for batch_id, rows in ACCEPTED.items()
        for request in (dict(zip(DATASET.column_names, row, strict=True)) for row in rows)
        if batch_id <= as_of and _matches(query.filters, request)
    ]
    match query.panel:
        case "total":
            return [(len(requests),)]
        case "week":
            return sorted(Counter(_minute(request["footprint_time"], zone) for request in requests).items())
        case "endpoints":
            counts = Counter(map(_endpoint, requests))
            return sorted(((*key, count) for key, count in counts.items()), key=_by_count)[: query.limit]
        case "statuses":
            return sorted(Counter(_class(request["status"]) for request in requests).items())
        case "durations":
            found: dict[Any, list[float]] = {}
            for request in requests:
                if request["duration_ms"] is not None:
                    found.setdefault(_endpoint(request), []).append(request["duration_ms"] or 0.0)
            slowest = [(*key, len(ms), *(_nearest_rank(ms, p) for p in (50, 95, 99))) for key, ms in found.items()]
            return sorted(slowest, key=lambda row: (-row[4], row[0], row[1]))[: query.limit]


def _matches(filters: Filters, request: dict[str, Any]) -> bool:
    assert filters.start is not None
    assert filters.end is not None
    return filters.start <= request["footprint_time"] < filters.end and all(
        request[name] == value for name, value in filters.equals
    )


def _minute(instant: int, zone: str) -> int:
    local = to_datetime(instant).astimezone(ZoneInfo(zone))
    return ((local.weekday() * 24 + local.hour) * 60 + local.minute) * MINUTE


def _endpoint(request: dict[str, Any]) -> tuple[str, str]:
    return request["method"], request["route"] or request["link"]


def _by_count(row: Row) -> Any:
    return -row[2], row[0], row[1]


def _class(status: float | None) -> str:
    if status is None:
        return "none"
    return f"{status // 100:.0f}xx" if 100 <= status < 600 else "other"


def _nearest_rank(durations: list[float], percentile: int) -> float:
    """The least duration that at least this share of all durations does not exceed."""
    return min(
        duration
        for duration in durations
        if sum(other <= duration for other in durations) * 100 >= percentile * len(durations)
    )


def _query(panel: Panel, period: tuple[int, int], zone: str, equals: Any = (), **options: Any) -> TrafficQuery:
    return TrafficQuery(DATASET, panel, Filters(equals, *period), offsets(ZoneInfo(zone), *period), **options)


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("as_of", [0, 31, LAST + 100])
def test_every_panel(store: StoreReader, panel: Panel, as_of: int) -> None:
    zones = ZONES if panel == "week" else ("UTC",)
    for period in PERIODS:
        for zone in zones:
            for equals in ((), (("service", "shop"), ("method", "GET"))):
                query = _query(panel, period, zone, equals)
                expected = repr(_expected(query, zone, as_of))
                assert repr(store.execute(query, as_of).rows) == expected, (period, zone)
                if as_of > LAST:
                    scanned = store.execute(replace(query, scan=True), as_of)
                    assert (scanned.method, repr(scanned.rows)) == ("scan", expected), (period, zone)


def test_which_panels_a_rollup_counts(store: StoreReader, request: pytest.FixtureRequest) -> None:
    year = [store.execute(_query(panel, YEAR, "Asia/Seoul"), LAST).method for panel in PANELS]
    then = (0, 365 * DAY)
    monrovia = store.execute(_query("week", then, "Africa/Monrovia"), LAST)
    has_rollup = request.node.callspec.params["store"] in ("postgres, rolled up", "clickhouse")
    assert year == (["rollup", "rollup", "scan", "scan", "scan"] if has_rollup else ["scan"] * 5)
    assert monrovia.method == "scan"  # local minutes begin at half a minute of UTC
    assert monrovia.rows == _expected(_query("week", then, "UTC"), "Africa/Monrovia", LAST)


@pytest.mark.parametrize("panel", ["endpoints", "durations"])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_the_limit_of_endpoints(store: StoreReader, panel: Panel, limit: int) -> None:
    query = _query(panel, (0, LAST_INSTANT), "UTC", limit=limit)
    found = store.execute(query, LAST).rows
    assert repr(found) == repr(_expected(query, "UTC", LAST))
    assert len(found) == min(limit, len(_expected(replace(query, limit=1000), "UTC", LAST)))


@pytest.mark.parametrize("size", SIZES)
def test_ranks_of_which_some_are_whole_numbers(store: StoreReader, size: int) -> None:
    """A store computes the rank as a product of the number of durations and a fraction."""
    query = _query("durations", (0, LAST_INSTANT), "UTC", (("route", f"/of/{size}"),))
    expected = [-(-size * percentile // 100) - 1.0 for percentile in (50, 95, 99)]
    assert store.execute(query, LAST).rows == [("GET", f"/of/{size}", size, *expected)]
