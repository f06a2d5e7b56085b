"""The panels of the dashboard of requests as SQL (see TrafficQuery), the same for every engine of the lake."""
# ruff: noqa: S608 - see services/lake/sql.py

from dataclasses import replace
from itertools import pairwise

from services.core.local_week import WEEK
from services.core.queries import (
    END_OF_STATUSES,
    MINUTE,
    NO_STATUS,
    OTHER_STATUS,
    PERCENTILES,
    STATUS_CLASSES,
    TrafficQuery,
)
from services.lake.snapshot import Bounds
from services.lake.sql import Renderer, Statement


class TrafficRenderer(Renderer):
    """Renders one statement about a dataset with the columns of `footprints`."""

    def panel(self, query: TrafficQuery, as_of: int) -> Statement:
        where, bounds = self._where(query.filters, as_of), self._bounds(query.filters, as_of)
        match query.panel:
            case "total":
                return self.count(query.filters, as_of)
            case "week":
                return self._select(f"{self._minute(query)}, count(*)", where, bounds, "GROUP BY 1 ORDER BY 1")
            case "endpoints":
                what = f"{self._value('method')}, {self._endpoint()}, count(*)"
                rest = f"GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT {query.limit:d}"
                return self._select(what, where, bounds, rest)
            case "statuses":
                return self._select(f"{self._status_class()}, count(*)", where, bounds, "GROUP BY 1 ORDER BY 1")
            case "durations":
                return self._durations(query, where, bounds)

    def _durations(self, query: TrafficQuery, where: str, bounds: Bounds) -> Statement:
        """Count each duration of an endpoint once. A duration is the nearest rank if the counts up to it reach it."""
        duration = self._value("duration_ms")
        keys = f"{self._value('method')} AS method, {self._endpoint()} AS endpoint, {duration} + 0 AS duration"
        counted = self._select(
            f"{keys}, count(*) AS requests", f"{where} AND {duration} IS NOT NULL", bounds, "GROUP BY 1, 2, 3"
        )
        partition = "PARTITION BY method, endpoint"
        names = [f"p{percentile}" for percentile in PERCENTILES]
        ranks = ", ".join(
            f"min(CASE WHEN reached * 100 >= total * {percentile:d} THEN duration END) AS {name}"
            for percentile, name in zip(PERCENTILES, names, strict=True)
        )
        text = (
            f"SELECT method, endpoint, total, {ranks} FROM (SELECT method, endpoint, duration,"
            f" sum(requests) OVER ({partition} ORDER BY duration) AS reached,"
            f" sum(requests) OVER ({partition}) AS total FROM ({counted.text}) AS counted) AS ranked"
            f" GROUP BY 1, 2, 3 ORDER BY {names[1]} DESC, 1, 2 LIMIT {query.limit:d}"
        )
        return replace(counted, text=text)

    def _minute(self, query: TrafficQuery) -> str:
        """Return the minute of the local week, as `local_week.minute_of_week` does."""
        time = self.dialect.microseconds(self.dialect.name(self.dataset.time))
        shift = f"{query.offsets[-1].since_monday:d}"
        if branches := [
            f"WHEN {time} < {following.start:d} THEN {offset.since_monday:d}"
            for offset, following in pairwise(query.offsets)
        ]:
            shift = f"CASE {' '.join(branches)} ELSE {shift} END"
        since = f"({time} + {shift}) % {WEEK:d}"
        return f"{since} - {since} % {MINUTE:d}"

    def _endpoint(self) -> str:
        route = self._value("route")
        return f"CASE WHEN {route} = {self.dialect.text('')} THEN {self._value('link')} ELSE {route} END"

    def _status_class(self) -> str:
        status, (_, first) = self._value("status"), STATUS_CLASSES[0]
        classes = " ".join(f"WHEN {status} >= {start:d} THEN '{name}'" for name, start in reversed(STATUS_CLASSES))
        return (
            f"CASE WHEN {status} IS NULL THEN '{NO_STATUS}'"
            f" WHEN {status} < {first:d} OR {status} >= {END_OF_STATUSES:d} THEN '{OTHER_STATUS}' {classes} END"
        )
