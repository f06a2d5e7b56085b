"""Reads the logs of some days from the lake, for the reports. A day is a UTC day of event time."""

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from services import datasets, stores
from services.core.errors import Invalid, StoreDown
from services.core.ids import end_id
from services.core.instants import to_datetime
from services.lake import NAME
from services.lake.table import table_uri
from services.ledger import floors, reading
from services.ledger.watermark import Watermarks
from services.postgres.pool import Pool
from services.runtime.settings import LakeSettings
from spark_jobs.settings import ReportSettings

DATASET = "logs"
ERROR = "ERROR"  # the level of logs that count as errors

# Exact percentiles keep each distinct value in memory, so values are rounded to a tenth of a millisecond before.
PERCENTILES = "percentile(ms, array(0.5D, 0.95D, 0.99D)) AS ms"

_METADATA = "from_json(metadata, 'endpoint STRING, response_time_ms DOUBLE')"
_LONGEST_MS = 1e9


def logs(spark: SparkSession, settings: LakeSettings, first: date, last: date, as_of: int) -> DataFrame:
    """Return the logs of first..last in the batches up to `as_of`. `ms` is the response time, NULL if unknown."""
    start, end = begin(first), begin(last + timedelta(days=1))
    return (
        spark.read.format("delta")
        .load(table_uri(settings, DATASET))
        .where(f"id < {end_id(as_of)}")
        .where(f"timestamp >= timestamp '{start:%F %T}' AND timestamp < timestamp '{end:%F %T}'")
        .selectExpr("timestamp", "level", "service", "message", f"{_METADATA} AS metadata")
        .selectExpr(
            "CAST(timestamp AS DATE) AS day",
            "hour(timestamp) AS hour",
            "level",
            "service",
            "message",
            "metadata.endpoint AS endpoint",
            f"round(IF(metadata.response_time_ms BETWEEN 0 AND {_LONGEST_MS}, metadata.response_time_ms, NULL), 1)"
            " AS ms",
        )
    )


@dataclass(frozen=True, slots=True)
class Extent:
    """What the lake has: all batches up to `as_of`, and of these the days from `kept` on."""

    as_of: int
    kept: date


def loaded(settings: ReportSettings, day: date) -> Extent:
    """Return what the lake has, if it has all rows of `day` that were accepted before the end of the day.

    Raises StoreDown while the lake lacks some of them, and Invalid if retention has dropped rows of the day: such a
    report would leave rows out, and no user would notice.
    """
    dataset = datasets.find(DATASET)
    with (
        closing(stores.open_reader(NAME)) as reader,
        closing(Pool(settings.postgres_url.get_secret_value())) as ledger,
    ):
        as_of = Watermarks(ledger).of(reader, dataset)
        with ledger.connection() as connection:
            waiting = reading.batches(connection, DATASET, as_of, reading.last_batch(connection), 1)
            dropped = floors.last_dropped(connection, DATASET)
    kept = date.min if dropped is None else to_datetime(dropped).date() + timedelta(days=1)
    if day < kept:
        raise Invalid(f"the logs of {day} were dropped by retention; a report made before that is kept as it is")
    end = begin(day + timedelta(days=1))
    if waiting and datetime.now(UTC) >= end and waiting[0].created_at < end.timestamp() * 1e6:
        raise StoreDown(
            NAME,
            f"it is still loading what was accepted before the end of {day} (it has batch {as_of}): try again in a"
            " minute; if the batch stays the same, see the log of the lake's writer",
        )
    return Extent(as_of, kept)


def begin(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def volume(rows: int, errors: int) -> dict[str, Any]:
    """Return the columns `rows`, `errors` and `error_rate`."""
    return {"rows": rows, "errors": errors, "error_rate": errors / rows if rows else None}


def percentiles(ms: list[float] | None) -> dict[str, float | None]:
    """Return the columns `p50_ms`, `p95_ms` and `p99_ms` from the result of PERCENTILES."""
    p50, p95, p99 = ms or (None, None, None)
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
