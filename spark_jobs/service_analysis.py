"""The analysis of one day by service, against the seven days before it: error rates, latencies, messages, anomalies."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, NamedTuple

from pyspark.sql import SparkSession

from services.reports.tables import Report
from services.runtime.settings import LakeSettings
from spark_jobs.day import ERROR, PERCENTILES, Extent, logs, percentiles, volume

BEFORE = 7  # days that the day is compared with
_MESSAGES = 10  # most frequent messages of a service
_MESSAGE_LENGTH = 200

_SIGMAS = 3
_FEWEST_ROWS = 100  # a day with fewer rows has no anomalies
_FEWEST_DAYS = 3  # days with rows before the day; from fewer, no standard deviation is computed
_LEAST_EXCESS: Mapping[str, Callable[[float], float]] = {
    "error_rate": lambda mean: 0.01,
    "p95_ms": lambda mean: 0.1 * mean,
}
"""Measure -> the least excess over its mean that is an anomaly, however steady the days before were."""


class ServiceDay(NamedTuple):
    """`service`: None stands for all services. `ms`: 50th, 95th and 99th percentile, None if no time is known."""

    service: str | None
    day: date
    rows: int
    errors: int
    ms: list[float] | None


class Message(NamedTuple):
    service: str | None
    message: str
    rows: int


def rows(spark: SparkSession, settings: LakeSettings, day: date, extent: Extent) -> list[Report]:
    """Return a row for each service that has logs on `day`, and one with service None for all services together."""
    first = max(day - timedelta(days=BEFORE), extent.kept)
    recent = logs(spark, settings, first, day, extent.as_of)
    service_days = spark.sql(_SERVICE_DAYS, recent=recent).collect()
    messages = spark.sql(_TOP_MESSAGES, {"day": day}, recent=recent).collect()
    return assembled(day, first, [ServiceDay(*row) for row in service_days], [Message(*row) for row in messages])


_SERVICE_DAYS = f"""
    SELECT service, day, count(1) AS rows, count_if(level = '{ERROR}') AS errors, {PERCENTILES}
    FROM {{recent}} GROUP BY GROUPING SETS ((service, day), (day))
"""  # noqa: S608 - constants
_TOP_MESSAGES = f"""
    WITH errors AS (
        SELECT service, left(substring_index(message, '\n', 1), {_MESSAGE_LENGTH}) AS message
        FROM {{recent}} WHERE day = :day AND level = '{ERROR}'
    ), counted AS (
        SELECT service, message, count(1) AS rows FROM errors GROUP BY GROUPING SETS ((service, message), (message))
    ), ranked AS (
        SELECT *, row_number() OVER (PARTITION BY service ORDER BY rows DESC, message) AS place FROM counted
    )
    SELECT service, message, rows FROM ranked WHERE place <= {_MESSAGES} ORDER BY place
"""  # noqa: S608


def assembled(day: date, first: date, found: Iterable[ServiceDay], messages: Iterable[Message]) -> list[Report]:
    """Return the rows. `first`: the earliest day of `found`. `messages`: the most frequent first."""
    by_service: dict[str | None, dict[date, ServiceDay]] = {None: {}}
    for each in found:
        by_service.setdefault(each.service, {})[each.day] = each
    top: dict[str | None, list[dict[str, Any]]] = {}
    for service, message, count in messages:
        top.setdefault(service, []).append({"message": message, "rows": count})
    return [
        _report(day, first, service, days, top.get(service, []))
        for service, days in by_service.items()
        if service is None or day in days
    ]


def _report(
    day: date,
    first: date,
    service: str | None,
    found: Mapping[date, ServiceDay],
    messages: Sequence[Mapping[str, Any]],
) -> Report:
    before = (day - timedelta(days=n) for n in range(1, (day - first).days + 1))
    trend = [_measures(service, each, found) for each in before]
    this = _measures(service, day, found)
    return {
        **{name: value for name, value in this.items() if name != "day"},
        "service": service,
        "trend": trend,
        "messages": messages,
        "anomalies": anomalies(this, trend),
    }


def _measures(service: str | None, day: date, found: Mapping[date, ServiceDay]) -> dict[str, Any]:
    each = found.get(day, ServiceDay(service, day, 0, 0, None))
    return {"day": day, **volume(each.rows, each.errors), **percentiles(each.ms)}


def anomalies(this: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the measures of a day that are far above their means of the days before."""
    if this["rows"] < _FEWEST_ROWS:
        return []
    found = []
    for measure, least in _LEAST_EXCESS.items():
        value, past = this[measure], [each[measure] for each in before if each[measure] is not None]
        if value is None or len(past) < _FEWEST_DAYS:
            continue
        mean, sigma = statistics.fmean(past), statistics.stdev(past)
        threshold = mean + max(_SIGMAS * sigma, least(mean))
        if value > threshold:
            found.append({"measure": measure, "value": value, "mean": mean, "sigma": sigma, "threshold": threshold})
    return found
