"""Footprints: who called which endpoint, when, with which status, and how long the answers took. Read from PostgreSQL.

The panels are those of the page /footprints of the query API (services/query_api/traffic.py).
"""

from typing import Any

from grafana_foundation_sdk.builders import bargauge, dashboard, stat, table, trend
from grafana_foundation_sdk.builders.common import ReduceDataOptions
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import TableColoredBackgroundCellOptions, VizOrientation
from grafana_foundation_sdk.models.dashboard import DataSourceRef, DynamicConfigValue, FieldColorModeId

from kubernetes.monitoring.dashboards.panels import new

_POSTGRES = DataSourceRef(type_val="grafana-postgresql-datasource", uid="postgres")
_HALF, _HEIGHT = 12, 9
_PERIOD = "FROM footprints WHERE $__timeFilter(footprint_time)"
_REQUEST = "method || ' ' || CASE WHEN route = '' THEN link ELSE route END AS request"
_HOURS = ", ".join(f'count(*) FILTER (WHERE hour = {hour}) AS "{hour:02}"' for hour in range(24))

TOTAL = f"SELECT count(*) AS requests {_PERIOD}"
STATUSES = f"""
SELECT CASE WHEN status IS NULL THEN 'none' WHEN status < 100 OR status >= 600 THEN 'other'
            ELSE floor(status / 100)::int || 'xx' END AS class, count(*) AS requests
{_PERIOD} GROUP BY 1 ORDER BY 1"""
ENDPOINTS = f"SELECT {_REQUEST}, count(*) AS requests {_PERIOD} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10"
WEEK = f"""
SELECT day AS weekday, {_HOURS}
FROM (SELECT to_char(local, 'Dy') AS day, extract(isodow FROM local) AS number, extract(hour FROM local) AS hour
      FROM (SELECT footprint_time AT TIME ZONE ${{zone:sqlstring}} AS local {_PERIOD}) AS times) AS hours
GROUP BY day, number ORDER BY number"""  # noqa: S608 - made of constants, as those below
MINUTES = f"""
SELECT extract(hour FROM local) * 60 + extract(minute FROM local) AS minute, count(*) AS requests
FROM (SELECT footprint_time AT TIME ZONE ${{zone:sqlstring}} AS local {_PERIOD}) AS times
GROUP BY 1 ORDER BY 1"""  # noqa: S608
DURATIONS = f"""
SELECT request, requests, durations[1] AS p50, durations[2] AS p95, durations[3] AS p99
FROM (SELECT {_REQUEST}, count(*) AS requests,
             percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms) AS durations
      {_PERIOD} AND duration_ms IS NOT NULL GROUP BY 1) AS measured
ORDER BY p95 DESC, request LIMIT 10"""  # noqa: S608


class _PostgresQuery(Dataquery):
    """A query of Grafana's data source for PostgreSQL, which the SDK does not have."""

    def __init__(self, sql: str) -> None:
        self._sql = sql

    def to_json(self) -> dict[str, Any]:
        return {
            "datasource": _POSTGRES,
            "editorMode": "code",
            "format": "table",
            "rawQuery": True,
            "rawSql": " ".join(self._sql.split()),
            "refId": "A",
        }


class Sql(Builder[Dataquery]):
    def __init__(self, text: str) -> None:
        self._text = text

    def build(self) -> Dataquery:
        return _PostgresQuery(self._text)


def build() -> dashboard.Dashboard:
    return (
        new("footprints", "Footprints")
        .time("now-7d", "now")
        .refresh("1m")
        .with_variable(dashboard.TextBoxVariable("zone").label("time zone").default_value("Asia/Seoul"))
        .with_panel(
            stat.Panel()
            .title("Requests in the period")
            .unit("short")
            .datasource(_POSTGRES)
            .span(6)
            .height(_HEIGHT)
            .with_target(Sql(TOTAL))
        )
        .with_panel(
            _bars("Requests by class of status: 5xx are faults of the service", STATUSES, 6),
        )
        .with_panel(_bars("The ten endpoints with the most requests", ENDPOINTS, _HALF))
        .with_panel(
            _table("Requests by weekday and hour, in the time zone above", WEEK)
            .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.CONTINUOUS_BL_PU))
            .cell_options(TableColoredBackgroundCellOptions())
            .unit("short")
        )
        .with_panel(
            trend.Panel()
            .title("Requests by minute of the day, from 0 to 1,439, in the time zone above")
            .unit("short")
            .min(0)
            .x_field("minute")
            .fill_opacity(8)
            .datasource(_POSTGRES)
            .span(_HALF)
            .height(_HEIGHT)
            .with_target(Sql(MINUTES))
        )
        .with_panel(
            _table("The ten slowest endpoints by p95: durations in milliseconds", DURATIONS)
            .unit("ms")
            .override_by_name("requests", [DynamicConfigValue("unit", "short")])
        )
    )


def _bars(title: str, sql: str, columns: int) -> bargauge.Panel:
    """A bar for each row: its first column is the name, its second one the length."""
    return (
        bargauge.Panel()
        .title(title)
        .unit("short")
        .min(0)
        .orientation(VizOrientation.HORIZONTAL)
        .reduce_options(ReduceDataOptions().values(True).calcs([]).fields("/^requests$/"))
        .datasource(_POSTGRES)
        .span(columns)
        .height(_HEIGHT)
        .with_target(Sql(sql))
    )


def _table(title: str, sql: str) -> table.Panel:
    return table.Panel().title(title).datasource(_POSTGRES).span(_HALF).height(_HEIGHT).with_target(Sql(sql))
