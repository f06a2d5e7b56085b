"""The query API's routes and page of the dashboard of requests, over three stores in memory with invented requests."""

import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from fastapi import FastAPI

from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.core.ids import first_id
from services.core.instants import DAY, from_datetime
from services.core.ports import DEFAULT_QUERY_SECONDS, Block
from services.core.queries import Query, QueryResult
from services.core.rows import Row, RowCodec
from services.core.stopping import Stop
from services.core.stores import Store
from services.datasets.footprints import DATASET
from services.query_api import footprints_page, traffic
from services.query_api.endpoints import router
from services.query_api.service import QueryService
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import ListenSettings
from services.stores.memory import MemoryStore

NOW = from_datetime(datetime(2026, 11, 20, 15, 30, tzinfo=ZoneInfo("Asia/Seoul")))
FIRST_BATCH = 7
_ENDPOINTS = (
    *(("GET", "/api/products/{id}"), ("GET", "/api/search"), ("GET", "/"), ("POST", "/api/orders")),
    *(
        ("GET", "/api/users/{id}"),
        ("PUT", "/api/carts/{id}"),
        ("GET", "/api/orders/{id}"),
        ("DELETE", "/api/carts/{id}"),
    ),
    *(("POST", "/api/sessions"), ("GET", "/api/reports/{year}/{month}/overview"), ("GET", "/healthz"), ("GET", "")),
)


class StoreInMemory(MemoryStore):
    """`down`: raised by every query. `milliseconds`: what a query takes, besides its own time."""

    down: LogpipeError | None = None
    milliseconds = 0.0

    def execute(
        self, query: Query, as_of: int, seconds: float = DEFAULT_QUERY_SECONDS, stop: Stop | None = None
    ) -> QueryResult:
        if self.down is not None:
            raise self.down
        start = time.perf_counter()
        result = super().execute(query, as_of, seconds, stop)
        return replace(result, elapsed_ms=self.milliseconds + (time.perf_counter() - start) * 1e3)

    def write_rows(self, batch_id: int, rows: Sequence[Row]) -> None:
        self.prepare(DATASET)
        lines = b"".join(line + b"\n" for line in RowCodec(DATASET).encode(rows))
        self.write([Block(DATASET, "topic", 0, batch_id, batch_id, NOW // DAY, len(rows), lines)])


class Postgres(StoreInMemory):
    name = "postgres"
    progress: ClassVar[Any] = "ledger"


class ClickHouse(StoreInMemory):
    name = "clickhouse"
    milliseconds = 2.0


class Lake(StoreInMemory):
    name = "hdfs"
    milliseconds = 40.0


class Watermarks:
    """Every store has loaded up to `as_of`."""

    as_of = FIRST_BATCH

    def of(self, reader: MemoryStore, dataset: Dataset) -> int:
        return self.as_of

    def last_known(self, reader: MemoryStore, dataset: Dataset) -> int:
        return self.as_of


class TrafficApi:
    def __init__(self, rows: Sequence[Row], **listen: Any) -> None:
        self.postgres, self.clickhouse, self.lake = Postgres(), ClickHouse(), Lake()
        self.watermarks = Watermarks()
        self.accept(FIRST_BATCH, rows)
        described = [
            _described(self.clickhouse, "clickhouse", "ClickHouse"),
            _described(self.lake, "hdfs", "lake"),
            _described(self.postgres, "postgresql", "PostgreSQL"),
        ]
        service = QueryService(described, [DATASET], self.watermarks, seconds=5.0)  # type: ignore[arg-type]
        routers = [footprints_page.router, traffic.router(DATASET, now=lambda: NOW), router([DATASET])]
        self.app = make_app("Query API", ListenSettings(**listen), routers, _no_lifespan, Readiness())
        self.app.state.service = service

    def accept(self, batch_id: int, rows: Sequence[Row]) -> None:
        for store in (self.postgres, self.clickhouse, self.lake):
            store.write_rows(batch_id, rows)
        self.watermarks.as_of = batch_id


def _described(reader: StoreInMemory, source: str, label: str) -> Store:
    open_reader: Any = lambda: reader  # noqa: E731
    return Store(reader.name, reader.name, source, label, open_reader=open_reader)


@asynccontextmanager
async def _no_lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


def request_row(
    number: int,
    when: int = NOW - 1,
    method: str = "GET",
    route: str = "/api/search",
    link: str = "/api/search",
    status: float | None = 200.0,
    duration_ms: float | None = 12.5,
    batch_id: int = FIRST_BATCH,
) -> Row:
    return (first_id(batch_id) + number, NOW, method, link, when, status, duration_ms, route, "shop")


def invented(count: int, seed: int = 1) -> list[Row]:
    """Requests of the 30 days before NOW, by a rhythm of days and weeks in Seoul, with a burst at 01:15 each night."""
    chance, rows = random.Random(seed), list[Row]()
    weights = [1 / (rank + 1) for rank in range(len(_ENDPOINTS))]
    while len(rows) < count:
        when = NOW - chance.randrange(30 * DAY)
        local = datetime.fromtimestamp(when / 1e6, ZoneInfo("Asia/Seoul"))
        busy = 0.06 + max(0.0, math.sin((local.hour + local.minute / 60 - 6) / 18 * math.pi)) ** 2
        is_burst = local.hour == 1 and 15 <= local.minute <= 17
        if not is_burst and chance.random() > busy * (0.4 if local.weekday() >= 5 else 1.0):
            continue
        for _ in range(12 if is_burst else 1):
            (method, route) = chance.choices(_ENDPOINTS, weights)[0]
            rank = _ENDPOINTS.index((method, route))
            status: Any = chance.choices([200, 201, 302, 404, 500, None], [80, 9, 4, 5, 1.5, 0.5])[0]
            duration = round(chance.lognormvariate(2.5 + rank / 6, 0.7), 3)
            link = (
                route.replace("{id}", str(chance.randrange(900))) if route else f"/wp-admin/{chance.randrange(5)}.php"
            )
            rows.append(
                request_row(len(rows), when, method, route, link, status and float(status), status and duration)
            )
    return rows
