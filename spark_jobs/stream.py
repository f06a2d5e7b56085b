"""The streaming query of one dataset: from its Kafka topic into its Delta table, every row once.

The rows of a micro-batch are one commit. The commit has the position that it reaches, and the id of the query with the
number of the micro-batch, so that Delta refuses a second commit of the same micro-batch. While Spark writes the valid
lines, it counts the invalid ones. If there are any, Spark reads the same messages a second time, and writes the invalid
lines to the table of rejects, under another transaction id. After a crash between the two writes, the rows are in the
table, and only the second write is repeated.
"""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from services.core import metric_names
from services.core.dataset import Dataset
from services.core.errors import LogpipeError, NeedsOperator, StoreDown
from services.core.ports import PartitionReader
from services.lake import NAME
from services.lake.table import LakePosition
from services.runtime import logs, metrics
from spark_jobs import kafka_messages, parsing, writer
from spark_jobs.checkpoint import CheckpointFolder, Offsets, starting_offsets, ways_out, without_meaning
from spark_jobs.settings import StreamToLakeSettings
from spark_jobs.tables import Tables

_FIRST_LIMIT = 2_000  # offsets of one micro-batch, until the first full micro-batch has shown how many rows they hold
_LOWEST_LIMIT = 100
_FRESHNESS_POINTS = 10
_LOST = "Some data may have been lost"

_log = logs.get("stream_to_lake")


class LakeStream:
    """A stream of the driver (`driver.Stream`). `open` is called before `start`, and again if it raised StoreDown."""

    def __init__(self, settings: StreamToLakeSettings, dataset: Dataset, topic: PartitionReader) -> None:
        self.dataset = dataset
        self.tables = Tables(settings, dataset)
        self.checkpoint = CheckpointFolder(settings, dataset.name, dataset.topic)
        self._settings = settings
        self.topic = topic
        self._topic_id = ""
        self._from: Offsets = {}
        self._stored = -1  # the last micro-batch whose rows are in the table
        self._unfinished: LakePosition | None = None
        self._generation = ""
        self._limit = self._wanted_limit = _FIRST_LIMIT
        self._position: Offsets = {}
        self._query: StreamingQuery | None = None
        self._error: LogpipeError | None = None  # why a micro-batch was not written
        self._labels = (NAME, dataset.name)
        self._log = _log.bind(dataset=dataset.name)

    def open(self) -> None:
        """Create the tables, find the offsets to start at, and claim the table of rows, so that no other writer starts.

        Raises StoreDown, and NeedsOperator if the offsets to start at are not certain.
        """
        self.tables.prepare()
        self._topic_id = self.topic.topic_id()
        handle, position = self.tables.rows.current_version()
        checkpoint = self.checkpoint.load()
        self._from = starting_offsets(
            self.dataset,
            position,
            self.tables.is_empty(),
            checkpoint,
            self._topic_id,
            self.topic.bounds(),
        )
        if damaged := without_meaning(position, checkpoint):
            self._log.warning("damaged files of the checkpoint removed, their micro-batch runs again", files=damaged)
            self.checkpoint.remove(damaged)
        if position is None or not position.query:
            position = position or LakePosition.first()
            self.tables.claim(handle, position)
        self._position = self._from
        self._stored = -1 if position.has_no_micro_batch else position.micro_batch
        self._unfinished = position.unfinished
        self._generation = position.generation

    def start(self, spark: SparkSession) -> None:
        """Start the query; returns once it runs. Raises StoreDown, and NeedsOperator if unread messages are gone."""
        if self._unfinished:
            self._write_last_rejects(spark, self._unfinished)
            self._unfinished = None
        self._limit = self._wanted_limit
        self._query = (
            kafka_messages.stream(
                spark,
                self._settings.kafka_url,
                self.dataset.topic,
                startingOffsets=self._starting_offsets(),
                maxOffsetsPerTrigger=self._limit,
            )
            .writeStream.queryName(self.dataset.name)
            .option("checkpointLocation", self.checkpoint.uri)
            .trigger(processingTime=f"{self._settings.lake_trigger_seconds} seconds")
            .foreachBatch(self._write)
            .start()
        )
        metrics.gauge(metric_names.SINK_TRIGGER_SECONDS, *self._labels).set(self._settings.lake_trigger_seconds)
        self._log.info(
            "query started", query=self._query.id, position=dict(self._position), offsets_per_micro_batch=self._limit
        )

    def supervise(self, spark: SparkSession) -> None:
        """Raise the error that ended the query. Start it again if its micro-batches are far too small or too large."""
        assert self._query is not None
        if error := self._query.exception():
            raise self._error or _translate(self.dataset, error)
        if self._wanted_limit != self._limit:
            self.stop(time.monotonic() + self._settings.lake_trigger_seconds)
            self.start(spark)

    def health(self) -> str | None:
        if self._query is None:
            return "starting"
        return None if self._query.isActive else "the query has ended"

    def stop(self, deadline: float) -> None:
        """Stop the query when its micro-batch ends, or at `deadline` (monotonic).

        A micro-batch that is stopped at the deadline is repeated by the next start.
        """
        if self._query is None:
            return
        before = self._stored
        while self._query.status["isTriggerActive"] and self._stored == before and time.monotonic() < deadline:
            time.sleep(0.05)
        self._query.stop()

    def report_lag(self) -> None:
        """Set the gauge of the lag. Raises StoreDown."""
        metrics.gauge(metric_names.SINK_LAG_OFFSETS, *self._labels).set(self.lag())

    def lag(self) -> int:
        """Return how many offsets of the topic the table has not loaded. Called after `open`. Raises StoreDown."""
        return sum(
            end - self._position.get(partition, first) for partition, (first, end) in self.topic.bounds().items()
        )

    def _write_last_rejects(self, spark: SparkSession, position: LakePosition) -> None:
        """Write the rejects of the micro-batch that ends at `position`, because a crash may have prevented it."""
        messages = kafka_messages.batch(
            spark,
            self._settings.kafka_url,
            self.dataset.topic,
            startingOffsets=self._json({p: position.start.get(p, -2) for p in position.offsets}),
            endingOffsets=self._json(position.offsets),
        )
        try:
            writer.write_rejects(messages, self.dataset, self.tables.rejects.uri, position.query, position.micro_batch)
        except PySparkException as error:
            raise _translate(self.dataset, error) from error

    def _starting_offsets(self) -> str:
        """Return the offsets at which a query without a checkpoint starts, in the form of Spark's option."""
        return self._json({partition: self._from.get(partition, 0) for partition in self.topic.bounds()})

    def _json(self, offsets: Offsets) -> str:
        return msgspec.json.encode({self.dataset.topic: dict(offsets)}).decode()

    def _write(self, messages: DataFrame, micro_batch: int) -> None:
        """Write a micro-batch. Spark calls this again for a micro-batch that it has not recorded as done.

        Spark does not notice that the topic was deleted and created again. So the topic's id is compared before the
        micro-batch is written, and again before Spark records that the micro-batch is done.
        """
        try:
            self._check_topic(micro_batch)
            self._write_micro_batch(messages, micro_batch)
            self._check_topic(micro_batch)
        except LogpipeError as error:
            self._error = error
            raise

    def _check_topic(self, micro_batch: int) -> None:
        if self.topic.topic_id() != self._topic_id:
            raise NeedsOperator(
                f"{self.dataset.name}: the topic {self.dataset.topic} was deleted and created again while"
                f" micro-batch {micro_batch} was under way. {ways_out(self.dataset, lost=True)}"
            )

    def _write_micro_batch(self, messages: DataFrame, micro_batch: int) -> None:
        query = self.checkpoint.query()
        start, end = self.checkpoint.end(micro_batch - 1), self.checkpoint.end(micro_batch)
        if micro_batch <= self._stored:
            self._log.info("micro-batch already stored, writing its rejects", micro_batch=micro_batch)
            writer.write_rejects(messages, self.dataset, self.tables.rejects.uri, query, micro_batch)
            return
        with metrics.histogram(metric_names.SINK_WRITE_SECONDS, *self._labels).time():
            position = LakePosition(
                self._topic_id, dict(end), dict(start), query, micro_batch, generation=self._generation
            )
            found = writer.write_rows(
                messages, self.dataset, self.tables.rows.uri, position.query, position.micro_batch, position.encode()
            )
            if found["rejected"]:
                writer.write_rejects(messages, self.dataset, self.tables.rejects.uri, query, micro_batch)
        self._stored, self._position = micro_batch, end
        self._report(found)
        offsets = sum(end.values()) - sum(start.get(p, 0) for p in end)
        self._wanted_limit = adapted(self._limit, self._settings.lake_rows_per_trigger, offsets, found["rows"])

    def _report(self, found: Mapping[str, Any]) -> None:
        rows, rejected, oldest, newest = (found[name] for name in ("rows", "rejected", "oldest", "newest"))
        metrics.counter(metric_names.SINK_ROWS, *self._labels).inc(rows)
        metrics.counter(metric_names.DEAD_LETTERS, *self._labels).inc(rejected)
        self._log.info("micro-batch stored", micro_batch=self._stored, rows=rows, rejected=rejected)
        if rows:
            freshness = metrics.histogram(metric_names.FRESHNESS_SECONDS, *self._labels)
            now = time.time()
            for point in range(_FRESHNESS_POINTS + 1):  # as if the rows had been accepted at an even rate
                accepted = oldest + (newest - oldest) * point / _FRESHNESS_POINTS
                freshness.observe(max(0.0, now - accepted / 1e6))


