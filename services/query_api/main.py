"""`logpipe query-api`: parses, wires, runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import click
from fastapi import FastAPI
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from services import datasets, stores
from services.alerts import repository
from services.core.errors import StoreDown
from services.core.ports import DEFAULT_QUERY_SECONDS
from services.ledger.watermark import Watermarks
from services.postgres.pool import Pool
from services.query_api import alerts, footprints_page, reports, traffic, verifications
from services.query_api.cache import CacheSettings, open_cache
from services.query_api.endpoints import router
from services.query_api.scopes import Scopes
from services.query_api.service import QueryService
from services.reports import windows
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.settings import ListenSettings, Port, PostgresSettings
from services.runtime.workers import Worker, Workers

_MEASURE_SECONDS = 5
_STOP_SECONDS = 10
_HELD_SECONDS = 15.0  # after which /readyz reports that a transaction keeps the watermarks from rising


class QuerySettings(ListenSettings, PostgresSettings, CacheSettings):
    query_port: Port = Field(30801, description="port of the query API")
    query_seconds: float = Field(
        DEFAULT_QUERY_SECONDS,
        gt=0,
        le=600,
        description="time limit of a query; the store then cancels it: 504",
    )
    query_late_seconds: float = Field(
        300, gt=0, description="age of the oldest batch that a store has not loaded; beyond it /readyz reports degraded"
    )


def application(settings: QuerySettings) -> FastAPI:
    known = datasets.all_datasets()
    # The routers of reports and alerts open their own pools; the lifespan below opens the query service.
    routers = [
        footprints_page.router,
        traffic.router(datasets.find("footprints")),
        router(known),
        reports.router(settings),
        alerts.router(settings),
    ]
    readiness = Readiness()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ledger = Pool(settings.postgres_url.get_secret_value())
        watermarks = Watermarks(ledger)
        cache = open_cache(settings)
        service = QueryService(stores.readable(), known, watermarks, settings.query_seconds, cache, Scopes(ledger))
        app.state.service = service
        readiness.add("ledger", lambda: _ledger_health(watermarks))
        readiness.add("tables", lambda: _outdated(ledger))
        readiness.add("watermark", lambda: _held_back_by(watermarks), degraded=True)
        readiness.add("stores", service.late, degraded=True)
        background = Workers(
            *measuring_workers(service, settings.query_late_seconds),
            Worker("verifications", partial(_report_verifications, ledger)),
        )
        background.start()
        yield
        await run_in_threadpool(background.stop, _STOP_SECONDS)
        await run_in_threadpool(service.close)
        if cache is not None:
            cache.close()
        ledger.close()

    return make_app("Query API", settings, routers, lifespan, readiness)


def _ledger_health(watermarks: Watermarks) -> str | None:
    try:
        watermarks.settled()
    except StoreDown as error:
        return str(error)
    return None


def _outdated(pool: Pool) -> str | None:
    """Return which command changes the tables that queries read, if they are older than this release."""
    try:
        with pool.connection() as connection:
            repository.require(connection)
            windows.require(connection)
    except StoreDown as error:
        return str(error)
    return None


def _held_back_by(watermarks: Watermarks) -> str | None:
    """Return the writers whose open transactions keep all watermarks from rising, when that lasts too long."""
    if holders := watermarks.blocking_transactions(_HELD_SECONDS):
        return "a batch is still being written by " + "; ".join(map(str, holders))
    return None


def measuring_workers(service: QueryService, late_seconds: float) -> list[Worker]:
    """Return one worker for each store, so that a store that hangs does not delay the measuring of the others."""
    turns = {route: partial(_measure, service, route, late_seconds) for route in service.routes}
    return [Worker(f"measure {route}", turn) for route, turn in turns.items()]


def _measure(service: QueryService, route: str, late_seconds: float) -> float:
    """The turn of a worker: measure one store once. Returns the seconds until the next time."""
    service.measure(route, late_seconds)
    return _MEASURE_SECONDS


def _report_verifications(ledger: Pool) -> float:
    """The turn of a worker: serve the results of the last verifications. Returns the seconds until the next time."""
    verifications.report(ledger)
    return _MEASURE_SECONDS


@click.command()
def main() -> None:
    """Serve the query API."""
    settings = QuerySettings()
    logs.configure("query-api", settings.log_level)
    serve(application(settings), settings.host, settings.query_port)
