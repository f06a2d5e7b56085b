"""What all dashboards share: their data source and time range, one look of a panel, and how a query is written."""

from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef, VariableRefresh, VariableSort

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="prometheus")
INTERVAL = "$__rate_interval"
COLUMNS = 24
_HEIGHT = 8


class Series(NamedTuple):
    """`legend`: the name of each line, with labels as {{label}}."""

    expr: str
    legend: str


def rate(counter: str, by: str = "", where: str = "") -> str:
    """How fast a counter grows per second, summed over all processes."""
    return f"sum{_by(by)} (rate({counter}{_selector(where)}[{INTERVAL}]))"


def rare(counter: str, by: str = "", where: str = "") -> str:
    """As `rate`, for a counter that does not exist before its first event: 0 until then."""
    return f"{rate(counter, by, where)} or on() vector(0)"


def quantile(q: float, histogram: str, by: str = "", where: str = "") -> str:
    buckets = rate(f"{histogram}_bucket", f"{by}, le" if by else "le", where)
    return f"histogram_quantile({q}, {buckets})"


def mean(histogram: str, by: str = "", where: str = "") -> str:
    return f"{rate(f'{histogram}_sum', by, where)} / {rate(f'{histogram}_count', by, where)}"


def greatest(gauge: str, by: str = "", where: str = "") -> str:
    """The greatest value of a gauge that several processes measure."""
    return f"max{_by(by)} ({gauge}{_selector(where)})"


def total(gauge: str, by: str = "", where: str = "") -> str:
    return f"sum{_by(by)} ({gauge}{_selector(where)})"


def graph(title: str, unit: str, *series: Series, columns: int = 8) -> timeseries.Panel:
    """A panel over time. `title` says what it shows and what to look for; `unit` is Grafana's name of the unit."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(title)  # a narrow panel cuts its title off
        .unit(unit)
        .min(0)
        .datasource(PROMETHEUS)
        .span(columns)
        .height(_HEIGHT)
        .fill_opacity(8)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    for index, each in enumerate(series):
        query = prometheus.Dataquery().expr(each.expr).legend_format(each.legend).range().ref_id(chr(ord("A") + index))
        panel.with_target(query)
    return panel


def new(uid: str, title: str) -> dashboard.Dashboard:
    return (
        dashboard.Dashboard(title)
        .uid(f"logpipe-{uid}")
        .tags(["logpipe"])
        .timezone("utc")
        .time("now-30m", "now")
        .refresh("10s")
        .readonly()
        .link(
            dashboard.DashboardLink("Other dashboards")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["logpipe"])
            .as_dropdown(True)
        )
    )


def choice(name: str, metric: str) -> dashboard.QueryVariable:
    """A variable whose values are those of the label `name` of a metric."""
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(PROMETHEUS)
        .query(f"label_values({metric}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


def _selector(where: str) -> str:
    return f"{{{where}}}" if where else ""
