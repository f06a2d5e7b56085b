"""The panels of the dashboard of requests as SQL (see TrafficQuery)."""

from collections.abc import Sequence

from psycopg import sql

from services.core.queries import (
    END_OF_STATUSES,
    NO_STATUS,
    OTHER_STATUS,
    PERCENTILES,
    STATUS_CLASSES,
    TrafficQuery,
)
from services.stores.postgres import rollups
from services.stores.postgres.closed_days import ClosedDay
from services.stores.postgres.conditions import Statement, where_in

_ENDPOINT = sql.SQL("CASE WHEN route = '' THEN link ELSE route END")
# percentile_disc is the nearest rank: the first duration whose position reaches the fraction of all.
_DURATIONS = """SELECT method, endpoint, requests, durations[1], durations[2], durations[3] FROM (
                    SELECT method, {endpoint} AS endpoint, count(*) AS requests,
                           percentile_disc({fractions}) WITHIN GROUP (ORDER BY duration_ms + 0) AS durations
                    FROM {table} WHERE {where} AND duration_ms IS NOT NULL GROUP BY 1, 2) AS measured
                ORDER BY durations[2] DESC, method, endpoint LIMIT {limit}"""


def statement(query: TrafficQuery, as_of: int, days: Sequence[ClosedDay]) -> Statement:
    """Return the statement that reads the rows themselves, and its parameters."""
    where, parameters = where_in(query, as_of, days)
    match query.panel:
        case "total":
            text = "SELECT count(*) FROM {table} WHERE {where}"
        case "week":
            text = "SELECT {minute}, count(*) FROM {table} WHERE {where} GROUP BY 1 ORDER BY 1"
        case "endpoints":
            text = """SELECT method, {endpoint}, count(*) FROM {table} WHERE {where}
                      GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT {limit}"""
        case "statuses":
            text = "SELECT {status_class}, count(*) FROM {table} WHERE {where} GROUP BY 1 ORDER BY 1"
        case "durations":
            text = _DURATIONS
    composed = sql.SQL(text).format(
        table=sql.Identifier(query.dataset.name),
        where=where,
        limit=query.limit,
        minute=rollups.minute_of_week(query.offsets, query.dataset.time),
        endpoint=_ENDPOINT,
        status_class=_status_class(),
        fractions=[percentile / 100 for percentile in PERCENTILES],
    )
    return composed, parameters


def _status_class() -> sql.Composed:
    (_, first), *_ = STATUS_CLASSES
    branches = [
        sql.SQL("WHEN status IS NULL THEN {}").format(NO_STATUS),
        sql.SQL("WHEN status < {} OR status >= {} THEN {}").format(first, END_OF_STATUSES, OTHER_STATUS),
        *(sql.SQL("WHEN status >= {} THEN {}").format(start, name) for name, start in reversed(STATUS_CLASSES)),
    ]
    return sql.SQL("CASE {} END").format(sql.SQL(" ").join(branches))
