"""The routes of the alerts, both open and resolved."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from services.alerts import repository as alerts
from services.core.errors import NotFound
from services.postgres.connection import Connection
from services.query_api.ledger_threads import LedgerThreads
from services.query_api.replies import json_reply
from services.runtime.http import needs
from services.runtime.settings import PostgresSettings

MAX_LIMIT = 1000
_LAST_ID = (1 << 63) - 1
_THREADS = 2


async def _alerts(request: Request) -> LedgerThreads:
    found: LedgerThreads = request.app.state.alerts
    return found


_Alerts = Annotated[LedgerThreads, Depends(_alerts)]


def router(settings: PostgresSettings) -> APIRouter:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.alerts = LedgerThreads(settings.postgres_url.get_secret_value(), _THREADS)
        yield
        await run_in_threadpool(app.state.alerts.close)

    routes = APIRouter(prefix="/api/alerts", tags=["alerts"], dependencies=[needs("read")], lifespan=lifespan)

    @routes.get("", summary="Alerts, the newest first")
    async def find(
        request: Request,
        opened: _Alerts,
        state: Annotated[Literal["open", "resolved"] | None, Query()] = None,
        service: Annotated[str | None, Query(pattern="^[^\\x00]*$", description="only of this service")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
    ) -> Response:
        def read(connection: Connection) -> Response:
            found = alerts.find(connection, state, service, limit)
            return json_reply({"returned_count": len(found), "limit": limit, "data": found})

        return await opened.read(request, read)

    @routes.get("/{alert_id}", summary="One alert")
    async def get(request: Request, opened: _Alerts, alert_id: Annotated[int, Path(ge=1, le=_LAST_ID)]) -> Response:
        def read(connection: Connection) -> Response:
            alert = alerts.get(connection, alert_id)
            if alert is None:
                raise NotFound(f"there is no alert {alert_id}")
            return json_reply(alert)

        return await opened.read(request, read)

    return routes
