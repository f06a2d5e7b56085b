"""The panels of the dashboard of requests as SQL (see TrafficQuery)."""

from services.core.queries import (
    END_OF_STATUSES,
    NO_STATUS,
    OTHER_STATUS,
    PERCENTILES,
    STATUS_CLASSES,
    TrafficQuery,
)
from services.stores.clickhouse.rollups import minute_of_week
from services.stores.clickhouse.statements import Statement, canonical, select, where

_ENDPOINT = "if(route = '', link, route)"


def statement(query: TrafficQuery, as_of: int) -> Statement:
    """Return the statement that reads the rows themselves, and its parameters."""
    dataset = query.dataset
    conditions, parameters = where(dataset, query.filters, as_of)
    match query.panel:
        case "total":
            text = select("count()", dataset, conditions)
        case "week":
            minute = minute_of_week(query.offsets, canonical(dataset.by_name[dataset.time]))
            text = select(f"{minute} AS minute, count()", dataset, conditions, "GROUP BY minute ORDER BY minute")
        case "endpoints":
            rest = f"GROUP BY method, endpoint ORDER BY requests DESC, method, endpoint LIMIT {query.limit:d}"
            text = select(f"method, {_ENDPOINT} AS endpoint, count() AS requests", dataset, conditions, rest)
        case "statuses":
            text = select(f"{_status_class()} AS class, count()", dataset, conditions, "GROUP BY class ORDER BY class")
        case "durations":
            fractions = ", ".join(str(percentile / 100) for percentile in PERCENTILES)
            # The weighted quantile is the nearest rank; quantileExact itself takes the next duration at whole ranks.
            quantiles = f"quantilesExactWeighted({fractions})(assumeNotNull(duration_ms) + 0., 1)"
            what = (
                f"method, {_ENDPOINT} AS endpoint, count(), ({quantiles} AS durations)[1], durations[2], durations[3]"
            )
            rest = f"GROUP BY method, endpoint ORDER BY durations[2] DESC, method, endpoint LIMIT {query.limit:d}"
            text = select(what, dataset, f"{conditions} AND duration_ms IS NOT NULL", rest)
    return text, parameters


def _status_class() -> str:
    (_, first), *_ = STATUS_CLASSES
    classes = [f"status >= {start:d}, '{name}'" for name, start in reversed(STATUS_CLASSES)]
    return (
        f"multiIf(isNull(status), '{NO_STATUS}', status < {first:d} OR status >= {END_OF_STATUSES:d}, '{OTHER_STATUS}',"
        f" {', '.join(classes[:-1])}, '{STATUS_CLASSES[0][0]}')"
    )
