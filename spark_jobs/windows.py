"""Rows by level and service in windows of ten seconds of event time, counted by Spark while they arrive.

Each micro-batch returns the new totals of the windows that changed, and the driver writes them to PostgreSQL. A batch
that is repeated after a crash returns the same totals.

Windows are derived data. If the checkpoint is lost or damaged, the query starts over with the last minutes of the
topic. A checkpoint counts offsets of one topic, and its folder has the topic's id in its name.
"""

import time
from datetime import UTC, datetime

import msgspec
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import window
from pyspark.sql.streaming.query import StreamingQuery

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import LogpipeError, StoreDown
from services.core.ports import PartitionReader
from services.postgres.connection import connect
from services.reports import windows
from services.reports.windows import WINDOW_SECONDS, Window
from services.runtime import logs, metrics
from spark_jobs import kafka_messages, parsing
from spark_jobs.checkpoint import CheckpointFolder
from spark_jobs.settings import RealtimeSettings

_STORE = "realtime"
_LATENESS = "30 seconds"
_FIRST_MINUTES = 10  # a start without a checkpoint reads these last minutes of the topic

# A row whose time is far ahead would raise Spark's watermark, and all other rows would count as late.
_AHEAD = "r.timestamp <= r.created_at + 10000000"

# A text in PostgreSQL cannot contain the character NUL. Ingest refuses it, but another writer of the topic may not.
_STORABLE = "instr(r.level, decode(X'00', 'UTF-8')) = 0 AND instr(r.service, decode(X'00', 'UTF-8')) = 0"

_log = logs.get("realtime_aggregator")


class WindowStream:
    """A stream of the driver (`driver.Stream`). `stop` may interrupt a batch, which the next start repeats."""

    def __init__(self, settings: RealtimeSettings, dataset: Dataset, topic: PartitionReader) -> None:
        self.dataset = dataset
        self._settings = settings
        self._topic = topic
        self._query: StreamingQuery | None = None
        self._error: LogpipeError | None = None
        self._topic_id = ""
        self._labels = (_STORE, dataset.name)

    def start(self, spark: SparkSession) -> None:
        """Start the query; returns once it runs. Raises StoreDown."""
        with connect(self._settings.postgres_url.get_secret_value()) as connection:
            windows.require(connection)
        self._topic_id = self._topic.topic_id()
        checkpoint = self._checkpoint()
        messages = kafka_messages.stream(
            spark,
            self._settings.kafka_url,
            self.dataset.topic,
            startingTimestamp=int((time.time() - _FIRST_MINUTES * 60) * 1000),
            startingOffsetsByTimestampStrategy="latest",
            # Messages that retention deleted while the job did not run are too old to be shown.
            failOnDataLoss="false",
        )
        self._query = (
            counted(messages, self.dataset)
            .writeStream.queryName(_STORE)
            .option("checkpointLocation", checkpoint.uri)
            .trigger(processingTime=f"{self._settings.realtime_trigger_seconds} seconds")
            .outputMode("update")
            .foreachBatch(self._write)
            .start()
        )
        metrics.gauge(metric_names.SINK_TRIGGER_SECONDS, *self._labels).set(self._settings.realtime_trigger_seconds)
        _log.info("query started", query=self._query.id)

    def supervise(self, spark: SparkSession) -> None:
        """Raise the error that ended the query, if it has ended."""
        assert self._query is not None
        if error := self._query.exception():
            raise self._error or _translated(error)

    def health(self) -> str | None:
        if self._query is None:
            return "starting"
        return None if self._query.isActive else "the query has ended"

    def stop(self, deadline: float) -> None:
        if self._query is not None:
            self._query.stop()

    def report_lag(self) -> None:
        """Set the gauge of the lag. Raises StoreDown."""
        progress = self._query.lastProgress if self._query else None
        if progress is None:
            return
        read = msgspec.json.decode(progress.sources[0].endOffset, type=dict[str, dict[int, int]])[self.dataset.topic]
        lag = sum(end - read.get(partition, first) for partition, (first, end) in self._topic.bounds().items())
        metrics.gauge(metric_names.SINK_LAG_OFFSETS, *self._labels).set(lag)

    def _checkpoint(self) -> CheckpointFolder:
        """Return the checkpoint. One with a damaged file is deleted, because Spark would fail on it at every start."""
        folder = CheckpointFolder(self._settings, f"realtime-windows-{self._topic_id}", self.dataset.topic)
        found = folder.load()
        if found and found.damaged:
            _log.warning("damaged checkpoint deleted, starting over", files=sorted(found.damaged))
            folder.delete()
        return folder

    def _write(self, changed: DataFrame, batch: int) -> None:
        """Write the changed windows. Called by Spark, and again for a batch of which Spark has no record."""
        with metrics.histogram(metric_names.SINK_WRITE_SECONDS, *self._labels).time():
            found = [Window(datetime.fromtimestamp(start, UTC), *rest) for start, *rest in changed.collect()]
            try:
                if self._topic.topic_id() != self._topic_id:
                    raise StoreDown(
                        _STORE, f"the topic {self.dataset.topic} was created again: the next start reads it"
                    )
                with connect(self._settings.postgres_url.get_secret_value()) as connection:
                    windows.upsert(connection, found)
            except LogpipeError as error:
                self._error = error
                raise


def counted(messages: DataFrame, dataset: Dataset) -> DataFrame:
    """Count the rows of Kafka messages by window: start in epoch seconds, level, service, rows. Skips invalid lines."""
    return (
        parsing.lines(messages, dataset)
        .where(parsing.validity(dataset))
        .where(_AHEAD)
        .where(_STORABLE)
        .selectExpr("timestamp_micros(r.timestamp) AS time", "r.level AS level", "r.service AS service")
        .withWatermark("time", _LATENESS)
        .groupBy(window("time", f"{WINDOW_SECONDS} seconds"), "level", "service")
        .count()
        .selectExpr("unix_seconds(window.start) AS start", "level", "service", "count AS rows")
    )


def _translated(error: PySparkException) -> LogpipeError:
    lines = str(error).strip().splitlines()
    causes = [line.strip() for line in lines if line.startswith("Caused by: ")]
    return StoreDown(_STORE, (causes or lines)[-1])
