"""The URL parameters of the dashboard of requests, and the queries that they describe."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from services.core import local_week
from services.core.dataset import Dataset
from services.core.errors import Invalid
from services.core.instants import DAY
from services.core.queries import Filters, Panel, TrafficQuery
from services.query_api.parameters import FilteredParameters, OneStoreParameters, make_model

MAX_PERIOD_DAYS = 3660
MAX_ENDPOINTS = 100
DEFAULT_PERIOD = "24h"

_HOUR = DAY // 24
_PERIODS = {
    "15m": _HOUR // 4,
    "1h": _HOUR,
    "6h": 6 * _HOUR,
    "24h": DAY,
    "7d": 7 * DAY,
    "30d": 30 * DAY,
    "90d": 90 * DAY,
    "365d": 365 * DAY,
}
_Period = Literal["15m", "1h", "6h", "24h", "7d", "30d", "90d", "365d"]


def _known_zone(name: str) -> str:
    local_week.zone(name)
    return name


class TrafficParameters(FilteredParameters):
    panel: Panel = Field(description="the figures that are wanted; each panel is a query of its own")
    last: _Period | None = Field(
        None, description=f"the period until now; {DEFAULT_PERIOD} where there is no start_time either"
    )
    zone: Annotated[str, AfterValidator(_known_zone)] = Field(
        "UTC", description="IANA time zone of the local week of panel=week", examples=["Asia/Seoul"]
    )
    limit: int = Field(10, ge=1, le=MAX_ENDPOINTS, description="endpoints of panel=endpoints and panel=durations")

    def asked(self, dataset: Dataset, now: int) -> TrafficQuery:
        """Return the query. `now`: the time in microseconds since 1970, where the period has no end of its own."""
        filters = self.filters(dataset)
        start, end = self._period(filters, now)
        zone_offsets = local_week.offsets(local_week.zone(self.zone), start, end)
        in_period = Filters(filters.equals, start, end)
        return TrafficQuery(dataset, self.panel, in_period, zone_offsets, self.limit, self.scan)

    def _period(self, filters: Filters, now: int) -> tuple[int, int]:
        if self.last and (filters.start, filters.end) != (None, None):
            raise Invalid("last: the period until now has no start_time and no end_time; leave one of them out")
        if filters.start is None and filters.end is not None:
            raise Invalid("start_time: a period that has an end_time needs a start_time")
        if filters.start is None:
            return now - _PERIODS[self.last or DEFAULT_PERIOD], now
        end = max(now, filters.start) if filters.end is None else filters.end
        if end - filters.start > MAX_PERIOD_DAYS * DAY:
            raise Invalid(f"start_time: a period has {MAX_PERIOD_DAYS} days at most")
        return filters.start, end


class OneStoreTraffic(OneStoreParameters, TrafficParameters):
    pass


class CompareTraffic(TrafficParameters):
    method: Literal["auto", "scan"] = Field(
        "scan", description="`auto`: stores may use data that they keep beside the rows"
    )


def traffic_parameters(dataset: Dataset) -> type[OneStoreTraffic]:
    return make_model(dataset, OneStoreTraffic, {})


def compare_traffic_parameters(dataset: Dataset) -> type[CompareTraffic]:
    return make_model(dataset, CompareTraffic, {})
