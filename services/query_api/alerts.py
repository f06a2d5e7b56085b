"""Routes of the alerts: which are open, which have been."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from services.core.errors import NotFound
from services.core.ports import QUESTION_SECONDS
from services.core.stopping import Stop
from services.ledger import alerts
from services.ledger.reading import Ledger
from services.postgres.connection import NAME as POSTGRES
from services.query_api.leaving import while_connected
from services.query_api.pools import Pool
from services.runtime.http import needs
from services.runtime.settings import PostgresSettings

MAX_LIMIT = 1000
_LAST_ID = (1 << 63) - 1
_CONNECTIONS = 2


class Alerts(NamedTuple):
    ledger: Ledger
    pool: Pool


async def _alerts(request: Request) -> Alerts:
    found: Alerts = request.app.state.alerts
    return found


_Alerts = Annotated[Alerts, Depends(_alerts)]


def router(settings: PostgresSettings) -> APIRouter:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ledger = Ledger(settings.postgres_url.get_secret_value(), max_connections=_CONNECTIONS)
        app.state.alerts = Alerts(ledger, Pool(POSTGRES, _CONNECTIONS))
        yield
        app.state.alerts.pool.close()
        await run_in_threadpool(ledger.close)

    routes = APIRouter(prefix="/api/alerts", tags=["alerts"], dependencies=[needs("read")], lifespan=lifespan)

    @routes.get("", summary="Alerts, the newest first")
    async def find(
        request: Request,
        opened: _Alerts,
        state: Annotated[Literal["open", "resolved"] | None, Query()] = None,
        service: Annotated[str | None, Query(pattern="^[^\\x00]*$", description="only of this service")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 100,
    ) -> Response:
        def read(stop: Stop) -> Response:
            with opened.ledger.connection() as connection, stop.by(connection.cancel_safe):
                found = alerts.find(connection, state, service, limit)
            return _json({"returned_count": len(found), "limit": limit, "data": found})

        return await while_connected(request, opened.pool.run(read, QUESTION_SECONDS))

    @routes.get("/{alert_id}", summary="One alert")
    async def get(request: Request, opened: _Alerts, alert_id: Annotated[int, Path(ge=1, le=_LAST_ID)]) -> Response:
        def read(stop: Stop) -> Response:
            with opened.ledger.connection() as connection, stop.by(connection.cancel_safe):
                alert = alerts.get(connection, alert_id)
            if alert is None:
                raise NotFound(f"there is no alert {alert_id}")
            return _json(alert)

        return await while_connected(request, opened.pool.run(read, QUESTION_SECONDS))

    return routes


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
