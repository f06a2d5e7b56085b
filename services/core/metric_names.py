"""Every metric, once: its name, type, labels and meaning. `runtime.metrics` makes them; docs/metrics.md lists them."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

HTTP_SECONDS = Metric(
    "logpipe_http_request_seconds", "histogram", "Time to answer an HTTP request.", ("route", "status"), _SECONDS
)
CONNECTIONS_CLOSED = Metric(
    "logpipe_http_connections_closed_total",
    "counter",
    "Connections closed: too many at once (limit), a head too slow or too long, or a reply that is not read.",
    ("reason",),
)
DEGRADED = Metric(
    "logpipe_degraded", "gauge", "1 while the process serves less than it should; /readyz has the reason.", ("check",)
)

ROWS_ACCEPTED = Metric("logpipe_ingest_rows_accepted_total", "counter", "Rows answered with 200.", ("dataset",))
COMMIT_SECONDS = Metric(
    "logpipe_ingest_commit_seconds", "histogram", "Time of one group commit in PostgreSQL.", ("dataset",), _SECONDS
)
BATCH_ROWS = Metric(
    "logpipe_ingest_batch_rows",
    "histogram",
    "Rows of one batch: a group commit has one or several.",
    ("dataset",),
    (1, 10, 100, 1000, 2500, 5000, 10000, 20000, 50000, 131072),
)
BYTES_IN_FLIGHT = Metric(
    "logpipe_ingest_bytes_in_flight",
    "gauge",
    "Bytes of bodies and of their decoded rows, accepted for work and not answered.",
)
DISK_FREE_BYTES = Metric("logpipe_ingest_disk_free_bytes", "gauge", "Free space where the ledger's data lies.")
DISK_SPACE_FREE_BYTES = Metric(
    "logpipe_disk_space_free_bytes", "gauge", "Free bytes of the file system of the folder.", ("folder",)
)
DISK_SPACE_TOTAL_BYTES = Metric(
    "logpipe_disk_space_total_bytes", "gauge", "All bytes of the file system of the folder.", ("folder",)
)
DISK_FLOOR_BYTES = Metric("logpipe_ingest_disk_floor_bytes", "gauge", "Free space below which no rows are accepted.")
PARTITIONS_UNTIL_SECONDS = Metric(
    "logpipe_ingest_partitions_until_seconds",
    "gauge",
    "Time (Unix) up to which PostgreSQL has a partition for every day.",
    ("dataset",),
)
UNPUBLISHED_BATCHES = Metric(
    "logpipe_publisher_unpublished_batches",
    "gauge",
    "Batches of this process's slots not yet in Kafka, counted up to 10,000.",
    ("slot",),
)
BATCHES_PUBLISHED = Metric("logpipe_publisher_batches_total", "counter", "Batches published to Kafka.", ("slot",))
PUBLISH_SECONDS = Metric(
    "logpipe_publisher_transaction_seconds", "histogram", "Time of one Kafka transaction.", (), _SECONDS
)
SLOTS_ADOPTED = Metric("logpipe_publisher_slots_adopted_total", "counter", "Slots taken over from dead owners.")

ROLLUP_ROWS = Metric(
    "logpipe_rollup_rows_total", "counter", "Rows counted into PostgreSQL's rollup by this process.", ("dataset",)
)

SINK_ROWS = Metric("logpipe_sink_rows_total", "counter", "Rows written to a store.", ("store", "dataset"))
SINK_WRITE_SECONDS = Metric(
    "logpipe_sink_write_seconds",
    "histogram",
    "Time of one write of a block group, with its dead letters and retries; of Spark: of one micro-batch.",
    ("store", "dataset"),
    _SECONDS,
)
SINK_TRIGGER_SECONDS = Metric(
    "logpipe_sink_trigger_seconds",
    "gauge",
    "Time between the starts of two micro-batches of Spark, by its setting.",
    ("store", "dataset"),
)
SINK_LAG_OFFSETS = Metric(
    "logpipe_sink_lag_offsets", "gauge", "Offsets committed in the topic and not yet loaded.", ("store", "dataset")
)
DEAD_LETTERS = Metric(
    "logpipe_sink_dead_letters_total", "counter", "Rows dead-lettered; of Spark: rows rejected.", ("store", "dataset")
)
FRESHNESS_SECONDS = Metric(
    "logpipe_sink_freshness_seconds",
    "histogram",
    "Time from a batch's acceptance until its block was stored.",
    ("store", "dataset"),
    (0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 15, 20, 25, 30, 40, 60, 120, 300),
)

SOURCE_ROWS = Metric(
    "logpipe_source_rows_total", "counter", "Rows accepted from a foreign topic.", ("topic", "dataset")
)
SOURCE_LAG_OFFSETS = Metric(
    "logpipe_source_lag_offsets",
    "gauge",
    "Offsets in the foreign topic that were not read into the ledger, of the partitions of this process.",
    ("topic", "dataset"),
)

GENERATOR_ROWS = Metric(
    "logpipe_generator_rows_total",
    "counter",
    "Rows by outcome: acked, refused or indeterminate.",
    ("dataset", "outcome"),
)
GENERATOR_BEHIND_SECONDS = Metric(
    "logpipe_generator_behind_seconds", "gauge", "How far the generator runs behind its schedule.", ("dataset",)
)

LAKE_FILES = Metric("logpipe_lake_files", "gauge", "Data files of the lake's table.", ("dataset",))
LAKE_BYTES = Metric("logpipe_lake_bytes", "gauge", "Size of the data files of the lake's table.", ("dataset",))
LAKE_SMALL_FILES = Metric(
    "logpipe_lake_small_files", "gauge", "Files that compaction would merge, of the day that has most.", ("dataset",)
)
LAKE_MERGED_FILES = Metric(
    "logpipe_lake_merged_files_total", "counter", "Small files of rows that compaction has replaced.", ("dataset",)
)
LAKE_LOG_FILES = Metric(
    "logpipe_lake_log_files",
    "gauge",
    "Files in the transaction log of the lake's table after the last clean-up; every query lists them.",
    ("dataset",),
)

QUERY_SECONDS = Metric(
    "logpipe_query_seconds",
    "histogram",
    "Time a store took to return a result.",
    ("store", "dataset", "question"),
    _SECONDS,
)
CACHE_LOOKUPS = Metric(
    "logpipe_cache_lookups_total", "counter", "Results looked for in the cache: hit, miss or unreachable.", ("outcome",)
)
WATERMARK_BATCH = Metric(
    "logpipe_watermark_batch", "gauge", "Highest batch up to which every batch is loaded.", ("store", "dataset")
)
WATERMARK_LAG_BATCHES = Metric(
    "logpipe_watermark_lag_batches",
    "gauge",
    "Batches above the watermark, counted up to 100,000.",
    ("store", "dataset"),
)
WATERMARK_LAG_SECONDS = Metric(
    "logpipe_watermark_lag_seconds",
    "gauge",
    "Age of the oldest batch above the watermark, by PostgreSQL's clock; 0 when there is none.",
    ("store", "dataset"),
)

VERIFY_ROWS_MISSING = Metric(
    "logpipe_verify_rows_missing",
    "gauge",
    "Accepted and loaded rows that the last verification did not find.",
    ("store", "dataset"),
)
VERIFY_ROWS_EXTRA = Metric(
    "logpipe_verify_rows_extra",
    "gauge",
    "Rows that the last verification found and that were not accepted.",
    ("store", "dataset"),
)
VERIFY_ROWS_DUPLICATED = Metric(
    "logpipe_verify_rows_duplicated",
    "gauge",
    "Copies of a row beyond the first that the last verification found.",
    ("store", "dataset"),
)
VERIFY_ROWS_ALTERED = Metric(
    "logpipe_verify_rows_altered",
    "gauge",
    "Rows of the batches whose contents the last verification found to differ.",
    ("store", "dataset"),
)
VERIFY_BATCHES_CHECKED = Metric(
    "logpipe_verify_batches_checked",
    "gauge",
    "Batches that the last verification looked at.",
    ("store", "dataset"),
)
VERIFY_AGE_SECONDS = Metric(
    "logpipe_verify_age_seconds", "gauge", "How long ago the last verification ended.", ("store", "dataset")
)

ALERTS_OPEN = Metric("logpipe_alerts_open", "gauge", "Alerts that are open.", ("rule",))
ALERTS_BEHIND_SECONDS = Metric(
    "logpipe_alerts_behind_seconds", "gauge", "How long ago the last second was accepted that was judged."
)
ALERT_LINES_REFUSED = Metric(
    "logpipe_alerts_lines_refused_total", "counter", "Lines of the topic of errors that are no rows, and do not count."
)
ALERTS_POSTED = Metric("logpipe_alerts_posted_total", "counter", "Events that a webhook has taken.", ("event",))
ALERT_POST_FAILURES = Metric(
    "logpipe_alerts_post_failures_total", "counter", "Posts that a webhook has not taken; they are repeated."
)
