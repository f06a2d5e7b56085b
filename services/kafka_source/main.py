"""`logpipe kafka-source`: parses, wires, runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from uuid import uuid4

import click
from fastapi import FastAPI

from services import datasets
from services.acceptance.acceptor import Acceptor
from services.acceptance.publishing import topic_names
from services.core.dataset import Dataset
from services.core.dead_letter import SOURCE
from services.core.errors import Invalid, LogpipeError
from services.core.ledger import Source
from services.core.ports import TransactionalProducer
from services.kafka_source.settings import KafkaSourceSettings
from services.kafka_source.source import Limits, SourceHandler, Target
from services.ledger import source_progress
from services.postgres.connection import connect
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.runtime.workers import Workers
from services.streams import kafka, kafka_client, topics
from services.streams.dead_letters import TOPIC as DEAD_LETTERS
from services.streams.dead_letters import DeadLetterSender
from services.streams.lag import lag_worker
from services.streams.loop import GroupLoop

SOURCE_SECONDS = 10


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
    readiness = Readiness()
    acceptor = Acceptor(settings, datasets.all_datasets(), readiness)
    readiness.add("disk", acceptor.disk.health, degraded=True)

    def open_dead_letters() -> TransactionalProducer:
        return kafka.KafkaProducer(settings.kafka_url, f"logpipe-{SOURCE}-{uuid4()}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        reader = kafka.KafkaGroupReader(_source_url(settings), topic, kafka_client.source_group(topic, dataset.name))
        handler = SourceHandler(
            topic,
            reader,
            Target(
                dataset,
                settings.postgres_url.get_secret_value(),
                acceptor.slot,
                acceptor.committer([dataset]),
                DeadLetterSender(open_dead_letters, SOURCE, dataset, topic),
                acceptor.disk,
            ),
            Limits(settings.kafka_source_rows, settings.kafka_source_bytes, settings.kafka_source_seconds),
            partial(make_topics, settings, topic),
            at_end=at_end,
        )
        loop = GroupLoop("source", reader, handler)
        readiness.add("source", loop.health)
        source = Workers(loop.worker(), lag_worker("kafka_source", {dataset.name: handler.report_lag}))
        async with acceptor.running():
            source.start()
            yield
            await asyncio.to_thread(source.stop, SOURCE_SECONDS)

    return make_app("Kafka source", settings, [], lifespan, readiness)


def make_topics(settings: KafkaSourceSettings, topic: str) -> None:
    """Make the topic of dead letters and, in the pipeline's own cluster, the foreign topic, where they are missing.

    A foreign topic that is there stays as its owner configured it. Raises StoreDown, NeedsOperator.
    """
    is_missing = not settings.kafka_source_url and not topics.existing_topics(settings.kafka_url, [topic])
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
