"""`logpipe realtime-aggregator`: parses, wires, runs. One Spark driver, one streaming query."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import click
from fastapi import FastAPI

from services import datasets
from services.core.errors import LogpipeError
from services.runtime import logs
from services.runtime.health import Readiness
from services.runtime.http import make_app, serve
from services.streams import kafka
from spark_jobs.driver import Driver
from spark_jobs.settings import RealtimeSettings
from spark_jobs.windows import WindowStream

_DATASET = "logs"


@click.command()
def main() -> None:
    """Count logs by level and service in windows of ten seconds, while they arrive.

    Read the windows at /api/reports/realtime.
    """
    settings = RealtimeSettings()
    logs.configure("realtime-aggregator", settings.log_level)
    try:
        run(settings)
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error


def run(settings: RealtimeSettings) -> None:
    dataset = datasets.find(_DATASET)
    kafka.ensure_topics(settings.kafka_url, {dataset.topic: settings.kafka_partitions}, settings.kafka_replication)
    stream = WindowStream(settings, dataset, kafka.KafkaPartitionReader(settings.kafka_url, dataset.topic))
    driver = Driver("realtime-aggregator", settings, [stream])
    serve(create_app(settings, stream, driver), settings.host, settings.realtime_port)
    if driver.error:
        raise driver.error


def create_app(settings: RealtimeSettings, stream: WindowStream, driver: Driver) -> FastAPI:
    readiness = Readiness()
    readiness.add(stream.dataset.name, stream.problem)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        driver.start()
        yield
        await asyncio.to_thread(driver.stop)

    return make_app("Realtime aggregator", settings, [], lifespan, readiness)
