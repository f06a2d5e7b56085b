"""`logpipe stream-to-lake`: parses, wires, runs. One Spark driver runs a streaming query for each dataset."""

from threading import Event

import click
from pyspark.sql import SparkSession

from services import datasets
from services.core.dataset import Dataset
from services.core.errors import LogpipeError
from services.runtime import logs
from services.streams import kafka, topics
from spark_jobs import driver, recovery, warm_up
from spark_jobs.settings import StreamToLakeSettings
from spark_jobs.stream import LakeStream


@click.command()
@click.option("--dataset", "names", multiple=True, help="A dataset to load; may be repeated. Default: all.")
@click.option(
    "--resume", metavar="DATASET", help="Delete its checkpoint: the next start continues where its table ends."
)
@click.option(
    "--rebuild", metavar="DATASET", help="Delete its rows and checkpoint: the next start reads its topic again."
)
@click.option("--yes", is_flag=True, help="With --rebuild: delete the rows, although the topic may lack some of them.")
def main(names: tuple[str, ...], resume: str | None, rebuild: str | None, *, yes: bool) -> None:
    """Load datasets from their topics into the lake, exactly once.

    With --resume or --rebuild, the command does only that, and ends. No process may write the dataset meanwhile.
    """
    settings = StreamToLakeSettings()
    logs.configure("stream-to-lake", settings.log_level)
    try:
        if resume:
            position = recovery.resume(make_stream(settings, datasets.find(resume)))
            click.echo(f"{resume}: the next start continues at {position.offsets}")
        elif rebuild:
            recovery.rebuild(make_stream(settings, datasets.find(rebuild)), give_up_rows=yes)
            click.echo(f"{rebuild}: emptied; the next start reads its topic from the beginning")
        else:
            run(settings, tuple(map(datasets.find, names)) or datasets.all_datasets())
    except LogpipeError as error:
        raise click.ClickException(str(error)) from error


def run(settings: StreamToLakeSettings, chosen: tuple[Dataset, ...]) -> None:
    streams = [make_stream(settings, dataset) for dataset in chosen]
    behind = False

    def prepare() -> None:
        nonlocal behind
        topics.ensure(settings, [dataset.topic for dataset in chosen])
        for stream in streams:
            stream.open()
        behind = any(stream.lag() for stream in streams)

    def warm(spark: SparkSession, stop: Event) -> None:
        # No warm-up while messages wait: they would wait longer, and their micro-batch warms Spark up as well.
        warm_up.run(spark, settings, chosen, 0 if behind else settings.lake_warm_up_seconds, stop)
        for stream in streams:
            stream.open()  # another writer may have written the table meanwhile

    driver.run("stream-to-lake", settings, settings.stream_to_lake_port, streams, prepare, warm)


def make_stream(settings: StreamToLakeSettings, dataset: Dataset) -> LakeStream:
    return LakeStream(settings, dataset, kafka.KafkaPartitionReader(settings.kafka_url, dataset.topic))
