"""Each component's own sign of overload, read from Prometheus after a trial."""

import math
from dataclasses import dataclass
from datetime import datetime

from services.bench.evidence.records import Table
from services.bench.probes.tables import append, empty
from services.bench.target.urls import Target
from services.core.metric_names import (
    BYTES_IN_FLIGHT,
    COMMIT_SECONDS,
    SINK_LAG_OFFSETS,
    SINK_TRIGGER_SECONDS,
    SINK_WRITE_SECONDS,
    UNPUBLISHED_BATCHES,
)

_STEP_SECONDS = 5
_LAKE = '{store="lake"}'
_OVER = "[30s]"  # six scrapes of the local stack's Prometheus


@dataclass(frozen=True, slots=True)
class Signal:
    """`expression`: of Prometheus, one series. Beyond `limit`, the component no longer keeps up."""

    component: str
    what: str
    expression: str
    limit: float


def _mean(metric: str, labels: str = "") -> str:
    return f"sum(rate({metric}_sum{labels}{_OVER})) / sum(rate({metric}_count{labels}{_OVER}))"


SIGNALS = (
    Signal("PostgreSQL", "seconds of a group commit", _mean(COMMIT_SECONDS.name), 0.5),
    Signal(
        "PostgreSQL",
        "checkpoints in a minute that the write-ahead log forced",
        "sum(increase(pg_stat_bgwriter_checkpoints_req_total[1m]))",
        1,
    ),
    Signal("Kafka", "batches that wait to be published", f"sum({UNPUBLISHED_BATCHES.name})", 1000),
    Signal(
        "ClickHouse", "messages that wait to be loaded", f'sum({SINK_LAG_OFFSETS.name}{{store="clickhouse"}})', 5000
    ),
    Signal(
        "Spark",
        "time of a batch, in times of its trigger",
        f"({_mean(SINK_WRITE_SECONDS.name, _LAKE)}) / max({SINK_TRIGGER_SECONDS.name})",
        1,
    ),
    Signal("lake", "messages that wait to be loaded", f"sum({SINK_LAG_OFFSETS.name}{_LAKE})", 5000),
    Signal("ingest API", "MiB of bodies in flight", f"max({BYTES_IN_FLIGHT.name}) / 1048576", 128),
)


def collect(target: Target, started: datetime, seconds: float) -> Table:
    """Return the signals of a trial; without rows if the target has no Prometheus. Raises StoreDown."""
    table = empty("at", "component", "what", "value", "limit")
    if not target.prometheus_url:
        return table
    start = started.timestamp()
    for signal in SIGNALS:
        between = {"start": str(start), "end": str(start + seconds), "step": str(_STEP_SECONDS)}
        for series in target.prometheus("query_range", {"query": signal.expression, **between}):
            for at, text in series["values"]:
                if math.isfinite(value := float(text)):
                    append(table, round((at - start) * 1e6), signal.component, signal.what, value, signal.limit)
    return table