def adapted(limit: int, budget: int, offsets: int, rows: int) -> int:
    """Return the most offsets that the next micro-batch may have, so that it has about `budget` rows.

    The last micro-batch had `rows` rows in `offsets` offsets. The limit changes only if that is far from the budget. A
    message has one row or two thousand, and transactions take up offsets, too. So only a micro-batch that the limit cut
    short, or that is too large, shows how many offsets `budget` rows need.
    """
    too_large, cut_short = rows > 2 * budget, offsets >= 0.9 * limit and rows < budget / 2
    return max(_LOWEST_LIMIT, round(offsets * budget / max(1, rows))) if too_large or cut_short else limit


def _translate(dataset: Dataset, error: PySparkException) -> LogpipeError:
    """Return our error for the cause of `error`, which Spark names last in a long chain."""
    text = str(error)
    if _LOST in text:
        return NeedsOperator(
            f"{dataset.name}: {_line_from(text, _LOST)} Messages of {dataset.topic} were deleted before they were"
            f" read: raise its retention. {ways_out(dataset, lost=True)}"
        )
    if parsing.NEWER in text:
        return NeedsOperator(
            f"{dataset.name}: {dataset.topic} has {parsing.NEWER}: it is older than the ingest API, update it; nothing"
            " was left out"
        )
    return StoreDown(NAME, f"{dataset.name}: {_line_from(text, 'Caused by: ')}")


def _line_from(text: str, mark: str) -> str:
    """Return the last line of `text` that contains `mark`, from `mark` on; without one, the first line."""
    lines = text.strip().splitlines() or [""]
    return next((line[line.index(mark) :].strip() for line in reversed(lines) if mark in line), lines[0])
