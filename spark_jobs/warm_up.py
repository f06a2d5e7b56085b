"""Warms Spark up before the streams of the lake start, so that the first rows are not stored by a cold JVM.

A JVM that has just started loads each class at its first use, and interprets code until it has compiled it. The first
minutes of a cold driver therefore cost several times as much as the later ones. The warm-up bears this cost: a
streaming query reads made-up messages from a scratch topic, and writes them into a scratch table in the lake's file
system. Each of its batches is called a round. The messages come from Kafka, because Spark generates one class for all
that happens to a row between its source and the file. With another source, that class would be another one, and the
class of the real stream would still be interpreted.

The warm-up ends when the rounds hardly get faster. At a time limit, the streams start in any case. A failure of the
warm-up is only logged, because a cold stream is slow, but right.

The scratch topic and the scratch folder, both called `warm-up-<dataset>`, hold the messages, the table and the query's
checkpoint. They are deleted after the warm-up, and before each start in case a crash left them. The real tables and
topics are not touched.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from threading import Event, Lock

from hdfs_native import Client
from py4j.protocol import Py4JError  # type: ignore[import-untyped]
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from services.core import kafka_value
from services.core.dataset import Column, Dataset
from services.core.errors import LogpipeError
from services.core.ids import first_id
from services.core.ports import OutgoingMessage
from services.core.rows import RowCodec, Rows
from services.lake.log import TableLog
from services.lake.table import within_limit
from services.runtime import logs
from services.runtime.workers import Worker
from services.streams import topics
from services.streams.kafka import KafkaProducer
from spark_jobs import kafka_messages, writer
from spark_jobs.checkpoint import CheckpointFolder
from spark_jobs.settings import StreamToLakeSettings
from spark_jobs.tables import Tables

_ROUND_MESSAGES = 200  # few, so that a slow machine, too, ends a round within the time limit
_MESSAGE_ROWS = 250  # as in a message of the generator's rows
_FEWEST_ROUNDS = 4
_MOST_ROUNDS = 8
_SETTLED = 0.9  # of the duration of the round before: a round that is not faster than this is the last
_POLL_SECONDS = 0.1
_END_SECONDS = 120

_log = logs.get("warm_up")


class WarmUp:
    """The warm-up of one dataset. `rounds` has the duration of each round in seconds, oldest first."""

    def __init__(self, settings: StreamToLakeSettings, dataset: Dataset) -> None:
        self.rounds: list[float] = []
        self._settings = settings
        self._dataset = dataset
        self._topic = f"warm-up-{dataset.name}"
        self._path = f"{settings.lake_path.rstrip('/')}/{self._topic}"
        scratch = settings.model_copy(update={"lake_path": self._path})
        self._tables = Tables(scratch, dataset)
        self._checkpoint = CheckpointFolder(scratch, dataset.name, self._topic)
        self._hdfs = Client(settings.hdfs_url)
        self._query: StreamingQuery | None = None
        self._stopped = False
        self._round = Lock()  # held while a round runs

    def start(self, spark: SparkSession) -> None:
        """Start the query; returns once it runs. Raises StoreDown and Spark's errors."""
        self._tables.prepare()
        TableLog(self._tables.rows).tidy()  # as in a real table, Delta reads a checkpoint of the log, by much code
        self._publish()
        self._query = (
            kafka_messages.stream(
                spark,
                self._settings.kafka_url,
                self._topic,
                startingOffsets="earliest",
                maxOffsetsPerTrigger=_ROUND_MESSAGES,
            )
            .writeStream.queryName(self._topic)
            .option("checkpointLocation", self._checkpoint.uri)
            .foreachBatch(self._write)
            .start()
        )

    def finished(self) -> bool:
        """Return whether a further round is of no use. Raises the error that ended the query."""
        assert self._query is not None
        if error := self._query.exception():
            raise error
        return settled(self.rounds)

    def stop(self) -> None:
        """End the query after the running round, so that Spark logs no error. Blocks. Raises the query's error."""
        self._stopped = True
        with self._round:
            pass
        if self._query is None:
            return
        with suppress(PySparkException, Py4JError):  # Spark's time limit ends, and it still plans the next round
            self._query.stop()
        self._query.awaitTermination(_END_SECONDS)

    def delete_scratch(self) -> None:
        """Delete the scratch topic and the scratch folder, if they exist. Raises StoreDown."""
        topics.delete(self._settings.kafka_url, self._topic)
        with suppress(FileNotFoundError):
            within_limit(lambda: self._hdfs.delete(self._path, recursive=True))

    def _publish(self) -> None:
        """Fill the scratch topic with messages for the highest number of rounds."""
        topics.ensure(self._settings, [self._topic])
        made_up, partitions = made_up_message(self._dataset), self._settings.kafka_partitions
        messages = [
            replace(made_up, topic=self._topic, partition=number % partitions) for number in range(_ROUND_MESSAGES)
        ]
        with closing(KafkaProducer(self._settings.kafka_url, self._topic)) as producer:
            for _ in range(_MOST_ROUNDS):  # one after the other, because the client copies all that it has to send
                producer.publish(messages)

    def _write(self, made_up: DataFrame, batch: int) -> None:
        """Run a round. Called by Spark for each batch, one after the other, until the query is stopped."""
        with self._round:
            if self._stopped or settled(self.rounds):
                return
            started = time.monotonic()
            writer.write_rows(made_up, self._dataset, self._tables.rows.uri, "warm-up", batch, "")
            self.rounds.append(time.monotonic() - started)


