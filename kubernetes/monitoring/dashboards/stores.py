"""Stores compared: the same figure of every store in one panel."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from kubernetes.monitoring.dashboards.panels import Series, choice, graph, greatest, new, quantile, rate, total

_CHOSEN = 'store=~"$store"'
_EACH = "store, dataset"
_LEGEND = "{{store}} {{dataset}}"


def build() -> Dashboard:
    return (
        new("stores", "Stores compared")
        .with_variable(choice("store", "logpipe_watermark_batch"))
        .with_row(Row("Loading"))
        .with_panel(
            graph(
                "Rows loaded: stores should load at the same rate",
                "rowsps",
                Series(rate("logpipe_sink_rows_total", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Freshness, median: from acceptance until stored",
                "s",
                Series(quantile(0.5, "logpipe_sink_freshness_seconds", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Freshness, p99: objective 5 s, lake 60 s",
                "s",
                Series(quantile(0.99, "logpipe_sink_freshness_seconds", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Time of one insert, p99: rises before the lag does",
                "s",
                Series(quantile(0.99, "logpipe_sink_write_seconds", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Age of the oldest batch that a store lacks: must not grow",
                "s",
                Series(greatest("logpipe_watermark_lag_seconds", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Batches above the watermark: must not grow",
                "short",
                Series(greatest("logpipe_watermark_lag_batches", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Messages not yet loaded: must not grow",
                "short",
                Series(total("logpipe_sink_lag_offsets", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Watermark: one that stands still names the store that waits",
                "short",
                Series(greatest("logpipe_watermark_batch", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Dead letters: rows that a store refused",
                "rowsps",
                Series(rate("logpipe_sink_dead_letters_total", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_row(Row("Reconciliation: results of the last logpipe verify"))
        .with_panel(
            graph(
                "Rows missing: lost, until proven otherwise",
                "short",
                Series(greatest("logpipe_verify_rows_missing", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Rows extra, duplicated or altered: must be zero",
                "short",
                Series(greatest("logpipe_verify_rows_extra", _EACH, _CHOSEN), f"{_LEGEND} extra"),
                Series(greatest("logpipe_verify_rows_duplicated", _EACH, _CHOSEN), f"{_LEGEND} duplicated"),
                Series(greatest("logpipe_verify_rows_altered", _EACH, _CHOSEN), f"{_LEGEND} altered"),
            )
        )
        .with_panel(
            graph(
                "Age of the last verification: an old result proves little",
                "s",
                Series(greatest("logpipe_verify_age_seconds", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Batches that the last verification looked at",
                "short",
                Series(greatest("logpipe_verify_batches_checked", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_row(Row("Answering"))
        .with_panel(
            graph(
                "Query time, median, by kind of query",
                "s",
                Series(quantile(0.5, "logpipe_query_seconds", "store, question", _CHOSEN), "{{store}} {{question}}"),
            )
        )
        .with_panel(
            graph(
                "Query time, p99, by kind of query",
                "s",
                Series(quantile(0.99, "logpipe_query_seconds", "store, question", _CHOSEN), "{{store}} {{question}}"),
            )
        )
    )
