"""`logpipe ingest-api`: parses, wires, runs."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
from fastapi import FastAPI

from services import datasets
from services.acceptance.acceptor import Acceptor
from services.ingest_api.decoding import Decoder
from services.ingest_api.endpoints import HEALTH_PATH, Ingest, collect_router
from services.ingest_api.memory_trimmer import Trimmer
from services.ingest_api.search_index import SearchIndexer
from services.ingest_api.service import IngestService
from services.ingest_api.settings import IngestSettings
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.request_bodies import InFlight


@click.command()
@click.option("--share-port", is_flag=True, help="Let several such processes serve one port; each uses about one core.")
def main(share_port: bool) -> None:
    """Accept rows by HTTP, commit them to PostgreSQL, publish them to Kafka."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)  # rows come and go by the ten thousand, and none of them is part of a cycle
    settings = IngestSettings()
    logs.configure("ingest-api", settings.log_level)
    own_port = settings.ingest_own_port
    serve(create_app(settings), settings.host, settings.ingest_port, share_port=share_port, own_port=own_port)


def create_app(settings: IngestSettings) -> FastAPI:
    known = datasets.all_datasets()
    readiness = Readiness()
    workers = []
    if settings.ingest_text_index:
        workers.append(SearchIndexer(settings.postgres_url.get_secret_value(), known).worker())
    acceptor = Acceptor(settings, known, readiness, settings.request_key_hours, workers)
    readiness.add("disk", acceptor.disk.health)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        committers = [acceptor.committer(known) for _ in range(settings.ingest_connections)]
        service = IngestService(committers, settings.ingest_group_rows, settings.ingest_group_wait)
        decoder, in_flight = Decoder(), InFlight(settings.ingest_max_in_flight)
        in_flight.request_ended = Trimmer(decoder.thread, in_flight).request_ended
        app.state.ingest = Ingest(
            service, decoder, in_flight, acceptor.disk, settings.ingest_max_body, acceptor.ledger_identity
        )
        async with acceptor.running():
            service.start()
            yield
            await service.drain()

    return make_app("Ingest API", settings, [collect_router(known)], lifespan, readiness, frozenset({HEALTH_PATH}))
