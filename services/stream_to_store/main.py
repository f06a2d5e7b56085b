"""`logpipe stream-to-store`: parses, wires, runs."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import click
from fastapi import FastAPI

from services import datasets, stores
from services.core.dataset import Dataset
from services.core.errors import Invalid, LogpipeError
from services.core.ports import OwnProgressWriter, SinkReader, TransactionalProducer
from services.ledger.sink_progress import SinkProgress
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.workers import Workers
from services.stream_to_store.backlog import Limits
from services.stream_to_store.consumer import Consumer, Progress, Target
from services.stream_to_store.own_progress import OwnProgress
from services.stream_to_store.settings import StreamToStoreSettings
from services.streams import kafka, kafka_client, topics
from services.streams.dead_letters import TOPIC, DeadLetterSender
from services.streams.lag import lag_worker
from services.streams.loop import GroupLoop

DRAIN_SECONDS = 20
WAIT_SECONDS = 1.0  # that a message waits for others, to share one insert


@click.command()
@click.option("--store", required=True, help="The store to fill, e.g. clickhouse.")
@click.option("--dataset", "names", multiple=True, help="A dataset to load; may be repeated. Default: all.")
def main(store: str, names: tuple[str, ...]) -> None:
    """Load datasets from their topics into a store, exactly once."""
    settings = StreamToStoreSettings()
    logs.configure("stream-to-store", settings.log_level)
    try:
        chosen = tuple(map(datasets.find, names)) or datasets.all_datasets()
        loops = [make_loop(settings, store, dataset) for dataset in chosen]
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error
    serve(create_app(settings, loops), settings.host, settings.stream_to_store_port)


def create_app(settings: StreamToStoreSettings, loops: list[GroupLoop[Consumer]]) -> FastAPI:
    readiness = Readiness()
    for loop in loops:
        readiness.add(loop.handler.dataset.name, loop.health)
    reports = {loop.handler.dataset.name: loop.handler.report_lag for loop in loops}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        workers = Workers(*(loop.worker() for loop in loops), lag_worker("stream_to_store", reports))
        workers.start()
        yield
        await asyncio.to_thread(workers.stop, DRAIN_SECONDS)

    return make_app("Stream to store", settings, [], lifespan, readiness)


def make_loop(settings: StreamToStoreSettings, store: str, dataset: Dataset) -> GroupLoop[Consumer]:
    kafka_url, postgres_url = settings.kafka_url, settings.postgres_url.get_secret_value()

    def open_producer() -> TransactionalProducer:
        return kafka.KafkaProducer(kafka_url, f"logpipe-{TOPIC}-{uuid.uuid4()}")

    writer = stores.open_writer(store)
    seconds = settings.block_seconds
    open_progress: Callable[[str], Progress]
    if isinstance(writer, OwnProgressWriter):
        seconds = seconds or writer.wait_seconds
        open_progress = partial(OwnProgress, writer, dataset)
    else:
        seconds = seconds or WAIT_SECONDS
        open_progress = partial(SinkProgress, postgres_url, _sink_reader(store), dataset)
    reader = kafka.KafkaGroupReader(kafka_url, dataset.topic, kafka_client.sink_group(store, dataset.name))
    consumer = Consumer(
        Target(store, dataset, writer, DeadLetterSender(open_producer, store, dataset)),
        reader,
        Limits(settings.block_rows, settings.block_bytes, seconds),
        partial(topics.ensure, settings, [dataset.topic, TOPIC]),
        open_progress,
    )
    return GroupLoop(f"{dataset.name}-{store}", reader, consumer)


def _sink_reader(store: str) -> SinkReader:
    """Open the reader by which SinkProgress knows the identity of the store's tables. Raises Invalid."""
    reader = stores.open_reader(store)
    if reader.progress != "sink":
        reader.close()
        raise Invalid(f"the writer of {store} keeps no positions, so its reader must have progress 'sink' (SinkReader)")
    return reader
