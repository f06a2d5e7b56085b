"""`logpipe stream-to-store`: parses, wires, runs."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import click
from fastapi import FastAPI

from services import datasets, stores
from services.core.dataset import Dataset
from services.core.errors import Invalid
from services.core.ports import OwnProgressWriter, TransactionalProducer
from services.ledger.sink_progress import SinkProgress
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.workers import Workers
from services.stream_to_store import lag
from services.stream_to_store.backlog import Limits
from services.stream_to_store.consumer import Consumer, Progress
from services.stream_to_store.own_progress import OwnProgress
from services.stream_to_store.settings import StreamToStoreSettings
from services.streams import kafka, topics
from services.streams.dead_letters import TOPIC, DeadLetters

DRAIN_SECONDS = 20
WAIT_SECONDS = 1.0  # for more rows of a block


@click.command()
@click.option("--store", required=True, help="The store to fill, e.g. clickhouse.")
@click.option("--dataset", "names", multiple=True, help="A dataset to take; may be repeated. Default: all.")
def main(store: str, names: tuple[str, ...]) -> None:
    """Take datasets from their topics into a store, exactly once."""
    settings = StreamToStoreSettings()
    logs.configure("stream-to-store", settings.log_level)
    chosen = tuple(map(datasets.find, names)) or datasets.all_datasets()
    consumers = [make_consumer(settings, store, dataset) for dataset in chosen]
    serve(create_app(settings, consumers), settings.host, settings.stream_to_store_port)


def create_app(settings: StreamToStoreSettings, consumers: list[Consumer]) -> FastAPI:
    readiness = Readiness()
    for consumer in consumers:
        readiness.add(consumer.dataset.name, consumer.problem)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        workers = Workers([*(consumer.run for consumer in consumers), partial(lag.report, consumers)])
        workers.start()
        yield
        await asyncio.to_thread(workers.stop, DRAIN_SECONDS)

    return make_app("Stream to store", settings, [], lifespan, readiness)


def make_consumer(settings: StreamToStoreSettings, store: str, dataset: Dataset) -> Consumer:
    url, ledger = settings.kafka_url, settings.postgres_url.get_secret_value()

    def open_producer() -> TransactionalProducer:
        return kafka.KafkaProducer(url, f"logpipe-{TOPIC}-{uuid.uuid4()}")

    writer = stores.open_writer(store)
    own = writer if isinstance(writer, OwnProgressWriter) else None

    def open_progress(topic_id: str) -> Progress:
        if own:
            return OwnProgress(own, dataset, topic_id)
        reader = stores.open_reader(store)
        if reader.progress != "sink":
            raise Invalid(
                f"{store} is filled from Kafka, so its reader must have the identity of its tables (SinkReader)"
            )
        return SinkProgress(ledger, reader, dataset, topic_id)

    seconds = settings.block_seconds or (own.wait_seconds if own else WAIT_SECONDS)
    return Consumer(
        dataset,
        store,
        kafka.KafkaGroupReader(url, dataset.topic, kafka.sink_group(store, dataset.name)),
        writer,
        DeadLetters(open_producer, store, dataset),
        Limits(settings.block_rows, settings.block_bytes, seconds),
        partial(topics.ensure, settings, [dataset.topic, TOPIC]),
        open_progress,
    )
