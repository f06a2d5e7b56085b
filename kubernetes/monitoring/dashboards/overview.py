"""Overview: the flow from left to right. A column for each hop; rows for rate, lag, loss and time."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from kubernetes.monitoring.dashboards.panels import Series, graph, greatest, new, quantile, rare, rate, total

_QUARTER = 6
_ERRORS = 'status=~"5..", route!~"/readyz|unknown"'


def build() -> Dashboard:
    return (
        new("overview", "Overview")
        .with_row(Row("Rate: each hop should carry what the hop on its left carries"))
        .with_panel(
            graph(
                "Accepted rows: falls below what clients send when ingest refuses",
                "rowsps",
                Series(rate("logpipe_ingest_rows_accepted_total", "dataset"), "{{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Batches published to Kafka: zero while rows are accepted means that Kafka is unreachable",
                "ops",
                Series(rate("logpipe_publisher_batches_total"), "batches"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Rows loaded: every store should follow the accepted rows",
                "rowsps",
                Series(rate("logpipe_sink_rows_total", "store, dataset"), "{{store}} {{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Queries: a store that answers nothing is unreachable or not asked",
                "reqps",
                Series(rate("logpipe_query_seconds_count", "store"), "{{store}}"),
                columns=_QUARTER,
            )
        )
        .with_row(Row("Lag: must not grow"))
        .with_panel(
            graph(
                "Generator behind its schedule: ingest is slower than the load",
                "s",
                Series(greatest("logpipe_generator_behind_seconds", "dataset"), "{{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Batches not yet in Kafka: a rise means that publishing stands still",
                "short",
                Series(total("logpipe_publisher_unpublished_batches"), "batches"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Messages that a store has not loaded: a steady rise means that the sink is too slow",
                "short",
                Series(total("logpipe_sink_lag_offsets", "store, dataset"), "{{store}} {{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Age of the oldest batch that a store lacks: results are older than this",
                "s",
                Series(greatest("logpipe_watermark_lag_seconds", "store, dataset"), "{{store}} {{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_row(Row("Loss: must be zero"))
        .with_panel(
            graph(
                "Requests answered with an error: clients have to repeat them",
                "reqps",
                Series(rare("logpipe_http_request_seconds_count", "job", _ERRORS), "{{job}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Degraded checks: 1 means that a process serves less than it should",
                "short",
                Series(greatest("logpipe_degraded", "job, check"), "{{job}} {{check}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Dead letters: rows that a store refused",
                "rowsps",
                Series(rate("logpipe_sink_dead_letters_total", "store, dataset"), "{{store}} {{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Rows missing at the last verification: lost, until proven otherwise",
                "short",
                Series(greatest("logpipe_verify_rows_missing", "store, dataset"), "{{store}} {{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_row(Row("Time: p99 of each hop"))
        .with_panel(
            graph(
                "Commit of a group: rises when PostgreSQL's disk is slow",
                "s",
                Series(quantile(0.99, "logpipe_ingest_commit_seconds", "dataset"), "{{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Kafka transaction: rises when a broker is slow",
                "s",
                Series(quantile(0.99, "logpipe_publisher_transaction_seconds"), "transaction"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Freshness, from acceptance until stored: objective 5 s, lake 60 s",
                "s",
                Series(quantile(0.99, "logpipe_sink_freshness_seconds", "store, dataset"), "{{store}} {{dataset}}"),
                columns=_QUARTER,
            )
        )
        .with_panel(
            graph(
                "Query time: compare the stores",
                "s",
                Series(quantile(0.99, "logpipe_query_seconds", "store"), "{{store}}"),
                columns=_QUARTER,
            )
        )
    )
