"""Schemathesis over the query API's OpenAPI page: whatever is sent, it answers by its page, and never with a bug.

The stores are in memory, so that it is the API alone that is tried; hostile text in real stores: tests/property.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from services.core.dataset import Dataset
from services.core.ids import first_id
from services.core.ports import Block, StoreReader
from services.core.rows import RowCodec
from services.core.stores import Store
from services.datasets.events import DATASET as EVENTS
from services.datasets.logs import DATASET as LOGS
from services.query_api.endpoints import router
from services.query_api.service import QueryService
from services.runtime.health import Readiness
from services.runtime.http import make_app
from services.runtime.settings import ListenSettings
from services.stores.memory import MemoryStore

ROWS = {
    LOGS: (1_800_000_000_000_000, "ERROR", "api", "", "it's 5% of C:\\temp", '{"n": 1}'),
    EVENTS: ("00000000-0000-0000-0000-000000000001", 1_800_000_000_000_000, "u", "s", "VIEW", "{}", "[]", ""),
}
STORES = ("postgres", "clickhouse", "hdfs")


class _Watermarks:
    def of(self, reader: StoreReader, dataset: Dataset) -> int:
        return 9


@asynccontextmanager
async def _no_lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


def _store(name: str) -> Store:
    store: MemoryStore = type(name, (MemoryStore,), {"name": name})()
    for dataset, values in ROWS.items():
        store.prepare(dataset)
        rows = [(first_id(batch_id), 1_800_000_000_000_000 + batch_id, *values) for batch_id in range(1, 9)]
        lines = b"".join(line + b"\n" for line in RowCodec(dataset).encode(rows))
        store.write([Block(dataset, "topic", 0, 1, 1, 20_833, len(rows), lines)])
    return Store(name, name, name, name, open_reader=lambda: store)


def _app() -> FastAPI:
    app = make_app(
        "Query API", ListenSettings(allowed_hosts="testserver"), [router((EVENTS, LOGS))], _no_lifespan, Readiness()
    )
    app.state.service = QueryService(
        [_store(name) for name in STORES],
        (EVENTS, LOGS),
        _Watermarks(),  # type: ignore[arg-type]
    )
    for path in app.openapi()["paths"].values():  # else nearly all that is made up would end at an unknown store
        for parameter in path["get"].get("parameters", []):
            if parameter["name"] == "store":
                parameter["schema"] = {"enum": [*STORES, "' OR 1=1 --"]}
    return app


api = schemathesis.openapi.from_asgi("/openapi.json", _app())


@api.include(path_regex="^/api/query/").parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_reply_is_by_the_page(case: Any) -> None:
    # Two times, or a cursor and a filter, may be fine each and not go together: no page can say so.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
