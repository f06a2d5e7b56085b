"""`logpipe kafka-source`: parses, wires, runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
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
from services.core.dataset import Dataset
from services.core.dead_letter import SOURCE
from services.core.errors import Invalid, LogpipeError
from services.core.ledger import Batch, Source
from services.core.ports import Outgoing, TransactionalProducer
from services.core.rows import RowCodec
from services.kafka_source.settings import KafkaSourceSettings
from services.kafka_source.source import Limits, SourceHandler, Target
from services.ledger import slots, source_progress
from services.postgres.connection import connect
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.workers import Workers
from services.stores.postgres import PostgresReader
from services.streams import kafka, kafka_client, topics
from services.streams.dead_letters import TOPIC as DEAD_LETTERS
from services.streams.dead_letters import DeadLetters
from services.streams.lag import lag_worker
from services.streams.loop import GroupLoop

SOURCE_SECONDS = 10
DRAIN_SECONDS = 10
BACKGROUND_SECONDS = 1


@click.command()
@click.option("--topic", default="", help="The foreign topic. Default: LOGPIPE_KAFKA_SOURCE_TOPIC.")
@click.option("--dataset", "name", default="", help="The dataset of its rows. Default: LOGPIPE_KAFKA_SOURCE_DATASET.")
@click.option(
    "--from",
    "start",
    type=click.Choice(["earliest", "latest"]),
    default="earliest",
    show_default=True,
    help="Where the first start begins; later starts go on where the ledger says.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Do not run. Let the source go on in a topic that was created again or cut, or that has lost messages.",
)
def main(topic: str, name: str, start: str, resume: bool) -> None:
    """Take a foreign topic into a dataset, exactly once."""
    settings = KafkaSourceSettings()
    logs.configure("kafka-source", settings.log_level)
    try:
        topic = checked_topic(topic or settings.kafka_source_topic)
        dataset = datasets.find(name or settings.kafka_source_dataset)
        if resume:
            _resume(settings, topic, dataset)
            return
        app = create_app(settings, topic, dataset, at_end=start == "latest")
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error
    serve(app, settings.host, settings.kafka_source_port)


def checked_topic(topic: str) -> str:
    """Return the topic. Raises Invalid for none, and for one that the pipeline itself writes: it would feed itself."""
    if not topic:
        raise Invalid("no topic is named: --topic, or LOGPIPE_KAFKA_SOURCE_TOPIC")
    if topic in (*topic_names(datasets.all_datasets()), DEAD_LETTERS):
        raise Invalid(f"{topic} is a topic of the pipeline itself: its rows are in the ledger already")
    return topic


def create_app(settings: KafkaSourceSettings, topic: str, dataset: Dataset, *, at_end: bool = False) -> FastAPI:
    known = datasets.all_datasets()
    url = settings.postgres_url.get_secret_value()
    owner_id = uuid4()
    session_name = slots.session_name(owner_id)
    readiness = Readiness()
    remote_disk = remote_disk_of(settings.disk_space_url, settings.token)
    disk = DiskFloor(remote_disk or LocalDisk(settings.ingest_disk_path), settings.ingest_disk_floor)
    maintenance = PostgresMaintenance(url, known, None, session_name)
    readiness.add("postgres", maintenance.health)
    readiness.add("partitions", maintenance.degraded, degraded=True)
    readiness.add("disk", disk.health, degraded=True)
    workers = [maintenance.worker()]
    if remote_disk:
        workers.append(remote_disk.worker)
        readiness.add("disk-space", remote_disk.health, degraded=True)
    background = Workers(*workers)
    message_cache = MessageCache(settings.publisher_cache)

    def open_dead_letters() -> TransactionalProducer:
        return kafka.KafkaProducer(settings.kafka_url, f"logpipe-{SOURCE}-{uuid4()}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        rows = PostgresReader(url, 2, session_name)
        opener = publisher_opener(settings, known, message_cache, rows)
        owner = SlotOwner(url, owner_id, partial(topics.ensure, settings, topic_names(known)), opener)

        def on_committed(batch: Batch, outgoing: list[Outgoing]) -> None:
            message_cache.put(batch.batch_id, outgoing)
            owner.wake()

        committer = Committer(
            url,
            {dataset.name: RowCodec(dataset)},
            owner.slot,
            on_committed,
            settings.ingest_group_rows,
            settings.kafka_partitions,
            session_name,
        )
        reader = kafka.KafkaGroupReader(_source_url(settings), topic, kafka_client.source_group(topic, dataset.name))
        handler = SourceHandler(
            topic,
            reader,
            Target(dataset, url, owner.slot, committer, DeadLetters(open_dead_letters, SOURCE, dataset, topic), disk),
            Limits(settings.kafka_source_rows, settings.kafka_source_bytes, settings.kafka_source_seconds),
            partial(make_topics, settings, topic),
            at_end=at_end,
        )
        loop = GroupLoop("source", reader, handler)
        readiness.add("source", loop.health)
        readiness.add("slots", owner.health)
        readiness.add("publishing", owner.degraded, degraded=True)
        source = Workers(loop.worker(), lag_worker("kafka_source", {dataset.name: handler.report_lag}))
        background.start()
        owner.start()
        source.start()
        yield
        await asyncio.to_thread(source.stop, SOURCE_SECONDS)
        await asyncio.to_thread(owner.stop, DRAIN_SECONDS)
        await asyncio.to_thread(background.stop, BACKGROUND_SECONDS)
        rows.close()

    return make_app("Kafka source", settings, [], lifespan, readiness)


def make_topics(settings: KafkaSourceSettings, topic: str) -> None:
    """Make the topic of dead letters and, in the pipeline's own cluster, the foreign topic, where they are missing.

    A foreign topic that is there stays as its owner configured it. Raises StoreDown, NeedsOperator.
    """
    is_missing = not settings.kafka_source_url and not topics.present(settings.kafka_url, [topic])
    topics.ensure(settings, [DEAD_LETTERS, *([topic] if is_missing else [])])


def _resume(settings: KafkaSourceSettings, topic: str, dataset: Dataset) -> None:
    with (
        closing(kafka.KafkaPartitionReader(_source_url(settings), topic)) as reader,
        closing(connect(settings.postgres_url.get_secret_value())) as connection,
    ):
        source = Source(topic, reader.topic_id(), dataset.name)
        changed = source_progress.resume(connection, source, reader.bounds())
    for partition, before, after in changed:
        came_from = "new" if before is None else f"was read up to {before}"
        click.echo(f"partition {partition}: {came_from}, goes on at {after}")
    if not changed:
        click.echo("every partition goes on where it is")


def _source_url(settings: KafkaSourceSettings) -> str:
    return settings.kafka_source_url or settings.kafka_url
