"""Ingest: from a client's request to the message in Kafka."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from kubernetes.monitoring.dashboards.panels import (
    Series,
    graph,
    greatest,
    mean,
    new,
    quantile,
    rare,
    rate,
    total,
)

_COLLECT = 'job="ingest-api", route=~"/api/collect/.*"'


def build() -> Dashboard:
    return (
        new("ingest", "Ingest")
        .with_row(Row("Requests"))
        .with_panel(
            graph(
                "Accepted rows: which dataset has the load",
                "rowsps",
                Series(rate("logpipe_ingest_rows_accepted_total", "dataset"), "{{dataset}}"),
            )
        )
        .with_panel(
            graph(
                "Accepted rows by process: an even share",
                "rowsps",
                Series(rate("logpipe_ingest_rows_accepted_total", "instance"), "{{instance}}"),
            )
        )
        .with_panel(
            graph(
                "Requests by status: 503 is back-pressure, 4xx is a client's mistake",
                "reqps",
                Series(rate("logpipe_http_request_seconds_count", "status", _COLLECT), "{{status}}"),
            )
        )
        .with_panel(
            graph(
                "Request time: p99 far above p50 means that requests wait for each other",
                "s",
                Series(quantile(0.5, "logpipe_http_request_seconds", where=_COLLECT), "p50"),
                Series(quantile(0.99, "logpipe_http_request_seconds", where=_COLLECT), "p99"),
            )
        )
        .with_panel(
            graph(
                "Bytes in flight: at its limit (256 MiB) ingest answers 503",
                "bytes",
                Series(total("logpipe_ingest_bytes_in_flight", "instance"), "{{instance}}"),
            )
        )
        .with_panel(
            graph(
                "Connections closed by ingest: many mean clients that hang or that are too many",
                "ops",
                Series(rare("logpipe_http_connections_closed_total", "reason", 'job="ingest-api"'), "{{reason}}"),
            )
        )
        .with_row(Row("PostgreSQL"))
        .with_panel(
            graph(
                "Group commit: p99 rises when the disk is slow",
                "s",
                Series(quantile(0.5, "logpipe_ingest_commit_seconds", "dataset"), "{{dataset}} p50"),
                Series(quantile(0.99, "logpipe_ingest_commit_seconds", "dataset"), "{{dataset}} p99"),
            )
        )
        .with_panel(
            graph(
                "Rows of a batch: small batches cost throughput in every store",
                "short",
                Series(mean("logpipe_ingest_batch_rows", "dataset"), "{{dataset}}"),
            )
        )
        .with_panel(
            graph(
                "Free space on the ledger's disk: below the floor no rows are accepted",
                "bytes",
                Series("min (logpipe_ingest_disk_free_bytes)", "free"),
                Series(greatest("logpipe_ingest_disk_floor_bytes"), "floor"),
            )
        )
        .with_panel(
            graph(
                "Day partitions ahead: below one day, rows of tomorrow are refused",
                "s",
                Series(f"{greatest('logpipe_ingest_partitions_until_seconds', 'dataset')} - time()", "{{dataset}}"),
            )
        )
        .with_row(Row("Kafka"))
        .with_panel(
            graph(
                "Batches not yet in Kafka, by slot: one slot that rises alone is stuck",
                "short",
                Series(total("logpipe_publisher_unpublished_batches", "slot"), "slot {{slot}}"),
            )
        )
        .with_panel(
            graph(
                "Batches published, by slot",
                "ops",
                Series(rate("logpipe_publisher_batches_total", "slot"), "slot {{slot}}"),
            )
        )
        .with_panel(
            graph(
                "Kafka transaction: rises when a broker is slow",
                "s",
                Series(quantile(0.5, "logpipe_publisher_transaction_seconds"), "p50"),
                Series(quantile(0.99, "logpipe_publisher_transaction_seconds"), "p99"),
            )
        )
        .with_panel(
            graph(
                "Slots taken over: each one is a process that died",
                "short",
                Series(f"{total('logpipe_publisher_slots_adopted_total')} or on() vector(0)", "slots"),
            )
        )
        .with_row(Row("Foreign topics"))
        .with_panel(
            graph(
                "Rows taken from a foreign topic: zero while its lag is not means that kafka-source stands still",
                "rowsps",
                Series(rate("logpipe_source_rows_total", "topic, dataset"), "{{topic}} into {{dataset}}"),
            )
        )
        .with_panel(
            graph(
                "Messages of a foreign topic that are not taken: must not grow",
                "short",
                Series(total("logpipe_source_lag_offsets", "topic, dataset"), "{{topic}} into {{dataset}}"),
            )
        )
        .with_row(Row("Generator"))
        .with_panel(
            graph(
                "Rows sent, by outcome: refused and indeterminate should be zero",
                "rowsps",
                Series(rate("logpipe_generator_rows_total", "outcome"), "{{outcome}}"),
            )
        )
        .with_panel(
            graph(
                "Behind the schedule: ingest is slower than the load",
                "s",
                Series(greatest("logpipe_generator_behind_seconds", "dataset"), "{{dataset}}"),
            )
        )
    )
