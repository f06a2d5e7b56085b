"""`logpipe ingest-api`: parses, wires, runs."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import click
from fastapi import FastAPI

from services import datasets
from services.acceptance.committer import Committer
from services.acceptance.disk import DiskFloor, LocalDisk
from services.acceptance.postgres_maintenance import PostgresMaintenance
from services.acceptance.publisher import MessageCache
from services.acceptance.publishing import publisher_opener, topic_names
from services.acceptance.remote_disk import remote_disk_of
from services.acceptance.slot_owner import SlotOwner
from services.core.ledger import Batch
from services.core.ports import Outgoing
from services.core.rows import RowCodec
from services.ingest_api.bodies import InFlight
from services.ingest_api.decoding import Decoder
from services.ingest_api.endpoints import HEALTH_PATH, Ingest, collect_router
from services.ingest_api.memory import Trimmer
from services.ingest_api.search_index import SearchIndexer
from services.ingest_api.service import IngestService
from services.ingest_api.settings import IngestSettings
from services.ledger import slots
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.workers import Workers
from services.stores.postgres import PostgresReader
from services.streams import topics

DRAIN_SECONDS = 15
BACKGROUND_SECONDS = 1


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
    url = settings.postgres_url.get_secret_value()
    readiness = Readiness()
    remote_disk = remote_disk_of(settings.disk_space_url, settings.token)
    disk = DiskFloor(remote_disk or LocalDisk(settings.ingest_disk_path), settings.ingest_disk_floor)
    readiness.add("disk", disk.health)

    owner_id = uuid4()
    session_name = slots.session_name(owner_id)
    maintenance = PostgresMaintenance(url, known, settings.request_key_hours, session_name)
    workers = [maintenance.worker()]
    if settings.ingest_text_index:
        workers.append(SearchIndexer(url, known).worker())
    if remote_disk:
        workers.append(remote_disk.worker)
        readiness.add("disk-space", remote_disk.health, degraded=True)
    background = Workers(*workers)
    readiness.add("postgres", maintenance.health)
    readiness.add("partitions", maintenance.degraded, degraded=True)
    message_cache = MessageCache(settings.publisher_cache)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        rows = PostgresReader(url, 2, session_name)
        opener = publisher_opener(settings, known, message_cache, rows)
        owner = SlotOwner(url, owner_id, partial(topics.ensure, settings, topic_names(known)), opener)
        readiness.add("slots", owner.health)
        readiness.add("publishing", owner.degraded, degraded=True)
        background.start()
        owner.start()

        def on_committed(batch: Batch, outgoing: list[Outgoing]) -> None:
            message_cache.put(batch.batch_id, outgoing)
            owner.wake()

        codecs = {dataset.name: RowCodec(dataset) for dataset in known}
        group_rows, partitions = settings.ingest_group_rows, settings.kafka_partitions
        committers = [
            Committer(url, codecs, owner.slot, on_committed, group_rows, partitions, session_name)
            for _ in range(settings.ingest_connections)
        ]
        service = IngestService(committers, group_rows, settings.ingest_group_wait)
        service.start()
        decoder, in_flight = Decoder(), InFlight(settings.ingest_max_in_flight)
        in_flight.request_ended = Trimmer(decoder.thread, in_flight).request_ended
        app.state.ingest = Ingest(
            service,
            decoder,
            in_flight,
            disk,
            settings.ingest_max_body,
            maintenance.ledger,
        )
        yield
        await service.drain()
        await asyncio.to_thread(owner.stop, DRAIN_SECONDS)
        await asyncio.to_thread(background.stop, BACKGROUND_SECONDS)
        rows.close()

    return make_app("Ingest API", settings, [collect_router(known)], lifespan, readiness, frozenset({HEALTH_PATH}))
