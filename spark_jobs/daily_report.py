"""The report of one day: how many rows of each level and service, when, and which endpoints were slow."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any, NamedTuple

from pyspark.sql import SparkSession
from pyspark.sql import functions as sql

from services.reports.tables import Report
from services.runtime.settings import LakeSettings
from spark_jobs.day import ERROR, PERCENTILES, Extent, logs, percentiles, volume

_SLOWEST = 20


class Count(NamedTuple):
    level: str
    service: str
    hour: int
    rows: int


class Endpoint(NamedTuple):
    """`ms`: the 50th, 95th and 99th percentile of its response times."""

    endpoint: str
    requests: int
    ms: list[float]


def rows(spark: SparkSession, settings: LakeSettings, day: date, extent: Extent) -> list[Report]:
    """Return one row, also for a day without logs."""
    of_day = logs(spark, settings, day, day, extent.as_of)
    counts = of_day.groupBy("level", "service", "hour").agg(sql.expr("count(1) AS rows"))
    slowest = (
        of_day.where("endpoint IS NOT NULL AND ms IS NOT NULL")
        .groupBy("endpoint")
        .agg(sql.expr("count(1) AS requests"), sql.expr(PERCENTILES))
        .orderBy(sql.expr("ms[1]").desc(), "endpoint")
        .limit(_SLOWEST)
    )
    return [assembled([Count(*row) for row in counts.collect()], [Endpoint(*row) for row in slowest.collect()])]


def assembled(counts: Iterable[Count], slowest: Iterable[Endpoint]) -> Report:
    """Return the report. Lists are in the order of rows, the most first; equal ones in the order of names."""
    counts = list(counts)
    ((_, total),) = _volumes(counts, lambda count: None).items() or [(None, volume(0, 0))]
    return {
        **total,
        "levels": [{"level": level, "rows": v["rows"]} for level, v in _volumes(counts, lambda c: c.level).items()],
        "services": [{"service": service, **v} for service, v in _volumes(counts, lambda c: c.service).items()],
        "totals": [
            {"level": level, "service": service, "rows": v["rows"]}
            for (level, service), v in _volumes(counts, lambda c: (c.level, c.service)).items()
        ],
        "hours": [{"hour": hour, **v} for hour, v in _volumes(counts, lambda c: c.hour).items()],
        "endpoints": [
            {"endpoint": each.endpoint, "requests": each.requests, **percentiles(each.ms)} for each in slowest
        ],
    }


def _volumes(counts: Iterable[Count], key: Callable[[Count], Any]) -> dict[Any, dict[str, Any]]:
    rows, errors = Counter[Any](), Counter[Any]()
    for count in counts:
        rows[key(count)] += count.rows
        errors[key(count)] += count.rows if count.level == ERROR else 0
    return {each: volume(rows[each], errors[each]) for each in sorted(rows, key=lambda each: (-rows[each], each))}
