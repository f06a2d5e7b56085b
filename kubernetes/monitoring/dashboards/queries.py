"""Queries: what the query API answers, how fast, and what the cache saves."""

from grafana_foundation_sdk.builders.dashboard import Dashboard, Row

from kubernetes.monitoring.dashboards.panels import Series, choice, graph, greatest, new, quantile, rare, rate

_CHOSEN = 'store=~"$store"'
_EACH = "store, question"
_LEGEND = "{{store}} {{question}}"
_API = 'job="query-api", route=~"/api/.*"'


def build() -> Dashboard:
    return (
        new("queries", "Queries")
        .with_variable(choice("store", "logpipe_query_seconds_count"))
        .with_row(Row("Requests"))
        .with_panel(
            graph(
                "Requests by path",
                "reqps",
                Series(rate("logpipe_http_request_seconds_count", "route", _API), "{{route}}"),
            )
        )
        .with_panel(
            graph(
                "Requests by status: 503 means that a store is unreachable or busy, 504 that a query took too long",
                "reqps",
                Series(rate("logpipe_http_request_seconds_count", "status", _API), "{{status}}"),
            )
        )
        .with_panel(
            graph(
                "Request time, p99, by path",
                "s",
                Series(quantile(0.99, "logpipe_http_request_seconds", "route", _API), "{{route}}"),
            )
        )
        .with_row(Row("Stores"))
        .with_panel(
            graph(
                "Queries that a store answered",
                "reqps",
                Series(rate("logpipe_query_seconds_count", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Query time, median",
                "s",
                Series(quantile(0.5, "logpipe_query_seconds", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_panel(
            graph(
                "Query time, p99: a rise of one store alone is a fault of that store",
                "s",
                Series(quantile(0.99, "logpipe_query_seconds", _EACH, _CHOSEN), _LEGEND),
            )
        )
        .with_row(Row("Cache and alerts"))
        .with_panel(
            graph(
                "Cache: `away` means that Redis is unreachable",
                "ops",
                Series(rare("logpipe_cache_lookups_total", "outcome"), "{{outcome}}"),
            )
        )
        .with_panel(
            graph(
                "How old results are: age of the oldest batch that a store lacks",
                "s",
                Series(greatest("logpipe_watermark_lag_seconds", "store, dataset", _CHOSEN), "{{store}} {{dataset}}"),
            )
        )
        .with_panel(
            graph(
                "Open alerts about services, and how late they are judged",
                "short",
                Series("sum by (rule) (logpipe_alerts_open)", "{{rule}}"),
                Series("max (logpipe_alerts_behind_seconds)", "seconds late"),
            )
        )
    )