def run(
    spark: SparkSession, settings: StreamToLakeSettings, datasets: Sequence[Dataset], limit: float, stop: Event
) -> None:
    """Warm up each of `datasets`. Blocks for about `limit` seconds at most, or until `stop` is set.

    The datasets are warmed up one after the other, because the first one warms up most of the code of the others. With
    a limit of 0 there is no warm-up. A round that still runs at the limit ends in the background, while the streams
    start. The scratch topics and folders are deleted after the last round. Those that a crash left are deleted in every
    case.
    """
    warm_ups = [WarmUp(settings, dataset) for dataset in datasets]
    started = time.monotonic()
    for warm_up in warm_ups:
        with _failure_logged():
            warm_up.delete_scratch()
    for warm_up in warm_ups:
        if time.monotonic() < started + limit and not stop.is_set():
            _run_one(warm_up, spark, started + limit, stop)
    if limit > 0:
        rounds = {dataset.name: [round(s, 1) for s in w.rounds] for dataset, w in zip(datasets, warm_ups, strict=True)}
        _log.info("warmed up", seconds=round(time.monotonic() - started, 1), rounds=rounds)


def _run_one(warm_up: WarmUp, spark: SparkSession, deadline: float, stop: Event) -> None:
    with _failure_logged():
        warm_up.start(spark)
        await_finish(warm_up.finished, deadline, stop)
    ended = Event()
    Worker("warm-up", partial(_end, warm_up), close=ended.set).start()
    await_finish(ended.is_set, deadline, stop)


def _end(warm_up: WarmUp) -> None:
    with _failure_logged():
        warm_up.stop()
    with _failure_logged():
        warm_up.delete_scratch()


def settled(rounds: Sequence[float]) -> bool:
    """Return whether a further round is of no use: the last one was hardly faster than the one before, or there are no
    more messages. `rounds`: seconds, oldest first."""
    if len(rounds) >= _MOST_ROUNDS:
        return True
    return len(rounds) >= _FEWEST_ROUNDS and rounds[-1] > _SETTLED * rounds[-2]


def await_finish(
    finished: Callable[[], bool], deadline: float, stop: Event, clock: Callable[[], float] = time.monotonic
) -> None:
    """Block until `finished` returns true, `clock` (seconds) reaches `deadline`, or `stop` is set."""
    while not finished() and clock() < deadline:
        if stop.wait(_POLL_SECONDS):
            return


def made_up_message(dataset: Dataset) -> OutgoingMessage:
    """Return a valid message of made-up rows, as the publisher would send it."""
    batch_id, created_at = 1, time.time_ns() // 1000
    rows = [
        (first_id(batch_id) + n, created_at, *(_value(column, dataset, created_at, n) for column in dataset.columns))
        for n in range(_MESSAGE_ROWS)
    ]
    made = kafka_value.encode(
        dataset, batch_id, created_at, Rows.of(rows), RowCodec(dataset).encode(rows), partitions=1
    )
    return next(message for message in made if message.topic == dataset.topic)


def _value(column: Column, dataset: Dataset, created_at: int, number: int) -> object:
    match column.kind:
        case "timestamp":
            return created_at - number
        case "number":
            return float(number)
        case "json":
            return f'{{"request_id":"{number:032x}","response_time_ms":{number},"endpoint":"/api/users"}}'
    return "warm-up" if column.name == dataset.key else f"warm-up {number % 10}"


@contextmanager
def _failure_logged() -> Iterator[None]:
    """If the JVM itself has ended, the start of the streams fails as well, and ends the process."""
    try:
        yield
    except (PySparkException, Py4JError, OSError, LogpipeError) as error:
        _log.warning("warm-up failed, starting without it", reason=str(error)[:500])
