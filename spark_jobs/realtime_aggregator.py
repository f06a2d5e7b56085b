"""`logpipe realtime-aggregator`: parses, wires, runs. One Spark driver runs one streaming query."""

from functools import partial

import click

from services import datasets
from services.core.errors import LogpipeError
from services.runtime import logs
from services.streams import kafka, topics
from spark_jobs import driver
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
    stream = WindowStream(settings, dataset, kafka.KafkaPartitionReader(settings.kafka_url, dataset.topic))
    prepare = partial(topics.ensure, settings, [dataset.topic])
    driver.run("realtime-aggregator", settings, settings.realtime_port, [stream], prepare)
