"""Makes the metrics of `core.metric_names` on first use."""

from functools import cache
from typing import cast

from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from services.core.metric_names import Metric


@cache
def _make(metric: Metric) -> Counter | Gauge | Histogram:
    match metric.type:
        case "counter":
            return Counter(metric.name.removesuffix("_total"), metric.help, metric.labels)
        case "gauge":
            return Gauge(metric.name, metric.help, metric.labels)
        case "histogram":
            return Histogram(metric.name, metric.help, metric.labels, buckets=metric.buckets)


@cache
def counter(metric: Metric, *labels: str) -> Counter:
    return cast(Counter, _labelled(metric, labels))


@cache
def gauge(metric: Metric, *labels: str) -> Gauge:
    return cast(Gauge, _labelled(metric, labels))


@cache
def histogram(metric: Metric, *labels: str) -> Histogram:
    return cast(Histogram, _labelled(metric, labels))


def _labelled(metric: Metric, labels: tuple[str, ...]) -> Counter | Gauge | Histogram:
    made = _make(metric)
    return made.labels(*labels) if labels else made


def exposition() -> tuple[bytes, str]:
    """Return the text of /metrics and its content type."""
    return generate_latest(), CONTENT_TYPE_LATEST
