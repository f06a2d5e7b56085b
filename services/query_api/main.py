"""The query API's process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import click
from fastapi import FastAPI
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from services import datasets, stores
from services.core.errors import StoreDown
from services.ledger.reading import Ledger
from services.ledger.watermark import Watermarks
from services.query_api.endpoints import router
from services.query_api.service import QueryService
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.settings import ListenSettings, Port, PostgresSettings

_MEASURE_SECONDS = 5


class QuerySettings(ListenSettings, PostgresSettings):
    query_port: Port = Field(30801, description="port of the query API")


def application(settings: QuerySettings) -> FastAPI:
    known = datasets.all_datasets()
    readiness = Readiness()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ledger = Ledger(settings.postgres_url.get_secret_value())
        watermarks = Watermarks(ledger)
        service = QueryService([stores.open_reader(name) for name in stores.readers()], known, watermarks)
        app.state.service = service
        readiness.add("ledger", lambda: _problem(watermarks))
        measuring = asyncio.create_task(_measure(service))
        yield
        measuring.cancel()
        with suppress(asyncio.CancelledError):
            await measuring
        await run_in_threadpool(service.close)
        ledger.close()

    return make_app("Query API", settings, [router(known)], lifespan, readiness)


def _problem(watermarks: Watermarks) -> str | None:
    try:
        watermarks.settled()
    except StoreDown as error:
        return str(error)
    return None


async def _measure(service: QueryService) -> None:
    while True:
        await run_in_threadpool(service.measure)
        await asyncio.sleep(_MEASURE_SECONDS)


@click.command()
def main() -> None:
    """Serve the query API."""
    settings = QuerySettings()
    logs.configure("query-api", settings.log_level)
    serve(application(settings), settings.host, settings.query_port)
